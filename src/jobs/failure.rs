//! Why a job cannot go on: a stable reason, a text for people, and whether trying again can help.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::durable::is_full;

/// Why an attempt, and with it perhaps its job, came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub reason: Reason,
    /// One line for people.
    pub message: String,
}

/// Stable, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// The configuration starts no run on this data, device or model.
    ConfigInvalid,
    /// Something to learn from or to start with is absent or cannot be read.
    DataMissing,
    /// An allocation failed, or the kernel killed the process for its memory.
    OutOfMemory,
    /// A checkpoint or model could not be written.
    DiskFull,
    /// A loss or weight is no number any more.
    Diverged,
    /// Another process still works in the job's folder.
    FolderInUse,
    /// The process was killed by a signal that the server did not send.
    KilledBySignal,
    /// Nothing was heard of the process for too long.
    Hung,
    /// The process ended without saying why.
    Crashed,
    /// The process could not be started.
    NotStarted,
    /// The server stopped while the job ran, more often than it may.
    ServerLost,
    /// The model is made, but the server has no room for it among its models.
    ModelNotKept,
}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Reason {
    const EVERY: [Self; 12] = [
        Self::ConfigInvalid,
        Self::DataMissing,
        Self::OutOfMemory,
        Self::DiskFull,
        Self::Diverged,
        Self::FolderInUse,
        Self::KilledBySignal,
        Self::Hung,
        Self::Crashed,
        Self::NotStarted,
        Self::ServerLost,
        Self::ModelNotKept,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::ConfigInvalid => "CONFIG_INVALID",
            Self::DataMissing => "DATA_MISSING",
            Self::OutOfMemory => "OUT_OF_MEMORY",
            Self::DiskFull => "DISK_FULL",
            Self::Diverged => "DIVERGED",
            Self::FolderInUse => "FOLDER_IN_USE",
            Self::KilledBySignal => "KILLED_BY_SIGNAL",
            Self::Hung => "HUNG",
            Self::Crashed => "CRASHED",
            Self::NotStarted => "NOT_STARTED",
            Self::ServerLost => "SERVER_LOST",
            Self::ModelNotKept => "MODEL_NOT_KEPT",
        }
    }

    /// The reason of this name, as an earlier release may have stored it.
    pub fn named(name: &str) -> Option<Self> {
        Self::EVERY.into_iter().find(|reason| reason.name() == name)
    }

    /// That of what could not be written or read: a full disk, or else `otherwise`.
    pub fn of_io(cause: &io::Error, otherwise: Self) -> Self {
        if is_full(cause) { Self::DiskFull } else { otherwise }
    }

    /// Whether the server starts another attempt by itself. What the next attempt would meet again is left to whoever
    /// can change it; he resumes the job.
    pub fn is_passing(self) -> bool {
        match self {
            Self::KilledBySignal
            | Self::Hung
            | Self::Crashed
            | Self::FolderInUse
            | Self::NotStarted
            | Self::ServerLost => true,
            Self::ConfigInvalid
            | Self::DataMissing
            | Self::OutOfMemory
            | Self::DiskFull
            | Self::Diverged
            | Self::ModelNotKept => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_and_stored_by_the_same_name() {
        for reason in Reason::EVERY {
            assert_eq!(Reason::named(reason.name()), Some(reason));
            assert_eq!(serde_json::to_value(reason).expect("a text"), reason.name());
        }
    }
}
