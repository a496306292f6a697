//! The events of a job, numbered without gaps.
//!
//! An event has one type for each stage that adds something to it:
//!
//! 1. `train::FitEvent` is what the training loop knows: losses by term, rankings as paths. It does not know about
//!    jobs.
//! 2. [`RunEvent`] is what a run reports, made from that by `event_mapper`: with totals, and bounded. It passes through
//!    the pipe, into the store and to the callers unchanged.
//! 3. `ChildMessage` is a line of the pipe: a `RunEvent`, or a message about the process itself (heartbeat, how it
//!    ends).
//! 4. [`EventPayload`] is a `RunEvent` or a change of the job's state, which only the server knows.
//! 5. `EventRecord` (`record`) is its stored form; a job has a record type of its own, since its state is an enum and
//!    its names are checked.
//! 6. `wire::TrainEvent` is the contract with callers.

use super::job::Job;
use super::report::RunEvent;
use crate::gallery::Time;

/// One event of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent {
    /// Counts from 1.
    pub number: u64,
    pub attempt: u32,
    pub occurred_at: Time,
    pub payload: EventPayload,
}

#[derive(Clone, Debug, PartialEq)]
pub enum EventPayload {
    /// The job after a change of its state.
    State(Box<Job>),
    Run(RunEvent),
}
