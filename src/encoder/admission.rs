//! Admission: how many chips and bytes may be in the server at once. It refuses, it never waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::metrics;
use crate::reason::Reason;

/// A budget of chips and bytes, from admission to answer.
#[derive(Clone, Debug)]
pub struct Admission {
    held: Arc<Mutex<Held>>,
    items_max: usize,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Held {
    items: usize,
    bytes: usize,
}

/// Chips that are in the server; their room is free again when this is dropped.
#[derive(Debug)]
pub struct Admitted {
    held: Arc<Mutex<Held>>,
    items: usize,
    bytes: usize,
}

/// Why chips are not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the server has no room for more chips, its limit is {limit}")]
    Items { limit: usize },
    #[error("the server has no room for more image bytes, its limit is {limit}")]
    Bytes { limit: usize },
    #[error("the queue would take {expected:.1?}, the call's deadline is in {left:.1?}")]
    Deadline { expected: Duration, left: Duration },
    /// However short the queue is, so that coming back is of no use.
    #[error("an idle device would take {expected:.1?}, the call's deadline is in {left:.1?}")]
    TooShort { expected: Duration, left: Duration },
}

impl Refusal {
    /// Stable and fit for programs and labels.
    pub fn reason(self) -> Reason {
        match self {
            Self::Items { .. } => Reason::QueueFull,
            Self::Bytes { .. } => Reason::QueueBytesFull,
            Self::Deadline { .. } => Reason::QueueTooLong,
            Self::TooShort { .. } => Reason::DeadlineExceeded,
        }
    }
}

impl Admission {
    pub fn new(items_max: usize, bytes_max: usize) -> Self {
        Self { held: Arc::default(), items_max, bytes_max }
    }

    /// Takes room for `items` chips of `bytes` bytes together, all or nothing.
    ///
    /// # Errors
    /// At once, when either budget would be exceeded.
    pub fn try_admit(&self, items: usize, bytes: usize) -> Result<Admitted, Refusal> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.items.saturating_add(items) > self.items_max {
            return Err(Refusal::Items { limit: self.items_max });
        }
        if held.bytes.saturating_add(bytes) > self.bytes_max {
            return Err(Refusal::Bytes { limit: self.bytes_max });
        }
        held.items += items;
        held.bytes += bytes;
        metrics::admitted(held.items, held.bytes);
        Ok(Admitted { held: Arc::clone(&self.held), items, bytes })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.items -= self.items;
        held.bytes -= self.bytes;
        metrics::admitted(held.items, held.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_server_refuses_at_once_and_names_the_budget() {
        let admission = Admission::new(3, 100);
        let first = admission.try_admit(2, 60).expect("room");
        assert_eq!(admission.try_admit(2, 1).expect_err("items"), Refusal::Items { limit: 3 });
        assert_eq!(admission.try_admit(1, 41).expect_err("bytes"), Refusal::Bytes { limit: 100 });
        let _second = admission.try_admit(1, 40).expect("exactly what is left");
        drop(first);
        assert!(admission.try_admit(2, 60).is_ok());
    }

    #[test]
    fn a_refusal_takes_no_room_and_a_huge_request_does_not_overflow() {
        let admission = Admission::new(3, 100);
        for _ in 0..10 {
            assert!(admission.try_admit(4, 1).is_err());
            assert!(admission.try_admit(usize::MAX, usize::MAX).is_err());
        }
        assert!(admission.try_admit(3, 100).is_ok());
    }
}
