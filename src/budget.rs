//! Limits on amounts that a server has only so much of. Dropping a guard gives back what it holds.
//!
//! A `Budget` refuses at once what would exceed it; for `Slots` callers wait, in order of arrival. Both report the
//! amount held to a gauge. Fair sharing between callers is up to the code that knows the callers.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An amount of which only so much may be held at once. Clones share one budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Amount>);

#[derive(Debug)]
struct Amount {
    limit: u64,
    held: Mutex<u64>,
    /// Receives the total amount held after every change, one change at a time.
    gauge: fn(u64),
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    budget: Budget,
    amount: u64,
}

/// The budget has no room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{held} of {limit} are held")]
pub struct Exceeded {
    pub limit: u64,
    /// Held by all permits together.
    pub held: u64,
}

/// A number of slots for which callers wait. Clones share the slots.
#[derive(Clone, Debug)]
pub struct Slots {
    free: Arc<Semaphore>,
    taken: Budget,
}

/// One slot or several, given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct Slot {
    _taken: Permit,
    _permit: OwnedSemaphorePermit,
}

/// The slots are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the slots are closed")]
pub struct Closed;

impl Budget {
    pub fn new(limit: u64) -> Self {
        Self::with_gauge(limit, |_| {})
    }

    pub fn with_gauge(limit: u64, gauge: fn(u64)) -> Self {
        Self(Arc::new(Amount { limit, held: Mutex::default(), gauge }))
    }

    /// A permit that holds nothing yet.
    pub fn permit(&self) -> Permit {
        Permit { budget: self.clone(), amount: 0 }
    }

    /// Takes `amount`, all or nothing.
    ///
    /// # Errors
    /// The limit would be exceeded. This never waits.
    pub fn take(&self, amount: u64) -> Result<Permit, Exceeded> {
        let mut permit = self.permit();
        permit.grow(amount)?;
        Ok(permit)
    }

    /// Changes the held amount to what `change` returns; `None` means that the limit would be exceeded.
    fn change(&self, change: impl FnOnce(u64) -> Option<u64>) -> Result<(), Exceeded> {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = change(*held).ok_or(Exceeded { limit: self.0.limit, held: *held })?;
        (self.0.gauge)(*held);
        Ok(())
    }
}

impl Permit {
    /// Takes `more` of the budget, all or nothing.
    ///
    /// # Errors
    /// The limit would be exceeded. This never waits.
    pub fn grow(&mut self, more: u64) -> Result<(), Exceeded> {
        self.grow_within(more, self.budget.0.limit)
    }

    /// [`Self::grow`] with an additional `limit` for what something outside the budget leaves of it.
    ///
    /// # Errors
    /// Either limit would be exceeded. This never waits.
    pub fn grow_within(&mut self, more: u64, limit: u64) -> Result<(), Exceeded> {
        let limit = limit.min(self.budget.0.limit);
        self.budget.change(|held| held.checked_add(more).filter(|held| *held <= limit))?;
        self.amount += more;
        Ok(())
    }

    /// Takes more or gives back until `amount` is held. Giving back never fails.
    ///
    /// # Errors
    /// The limit would be exceeded; the held amount is then unchanged. This never waits.
    pub fn resize(&mut self, amount: u64) -> Result<(), Exceeded> {
        match amount.checked_sub(self.amount) {
            Some(more) => self.grow(more),
            None => {
                let back = self.amount - amount;
                self.amount = amount;
                self.budget.change(|held| Some(held - back))
            }
        }
    }

    /// The amount held by this permit.
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Resizing to less than what is held cannot fail.
        let _ = self.resize(0);
    }
}

impl Slots {
    pub fn new(count: usize) -> Self {
        Self::with_gauge(count, |_| {})
    }

