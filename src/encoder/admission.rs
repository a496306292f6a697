//! Admission: limits how many chips and bytes may be in the server at once. It refuses and never waits.

use std::time::Duration;

use crate::budget::{Budget, Permit};
use crate::metrics;
use crate::reason::Reason;

/// Budgets of chips and of bytes, from admission to response.
#[derive(Clone, Debug)]
pub struct Admission {
    items: Budget,
    bytes: Budget,
}

/// Chips that are in the server; their room is released when this is dropped.
#[derive(Debug)]
pub struct Admitted {
    _items: Permit,
    _bytes: Permit,
}

/// Why chips are not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the server has no room for more chips, its limit is {limit}")]
    Items { limit: u64 },
    #[error("the server has no room for more image bytes, its limit is {limit}")]
    Bytes { limit: u64 },
    #[error("the queue would take {expected:.1?}, the call's deadline is in {left:.1?}")]
    Deadline { expected: Duration, left: Duration },
    /// However short the queue is, so that a retry is of no use.
    #[error("an idle device would take {expected:.1?}, the call's deadline is in {left:.1?}")]
    TooShort { expected: Duration, left: Duration },
}

impl Refusal {
    /// Stable and suitable for programs and labels.
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
        Self {
            items: Budget::with_gauge(items_max as u64, metrics::admitted),
            bytes: Budget::with_gauge(bytes_max as u64, metrics::admitted_bytes),
        }
    }

    /// Takes room for `items` chips of `bytes` bytes together, all or nothing.
    ///
    /// # Errors
    /// Fails immediately when either budget would be exceeded.
    pub fn try_admit(&self, items: usize, bytes: usize) -> Result<Admitted, Refusal> {
        let items = self.items.take(items as u64).map_err(|full| Refusal::Items { limit: full.limit })?;
        let bytes = self.bytes.take(bytes as u64).map_err(|full| Refusal::Bytes { limit: full.limit })?;
        Ok(Admitted { _items: items, _bytes: bytes })
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
