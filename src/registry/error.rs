//! Errors of the registry.

use std::io;
use std::path::PathBuf;

use crate::cancellation::Stopped;
use crate::durable::{LockError, is_full};
use crate::embedding::ModelDigest;
use crate::postgres::{FolderError, Unreachable};
use crate::reason::Reason;
use crate::weights::quantize::SourceError;

/// Why a registry operation failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("there is no model {0}")]
    NotFound(ModelDigest),
    #[error("model {digest} is damaged: {reason}; delete it, or import it again")]
    Damaged { digest: ModelDigest, reason: String },
    #[error("model {0} is active: activate another one first")]
    Active(ModelDigest),
    #[error("the server keeps {limit} models already, which is its limit: delete one first")]
    TooMany { limit: usize },
    #[error("{bytes} bytes more beside {used} of other models exceed the limit of {limit}")]
    TooLarge { bytes: u64, used: u64, limit: u64 },
    #[error("{limit} models are being received already")]
    TooManyIncoming { limit: usize },
    #[error("{0}")]
    NoModel(String),
    #[error("model {digest} is not the one of its source: {cause}; quantize the source again")]
    OtherSource { digest: ModelDigest, cause: SourceError },
    #[error(
        "the calibrator that comes with model {model} is of model {of}: fit one for this model, or leave it out"
    )]
    OtherCalibrator { model: ModelDigest, of: ModelDigest },
    /// The caller no longer waits for what was being added.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Database(#[from] Unreachable),
    /// The job that made the model is another server's by now.
    #[error("another server has taken over the job that made the model")]
    Lost,
}

impl RegistryError {
    /// Stable and suitable for programs and labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound(_) => Reason::ModelNotFound,
            Self::Damaged { .. } => Reason::ModelDamaged,
            Self::Active(_) => Reason::ModelActive,
            Self::TooMany { .. } => Reason::TooManyModels,
            Self::TooLarge { .. } => Reason::ModelsTooLarge,
            Self::TooManyIncoming { .. } => Reason::TooManyImports,
            Self::NoModel(_) => Reason::ModelUnreadable,
            Self::OtherSource { .. } => Reason::ModelNotOfSource,
            Self::OtherCalibrator { .. } => Reason::CalibratorMismatch,
            Self::Stopped(stopped) => stopped.reason(),
            _ if self.is_full() => Reason::DiskFull,
            Self::Database(_) => Reason::DatabaseUnreachable,
            Self::Lock(_) | Self::Io { .. } | Self::Lost => Reason::ModelStoreFailed,
        }
    }

    /// Whether the cause is a full disk.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if is_full(cause))
    }
}

impl From<FolderError> for RegistryError {
    fn from(cause: FolderError) -> Self {
        match cause {
            FolderError::Io { path, cause } => Self::Io { path, cause },
            FolderError::Database(cause) => Self::Database(cause),
        }
    }
}