    pub fn with_gauge(count: usize, gauge: fn(u64)) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), taken: Budget::with_gauge(u64::MAX, gauge) }
    }

    /// Waits for a slot. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// The slots are closed.
    pub async fn take(&self) -> Result<Slot, Closed> {
        self.take_many(1).await
    }

    /// Waits for `count` slots together, which must not exceed the number of slots.
    ///
    /// # Errors
    /// The slots are closed.
    pub async fn take_many(&self, count: u32) -> Result<Slot, Closed> {
        let permit = Arc::clone(&self.free).acquire_many_owned(count).await.map_err(|_| Closed)?;
        let taken = self.taken.take(count.into()).map_err(|_| Closed)?;
        Ok(Slot { _taken: taken, _permit: permit })
    }

    /// Refuses all waiting and all later callers.
    pub fn close(&self) {
        self.free.close();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_budget_refuses_at_once_what_exceeds_it_and_a_refusal_takes_nothing() {
        let budget = Budget::new(10);
        let mut first = budget.take(6).expect("room");
        for too_much in [5, u64::MAX] {
            assert_eq!(budget.take(too_much).expect_err("too much"), Exceeded { limit: 10, held: 6 });
            assert_eq!(first.grow(too_much).expect_err("too much"), Exceeded { limit: 10, held: 6 });
        }
        let second = budget.take(4).expect("exactly what is left");
        drop(first);
        assert_eq!(budget.take(7).expect_err("the second one holds some"), Exceeded { limit: 10, held: 4 });
        drop(second);
        assert_eq!(budget.take(10).expect("everything").amount(), 10);
    }

    #[test]
    fn a_permit_grows_and_shrinks_within_what_others_leave() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.permit(), budget.permit());
        one.resize(7).expect("room");
        assert_eq!(other.resize(4), Err(Exceeded { limit: 10, held: 7 }));
        one.resize(2).expect("giving back never fails");
        other.resize(8).expect("what was given back");
        assert_eq!((one.amount(), other.amount()), (2, 8));
        drop(other);
        assert_eq!(one.grow_within(4, 5), Err(Exceeded { limit: 10, held: 2 }));
        one.grow_within(3, 5).expect("as much as is left beside");
        assert_eq!(
            one.grow_within(6, 100),
            Err(Exceeded { limit: 10, held: 5 }),
            "the budget's limit counts too"
        );
    }

    #[test]
    fn a_gauge_is_told_every_change() {
        static GAUGE: AtomicU64 = AtomicU64::new(0);
        let budget = Budget::with_gauge(10, |held| GAUGE.store(held, Ordering::Relaxed));
        let shown = || GAUGE.load(Ordering::Relaxed);
        let mut permit = budget.take(3).expect("room");
        assert_eq!(shown(), 3);
        permit.grow(4).expect("room");
        assert_eq!(shown(), 7);
        permit.resize(1).expect("less");
        assert_eq!(shown(), 1);
        drop(permit);
        assert_eq!(shown(), 0);
    }

    #[tokio::test]
    async fn whoever_finds_no_slot_waits_for_one_in_turn() {
        static GAUGE: AtomicU64 = AtomicU64::new(0);
        let slots = Slots::with_gauge(2, |taken| GAUGE.store(taken, Ordering::Relaxed));
        let [one, other] = [slots.take().await, slots.take().await].map(|slot| slot.expect("a slot"));
        assert_eq!(GAUGE.load(Ordering::Relaxed), 2);
        let (mut both, mut last) = (Box::pin(slots.take_many(2)), Box::pin(slots.take()));
        assert!(futures_util::poll!(&mut both).is_pending());
        drop(one);
        assert!(futures_util::poll!(&mut last).is_pending(), "nobody overtakes who wants more");
        drop(other);
        let both = both.now_or_never().expect("its turn").expect("two slots");
        assert_eq!(GAUGE.load(Ordering::Relaxed), 2);
        assert!(futures_util::poll!(&mut last).is_pending());
        drop(both);
        drop(last.await.expect("a slot"));
        assert_eq!(GAUGE.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn closing_sends_away_who_waits_and_who_comes() {
        let slots = Slots::new(1);
        let held = slots.take().await.expect("a slot");
        let mut waiting = Box::pin(slots.take());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        slots.close();
        assert_eq!(waiting.await.expect_err("closed"), Closed);
        drop(held);
        assert_eq!(slots.take().await.expect_err("closed"), Closed);
    }
}
