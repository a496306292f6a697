//! The states of a job and every change between them.

use super::failure::Failure;
use crate::embedding::ModelDigest;

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Waits for a place among the jobs that train.
    Queued,
    /// Its process is under way.
    Running,
    /// Its process was asked to stop.
    Cancelling,
    Cancelled,
    Failed(Failure),
    Finished {
        model: ModelDigest,
    },
    /// The server went away while it ran; the next start of the server resumes it.
    Interrupted,
}

/// What can happen to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its process is started.
    Start,
    /// Somebody asks for its end.
    Cancel,
    /// Somebody asks it to go on.
    Resume,
    /// The server starts it anew by itself.
    Retry,
    /// Its process is gone without having finished, as it was asked to.
    Stop,
    /// It cannot go on.
    Fail(Failure),
    /// It has made its model.
    Finish { model: ModelDigest },
}

/// A change that a job in this state cannot make.
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
    /// Whoever cancels a job twice gets what he wants; a process that finishes while it is being cancelled has
    /// finished; what it dies of then is no failure.
    ///
    /// # Errors
    /// The change is none that this state can make.
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

    /// Whether nothing happens to it any more unless somebody resumes it.
    pub fn is_ended(&self) -> bool {
        match self {
            Self::Cancelled | Self::Failed(_) | Self::Finished { .. } => true,
            Self::Queued | Self::Running | Self::Cancelling | Self::Interrupted => false,
        }
    }

    /// As in metrics and page filters.
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

    /// What this state says to a change that it cannot make.
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

/// A state without what it carries.
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
