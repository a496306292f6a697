//! Who is let in where places are few: whoever has been idle longest gives way, of the address that has most of them.
//!
//! So an address can crowd out nobody but itself, and one that all share, as behind a proxy, crowds out the idle alone.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

/// A bounded number of guests.
#[derive(Clone, Debug)]
pub struct Crowd(Arc<Places>);

#[derive(Debug)]
struct Places {
    max: usize,
    guests: Mutex<Guests>,
    /// Told the number of guests whenever it changes.
    tell: fn(usize),
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    present: HashMap<u64, Guest>,
}

struct Guest {
    /// Absent for a proxy of ours, which is many.
    address: Option<IpAddr>,
    idle_since: Box<dyn Fn() -> Option<Instant> + Send>,
    /// Dropped, it asks the guest to leave.
    _stay: oneshot::Sender<()>,
}

/// A guest's place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Crowd,
    id: u64,
    stay: oneshot::Receiver<()>,
}

impl Crowd {
    pub fn new(max: usize, tell: fn(usize)) -> Self {
        Self(Arc::new(Places { max, guests: Mutex::default(), tell }))
    }

    /// A place for a guest who may be asked at any time since when he is idle, `None` while he is not. `None` where all
    /// places are taken and nobody is idle.
    pub fn enter(
        &self,
        address: Option<IpAddr>,
        idle_since: impl Fn() -> Option<Instant> + Send + 'static,
    ) -> Option<Place> {
        let mut guests = self.lock();
        if guests.present.len() >= self.0.max {
            let idlest = guests.idlest()?;
            guests.present.remove(&idlest);
        }
        let id = guests.next;
        guests.next += 1;
        let (stay, staying) = oneshot::channel();
        guests.present.insert(id, Guest { address, idle_since: Box::new(idle_since), _stay: stay });
        (self.0.tell)(guests.present.len());
        Some(Place { crowd: self.clone(), id, stay: staying })
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
            // A proxy's connections are many callers', none of which has more than one.
            let others = guest.address.map_or(1, |_| of_address[&guest.address]);
            Some((*id, others, (guest.idle_since)()?))
        });
        let idlest = idle.max_by(|(_, others_a, since_a), (_, others_b, since_b)| {
            others_a.cmp(others_b).then(since_b.cmp(since_a))
        });
        idlest.map(|(id, ..)| id)
    }
}

impl Place {
    /// Waits until the place is another guest's.
    pub async fn lost(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.stay).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guests = self.crowd.lock();
        guests.present.remove(&self.id);
        (self.crowd.0.tell)(guests.present.len());
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
    async fn a_proxy_is_not_held_to_be_one_greedy_caller() {
        let crowd = Crowd::new(4, |_| {});
        let mut proxied = [idle(&crowd, None), idle(&crowd, None)];
        let mut greedy = [idle(&crowd, address(1)), idle(&crowd, address(1))];
        let _next = idle(&crowd, address(2));
        assert!(!proxied.iter_mut().any(is_lost));
        assert_eq!(greedy.iter_mut().filter_map(|place| is_lost(place).then_some(())).count(), 1);
    }
}
