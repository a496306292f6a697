//! Why a run ended early.

use std::path::PathBuf;

use super::checkpoint::CheckpointError;
use super::learn::LearnError;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    #[error("the run was stopped")]
    Stopped,
    #[error(transparent)]
    Learn(#[from] LearnError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{0}")]
    Data(String),
    #[error("epoch {0} has no batch")]
    EmptyEpoch(u32),
    /// The checkpoints hold the state before the divergence.
    #[error(
        "the run diverged at step {step} of epoch {epoch}: {what}; {}",
        .checkpoint.as_ref().map_or_else(
            || "there is no checkpoint from before".to_owned(),
            |path| format!("the last good checkpoint is {}", path.display()),
        )
    )]
    Diverged { epoch: u32, step: u64, what: String, checkpoint: Option<PathBuf> },
}
