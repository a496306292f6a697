//! Why an operation on an upload failed.

use std::io;
use std::path::{Path, PathBuf};

use super::UploadId;
use crate::cancellation::Stopped;
use crate::durable::{LockError, is_full};
use crate::reason::Reason;

/// Whose bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Server,
    Tenant,
}

#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("there is no upload {0}: it was never created, was imported or deleted, or expired")]
    NotFound(UploadId),
    #[error("another call is appending to upload {0}, or importing it")]
    Busy(UploadId),
    #[error("the chunk has no bytes")]
    EmptyChunk,
    #[error("the chunk begins at {offset}, and the upload has {size} bytes: go on from there")]
    Offset { offset: u64, size: u64 },
    #[error(
        "the upload holds other bytes from {offset} on, {size} in all: go on from there, or delete it and begin again"
    )]
    Differs { offset: u64, size: u64 },
    #[error("{} {limit} uploads, which is the limit: import or delete one, or let it expire", .scope.holds())]
    TooMany { scope: Scope, limit: u64 },
    #[error(
        "the chunk exceeds the limit of {limit} bytes of uploads that {} together: import or delete one, or let it expire",
        .scope.holds()
    )]
    TooLarge { scope: Scope, limit: u64 },
    #[error("what the upload stored can no longer be read: delete it, and send it again")]
    Damaged,
    #[error("the upload has the SHA-256 {found}: it is incomplete, or was changed on its way")]
    Sha256 { found: String },
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
}

impl Scope {
    /// In metadata of errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Tenant => "tenant",
        }
    }

    fn holds(self) -> &'static str {
        match self {
            Self::Server => "the server has",
            Self::Tenant => "the tenant has",
        }
    }
}

impl UploadError {
    /// Stable and suitable for programs and labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound(_) => Reason::UploadNotFound,
            Self::Busy(_) => Reason::UploadBusy,
            Self::EmptyChunk => Reason::UploadChunkEmpty,
            Self::Offset { .. } => Reason::UploadOffsetWrong,
            Self::Differs { .. } => Reason::UploadChunkDiffers,
            Self::TooMany { .. } => Reason::TooManyUploads,
            Self::TooLarge { .. } => Reason::UploadsTooLarge,
            Self::Damaged => Reason::UploadDamaged,
            Self::Sha256 { .. } => Reason::Sha256Mismatch,
            Self::Stopped(stopped) => stopped.reason(),
            Self::Io { cause, .. } if is_full(cause) => Reason::DiskFull,
            Self::Lock(_) | Self::Io { .. } => Reason::DataDirectoryUnusable,
        }
    }
}

/// Adds the path at which something failed.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> UploadError {
    move |cause| UploadError::Io { path: path.to_owned(), cause }
}
