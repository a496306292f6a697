//! The states of a job and every change between them.

use super::failure::Failure;
use crate::embedding::ModelDigest;

/// The state of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Waits for a slot.
    Queued,
    /// Its process is running.
    Running,
    /// Its process was asked to stop.
    Cancelling,
    Cancelled,
    Failed(Failure),
    Finished {
        model: ModelDigest,
    },
    /// The server stopped while it ran; the next start of the server resumes it.
    Interrupted,
}

/// The possible changes of a job's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its process is started.
    Start,
    /// A caller asks to stop it.
    Cancel,
    /// A caller asks to resume it.
    Resume,
    /// The server restarts it automatically.
    Retry,
    /// Its process has stopped without finishing, as requested.
    Stop,
    /// It has failed.
    Fail(Failure),
    /// It has made its model.
    Finish { model: ModelDigest },
}

/// A change that the job's state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the job has finished")]
    Finished,
    #[error("the job has failed")]
    Failed,
    #[error("the job was cancelled")]
    Cancelled,
    #[error("the job is being cancelled")]
    Cancelling,
    #[error("the job waits or runs")]
    Active,
}

impl JobState {
    /// The state after a change.
    ///
    /// Cancelling a job twice succeeds. A process that finishes while it is being cancelled has finished; if it fails
    /// then, that does not count as a failure.
    ///
    /// # Errors
    /// The state does not allow the change.
    pub fn after(&self, change: Change) -> Result<Self, Refused> {
        use Change::{Cancel, Fail, Finish, Resume, Retry, Start, Stop};
        Ok(match (self, change) {
            (Self::Queued, Start) => Self::Running,
            (Self::Queued | Self::Interrupted | Self::Cancelled, Cancel) => Self::Cancelled,
            (Self::Running | Self::Cancelling, Cancel) => Self::Cancelling,
            (Self::Cancelled | Self::Failed(_) | Self::Interrupted, Resume) => Self::Queued,
            (Self::Running | Self::Interrupted, Retry) => Self::Queued,
            (Self::Running, Stop) => Self::Interrupted,
            (Self::Running | Self::Interrupted, Fail(failure)) => Self::Failed(failure),
            (Self::Cancelling, Stop | Retry | Fail(_)) => Self::Cancelled,
            (Self::Running | Self::Cancelling, Finish { model }) => Self::Finished { model },
            (state, _) => return Err(state.refusal()),
        })
    }

    /// Whether it stays as it is unless it is resumed.
    pub fn is_ended(&self) -> bool {
        match self {
            Self::Cancelled | Self::Failed(_) | Self::Finished { .. } => true,
            Self::Queued | Self::Running | Self::Cancelling | Self::Interrupted => false,
        }
    }

    /// Whether it has a process, or had one when its server stopped.
    pub fn has_been_run(&self) -> bool {
        matches!(self, Self::Running | Self::Cancelling | Self::Interrupted)
    }

    /// As used in metrics and page filters.
    pub fn name(&self) -> StateName {
        match self {
            Self::Queued => StateName::Queued,
            Self::Running => StateName::Running,
            Self::Cancelling => StateName::Cancelling,
            Self::Cancelled => StateName::Cancelled,
            Self::Failed(_) => StateName::Failed,
            Self::Finished { .. } => StateName::Finished,
            Self::Interrupted => StateName::Interrupted,
        }
    }

    /// The error for a change that this state does not allow.
    pub fn refusal(&self) -> Refused {
        match self {
            Self::Queued | Self::Running | Self::Interrupted => Refused::Active,
            Self::Cancelling => Refused::Cancelling,
            Self::Cancelled => Refused::Cancelled,
            Self::Failed(_) => Refused::Failed,
            Self::Finished { .. } => Refused::Finished,
        }
    }
}

/// A state without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateName {
    Queued,
    Running,
    Cancelling,
    Cancelled,
    Failed,
    Finished,
    Interrupted,
}

impl StateName {
    pub const EVERY: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Cancelling,
        Self::Cancelled,
        Self::Failed,
        Self::Finished,
        Self::Interrupted,
    ];

    /// In lower case, for metrics and logs.
    pub fn text(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::FailureReason;

    #[test]
    fn every_change_of_every_state_is_in_the_table() {
        use StateName::{Cancelled, Cancelling, Failed, Finished, Interrupted, Queued, Running};
        let failure = || Failure::new(FailureReason::DiskFull, "full");
        let model = ModelDigest::new([1; 32]);
        let states = [
            JobState::Queued,
            JobState::Running,
            JobState::Cancelling,
            JobState::Cancelled,
            JobState::Failed(failure()),
            JobState::Finished { model },
            JobState::Interrupted,
        ];
        let changes = [
            Change::Start,
            Change::Cancel,
            Change::Resume,
            Change::Retry,
            Change::Stop,
            Change::Fail(failure()),
            Change::Finish { model },
        ];
        let table = [
            // Start, Cancel, Resume, Retry, Stop, Fail, Finish
            [Some(Running), Some(Cancelled), None, None, None, None, None],
            [None, Some(Cancelling), None, Some(Queued), Some(Interrupted), Some(Failed), Some(Finished)],
            [None, Some(Cancelling), None, Some(Cancelled), Some(Cancelled), Some(Cancelled), Some(Finished)],
            [None, Some(Cancelled), Some(Queued), None, None, None, None],
            [None, None, Some(Queued), None, None, None, None],
            [None; 7],
            [None, Some(Cancelled), Some(Queued), Some(Queued), None, Some(Failed), None],
        ];
        for (state, row) in states.iter().zip(table) {
            for (change, expected) in changes.iter().zip(row) {
                let found = state.after(change.clone()).ok().map(|after| after.name());
                assert_eq!(found, expected, "{state:?} after {change:?}");
            }
        }
    }
}
