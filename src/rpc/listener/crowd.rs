//! Admission where slots are few: the guest that has been idle longest gives way, from the address that has the most.
//!
//! An address can therefore displace only its own guests, and an address that many share, as behind a proxy, displaces
//! only idle ones. A guest that gives way may take a moment to leave, but only so many at a time, since each still has
//! a descriptor. So a slot is not a permit of a budget: it can be lost while it is held.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// One guest may be leaving per this many slots, in addition to a small constant.
const LEAVING_PART: usize = 16;
const LEAVING_MIN: usize = 4;

/// The maximum number of guests for this many slots: some guests are about to leave.
pub fn most(places: usize) -> usize {
    places.saturating_add(places / LEAVING_PART + LEAVING_MIN)
}

/// The number of slots for which there are never more guests than `most`.
pub fn places(most: usize) -> usize {
    let both = most.saturating_sub(LEAVING_MIN);
    let (groups, rest) = (both / (LEAVING_PART + 1), both % (LEAVING_PART + 1));
    groups * LEAVING_PART + rest.min(LEAVING_PART - 1)
}

/// A bounded number of guests.
#[derive(Clone, Debug)]
pub struct Crowd(Arc<Places>);

#[derive(Debug)]
struct Places {
    max: usize,
    guests: Mutex<Guests>,
    /// Called with the number of guests whenever it changes.
    tell: fn(usize),
    /// Notified when a guest has gone.
    gone: Notify,
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    /// Guests that have a slot.
    present: HashMap<u64, Guest>,
    /// Guests that were asked to leave and are still here, oldest first. Dropping the sender cuts a guest short.
    leaving: VecDeque<(u64, oneshot::Sender<()>)>,
    /// All guests that are here, with or without a slot.
    here: usize,
}

struct Guest {
    /// Absent for one of our proxies, which stands for many callers.
    address: Option<IpAddr>,
    idle_since: Box<dyn Fn() -> Option<Instant> + Send>,
    /// Dropping it asks the guest to leave.
    _stay: oneshot::Sender<()>,
    /// Dropping it cuts short a guest that was asked to leave.
    farewell: oneshot::Sender<()>,
}

/// A guest's slot, released when dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Crowd,
    id: u64,
    stay: oneshot::Receiver<()>,
    farewell: oneshot::Receiver<()>,
}

impl Crowd {
    pub fn new(max: usize, tell: fn(usize)) -> Self {
        Self(Arc::new(Places { max, guests: Mutex::default(), tell, gone: Notify::new() }))
    }

    /// Waits until another guest can be let in; to make room, the guest that was asked to leave first is cut short.
    pub async fn room(&self) {
        loop {
            let gone = self.0.gone.notified();
            {
                let mut guests = self.lock();
                if guests.here < most(self.0.max) {
                    return;
                }
                guests.leaving.pop_front();
            }
            gone.await;
        }
    }

    /// A slot for a guest. The closure can be called at any time and returns since when the guest has been idle, or
    /// `None` while it is not. Returns `None` if all slots are taken and no guest is idle.
    pub fn enter(
        &self,
        address: Option<IpAddr>,
        idle_since: impl Fn() -> Option<Instant> + Send + 'static,
    ) -> Option<Place> {
        let mut guests = self.lock();
        if guests.present.len() >= self.0.max {
            let idlest = guests.idlest()?;
            guests.ask_to_leave(idlest);
        }
        let id = guests.next;
        guests.next += 1;
        let ((stay, staying), (farewell, leaving)) = (oneshot::channel(), oneshot::channel());
        guests.present.insert(id, Guest { address, idle_since: Box::new(idle_since), _stay: stay, farewell });
        guests.here += 1;
        (self.0.tell)(guests.present.len());
        Some(Place { crowd: self.clone(), id, stay: staying, farewell: leaving })
    }

    fn lock(&self) -> MutexGuard<'_, Guests> {
        self.0.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guests {
    fn idlest(&self) -> Option<u64> {
        let mut of_address: HashMap<Option<IpAddr>, usize> = HashMap::new();
        self.present.values().for_each(|guest| *of_address.entry(guest.address).or_default() += 1);
        let idle = self.present.iter().filter_map(|(id, guest)| {
            // A proxy's connections belong to many callers, so each counts as the only one of its caller.
            let others = guest.address.map_or(1, |_| of_address[&guest.address]);
            Some((*id, others, (guest.idle_since)()?))
        });
        let idlest = idle.max_by(|(_, others_a, since_a), (_, others_b, since_b)| {
            others_a.cmp(others_b).then(since_b.cmp(since_a))
        });
        idlest.map(|(id, ..)| id)
    }

    /// Takes away a guest's slot.
    fn ask_to_leave(&mut self, id: u64) {
        let Some(guest) = self.present.remove(&id) else { return };
        self.leaving.push_back((id, guest.farewell));
    }
}

impl Place {
    /// Waits until the slot was given to another guest.
    pub async fn lost(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.stay).await;
    }

