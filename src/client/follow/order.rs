//! Tracks which event of a job comes next: no event is returned twice, and no gap goes unnoticed.

/// Counts the events of a job as they arrive over consecutive streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventOrder {
    /// `None` before the first event, if that may be any.
    next: Option<u64>,
}

/// How an event relates to the previous ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    Next,
    /// It was received before.
    Again,
    /// Events are missing before it.
    Gap {
        expected: u64,
    },
}

impl EventOrder {
    /// The next event is `number`, which counts from 1.
    pub fn from(number: u64) -> Self {
        Self { next: Some(number.max(1)) }
    }

    /// The next event is the first one received.
    pub fn from_any() -> Self {
        Self { next: None }
    }

    /// The event to request.
    pub fn next(self) -> u64 {
        self.next.unwrap_or(1)
    }

    /// Records the arrival of the event `number`; a gap changes nothing.
    pub fn arrive(&mut self, number: u64) -> Arrival {
        let expected = self.next.unwrap_or(number);
        if number > expected {
            return Arrival::Gap { expected };
        }
        if number < expected {
            return Arrival::Again;
        }
        self.next = Some(number + 1);
        Arrival::Next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Streams begin at or before the requested event, and break anywhere.
        #[test]
        fn each_event_is_next_once_however_often_the_stream_breaks(
            streams in prop::collection::vec((0_u64..6, 0_u64..12), 1..20),
        ) {
            let mut order = EventOrder::from(1);
            let mut taken = Vec::new();
            for (replayed, length) in streams {
                let begin = order.next().saturating_sub(replayed).max(1);
                for number in begin..begin + length {
                    match order.arrive(number) {
                        Arrival::Next => taken.push(number),
                        Arrival::Again => prop_assert!(taken.contains(&number)),
                        Arrival::Gap { .. } => prop_assert!(false, "a gap before {number}"),
                    }
                }
            }
            prop_assert_eq!(&taken, &(1..order.next()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_gap_is_told_and_changes_nothing() {
        let mut order = EventOrder::from(0);
        assert_eq!(order.arrive(1), Arrival::Next);
        assert_eq!(order.arrive(3), Arrival::Gap { expected: 2 });
        assert_eq!((order.next(), order.arrive(2), order.arrive(3)), (2, Arrival::Next, Arrival::Next));
    }

    #[test]
    fn a_watcher_that_takes_any_beginning_counts_from_there() {
        let mut order = EventOrder::from_any();
        assert_eq!((order.next(), order.arrive(40)), (1, Arrival::Next));
        assert_eq!((order.next(), order.arrive(42)), (41, Arrival::Gap { expected: 41 }));
    }
}
