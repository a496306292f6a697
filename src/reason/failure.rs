//! The reasons of training jobs that fail.

use serde::{Deserialize, Serialize};

use super::named;

/// What is known of each reason.
struct Facts {
    is_passing: bool,
}

macro_rules! facts {
    (passing) => {
        Facts { is_passing: true }
    };
    (lasting) => {
        Facts { is_passing: false }
    };
}

impl FailureReason {
    /// The reason of this name, as an earlier release may have stored it.
    pub fn named(name: &str) -> Option<Self> {
        Self::EVERY.iter().map(|(_, reason)| *reason).find(|reason| reason.name() == name)
    }

    /// Whether the server starts another attempt by itself. What the next attempt would meet again is left to somebody
    /// who can change it and resume the job.
    pub fn is_passing(self) -> bool {
        self.facts().is_passing
    }
}

named! {
    /// Why an attempt of a training job failed: `TrainingJob.failure_reason`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
    pub enum FailureReason {
        "Training jobs that failed":
            ConfigInvalid "CONFIG_INVALID" (lasting)
                "The configuration starts no run on this data, device or model.";
            DataMissing "DATA_MISSING" (lasting)
                "Something to learn from or to start with is absent or cannot be read.";
            OutOfMemory "OUT_OF_MEMORY" (lasting)
                "An allocation failed, or the kernel killed the process for its memory.";
            DiskFull "DISK_FULL" (lasting)
                "A checkpoint or model could not be written: the disk is full.";
            Diverged "DIVERGED" (lasting)
                "A loss or weight is no longer finite.";
            FolderInUse "FOLDER_IN_USE" (passing)
                "Another process still works in the job's folder.";
            KilledBySignal "KILLED_BY_SIGNAL" (passing)
                "The process was killed by a signal that the server did not send.";
            Hung "HUNG" (passing)
                "The process has been silent for too long.";
            Crashed "CRASHED" (passing)
                "The process ended without saying why.";
            NotStarted "NOT_STARTED" (passing)
                "The process could not be started.";
            ServerLost "SERVER_LOST" (passing)
                "The server stopped while the job ran, more often than it may.";
            ModelNotKept "MODEL_NOT_KEPT" (lasting)
                "The model is made, but the server has no room for it among its models.";
    }
}
