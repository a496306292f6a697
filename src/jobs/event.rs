//! What happens in a job, numbered without gaps.

use super::job::Job;
use super::report::{Evaluation, Progress, Rankings, Saved, Start};
use crate::gallery::Time;

/// One thing that happened in a job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent {
    /// Counts from 1.
    pub number: u64,
    pub attempt: u32,
    pub occurred_at: Time,
    pub what: EventPayload,
}

#[derive(Clone, Debug, PartialEq)]
pub enum EventPayload {
    /// The job after a change of its state.
    State(Box<Job>),
    Progress(Progress),
    Evaluated(Evaluation),
    Rankings(Rankings),
    CheckpointSaved(Saved),
    /// What the run starts from, before its first step.
    Started(Start),
    Log(String),
}
