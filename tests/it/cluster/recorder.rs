//! What callers ask and are answered, in the order in which it was seen.

use std::sync::{Mutex, PoisonError};

use super::linearizability::{Event, Object};

/// The history of one object, written by all of its callers.
pub struct Recorder<O: Object>(Mutex<Recorded<O>>);

struct Recorded<O: Object> {
    moment: usize,
    events: Vec<Event<O>>,
}

impl<O: Object> Recorder<O> {
    /// Returns the number of a call that begins.
    pub fn begin(&self, call: O::Call) -> usize {
        self.record(|recorded| {
            recorded.events.push(Event { call, begun: recorded.moment, answered: None });
            recorded.events.len() - 1
        })
    }

    pub fn answer(&self, number: usize, answer: O::Answer) {
        self.record(|recorded| recorded.events[number].answered = Some((recorded.moment, answer)));
    }

    /// All calls, in the order of their beginnings.
    pub fn into_events(self) -> Vec<Event<O>> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).events
    }

    fn record<T>(&self, record: impl FnOnce(&mut Recorded<O>) -> T) -> T {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.moment += 1;
        record(&mut recorded)
    }
}

impl<O: Object> Default for Recorder<O> {
    fn default() -> Self {
        Self(Mutex::new(Recorded { moment: 0, events: vec![] }))
    }
}
