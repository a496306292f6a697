//! The states of a job, as clients see them.

use crate::wire::JobState;

/// A state in lower case, as on command lines and pages.
pub fn state_name(state: JobState) -> String {
    state.as_str_name().trim_start_matches("JOB_STATE_").to_lowercase()
}

/// Whether a job in this state stays in it unless it is resumed.
pub fn is_ended(state: JobState) -> bool {
    match state {
        JobState::Cancelled | JobState::Failed | JobState::Finished => true,
        JobState::Unspecified
        | JobState::Queued
        | JobState::Running
        | JobState::Cancelling
        | JobState::Interrupted => false,
    }
}