    /// Waits, after the slot was lost, until the time to leave is over.
    pub async fn cut_short(&mut self) {
        let _ = (&mut self.farewell).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guests = self.crowd.lock();
        guests.present.remove(&self.id);
        guests.leaving.retain(|(id, _)| *id != self.id);
        guests.here -= 1;
        (self.crowd.0.tell)(guests.present.len());
        self.crowd.0.gone.notify_waiters();
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    fn idle(crowd: &Crowd, from: Option<IpAddr>) -> Place {
        let since = Instant::now();
        crowd.enter(from, move || Some(since)).expect("somebody gives way")
    }

    fn is_lost(place: &mut Place) -> bool {
        place.lost().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_crowds_out_nobody_but_itself() {
        let crowd = Crowd::new(4, |_| {});
        let mut quiet = idle(&crowd, address(1));
        let mut storm = Vec::new();
        for _ in 0..100 {
            tokio::time::advance(Duration::from_millis(1)).await;
            storm.push(idle(&crowd, address(2)));
        }
        assert!(!is_lost(&mut quiet));
        let kept = storm.iter_mut().filter_map(|place| (!is_lost(place)).then_some(())).count();
        assert_eq!(kept, 3);
        assert!(!is_lost(storm.last_mut().expect("the last one")), "the newest has a place");
    }

    #[tokio::test(start_paused = true)]
    async fn behind_one_address_the_idlest_gives_way_and_the_busy_stay() {
        let crowd = Crowd::new(3, |_| {});
        let mut busy = crowd.enter(address(1), || None).expect("room");
        let mut old = idle(&crowd, address(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        let mut new = idle(&crowd, address(1));
        let mut next = crowd.enter(address(1), || None).expect("the oldest gives way");
        assert_eq!([&mut busy, &mut old, &mut new, &mut next].map(is_lost), [false, true, false, false]);
        let _last = crowd.enter(address(1), || None).expect("the other idle one");
        assert!(crowd.enter(address(1), || None).is_none(), "all are busy");
        drop((busy, old, new));
        assert_eq!(crowd.lock().present.len(), 2);
        assert!(crowd.enter(address(1), || None).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_takes_his_time_until_somebody_else_needs_the_room() {
        const PLACES: usize = 2 * LEAVING_PART;
        let crowd = Crowd::new(PLACES, |_| {});
        let mut guests = Vec::new();
        for _ in 0..most(PLACES) {
            crowd.room().now_or_never().expect("room");
            guests.push(idle(&crowd, address(1)));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let are_short = |guests: &mut [Place]| -> Vec<bool> {
            guests.iter_mut().map(|place| place.cut_short().now_or_never().is_some()).collect()
        };
        assert!(!are_short(&mut guests).contains(&true));
        let mut waiting = Box::pin(crowd.room());
        assert!((&mut waiting).now_or_never().is_none());
        let mut first = guests.remove(0);
        assert!(first.cut_short().now_or_never().is_some());
        assert!(!are_short(&mut guests).contains(&true));
        drop(first);
        assert!(waiting.now_or_never().is_some());
        drop(guests);
        let left = crowd.lock();
        assert_eq!((left.here, left.present.len(), left.leaving.len()), (0, 0, 0));
    }

    #[test]
    fn places_leave_room_for_whoever_is_leaving() {
        for descriptors in LEAVING_MIN..1000 {
            let places = places(descriptors);
            assert!(most(places) <= descriptors && most(places + 1) > descriptors, "{descriptors}: {places}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_is_not_held_to_be_one_greedy_caller() {
        let crowd = Crowd::new(5, |_| {});
        let mut proxied = [(); 3].map(|()| idle(&crowd, None));
        tokio::time::advance(Duration::from_secs(1)).await;
        let mut greedy = [(); 2].map(|()| idle(&crowd, address(1)));
        let _next = idle(&crowd, address(2));
        assert!(!proxied.iter_mut().any(is_lost));
        assert_eq!(greedy.iter_mut().filter_map(|place| is_lost(place).then_some(())).count(), 1);
    }
}
