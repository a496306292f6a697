//! Why a job failed: a stable reason, a text for people, and whether a retry can help.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::durable::is_full;
use crate::reason::FailureReason;

/// Why an attempt, and perhaps its job, failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub reason: FailureReason,
    /// One line for people.
    pub message: String,
}

impl Failure {
    pub fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The reason for a failed read or write: a full disk, or else `otherwise`.
pub fn io_reason(cause: &io::Error, otherwise: FailureReason) -> FailureReason {
    if is_full(cause) { FailureReason::DiskFull } else { otherwise }
}
