//! A training job: its owner, its specification, and its progress.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::report::{DeliveredCheckpoint, Progress, Start};
use super::state::JobState;
use crate::evaluate::Evaluation;
use crate::gallery::{GalleryName, Time};

/// Identifies a job; later jobs have higher numbers, which are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);

/// The text is not of the form `job-NUMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job id is \"job-\" and a number")]
pub struct JobIdError;

impl JobId {
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}", self.0)
    }
}

impl FromStr for JobId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<Self, JobIdError> {
        let id = text.strip_prefix("job-").and_then(|number| number.parse().ok()).map(Self);
        // Every job has exactly one name: no sign, no leading zeros.
        id.filter(|id| id.to_string() == text).ok_or(JobIdError)
    }
}

/// A job of a tenant; the key of everything that is stored for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey {
    pub tenant: Arc<str>,
    pub id: JobId,
}

/// What was submitted; it never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobSpec {
    /// The whole configuration, valid when it was submitted.
    pub config_toml: String,
    /// The gallery whose chips are the training data, in place of a folder.
    pub gallery: Option<GalleryName>,
    pub display_name: String,
    /// Makes the request idempotent.
    pub request_id: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub key: JobKey,
    pub order: JobSpec,
    pub state: JobState,
    /// Counts from 1.
    pub attempt: u32,
    /// Consecutive attempts that ended without a checkpoint further than the ones before.
    pub fruitless: u32,
    /// Steps in the furthest checkpoint that was reported.
    pub saved_steps: u64,
    pub created_at: Time,
    /// Of the first attempt.
    pub started_at: Option<Time>,
    pub ended_at: Option<Time>,
    pub progress: Option<Progress>,
    /// Of the last epoch that was evaluated.
    pub evaluations: Vec<Evaluation>,
    /// Of the last attempt that began before the first step.
    pub start: Option<Start>,
    /// Of the last attempt.
    pub delivered: Option<DeliveredCheckpoint>,
    /// Number of the last event.
    pub last_event: u64,
}

impl Job {
    pub fn new(key: JobKey, order: JobSpec, now: Time) -> Self {
        Self {
            key,
            order,
            state: JobState::Queued,
            attempt: 1,
            fruitless: 0,
            saved_steps: 0,
            created_at: now,
            started_at: None,
            ended_at: None,
            progress: None,
            evaluations: Vec::new(),
            start: None,
            delivered: None,
            last_event: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_one_name() {
        assert_eq!("job-7".parse(), Ok(JobId::new(7)));
        for text in
            ["", "7", "job-", "job-07", "job-+7", "job--7", "job-7 ", "JOB-7", "job-99999999999999999999"]
        {
            assert_eq!(text.parse::<JobId>(), Err(JobIdError), "{text}");
        }
    }
}
