//! Errors of catalogs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::name::GalleryName;
use crate::cancellation::Stopped;
use crate::gallery::store::StoreError;
use crate::postgres::Unreachable;
use crate::reason::Reason;

/// Why an operation on a catalog failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("there is no gallery \"{0}\"")]
    NotFound(GalleryName),
    #[error("there is a gallery \"{0}\" already")]
    Exists(GalleryName),
    #[error("the tenant has {limit} galleries, which is the limit")]
    GalleriesFull { limit: usize },
    #[error("imports are holding {limit} bytes of records that have not come whole, which is the limit")]
    ImportsFull { limit: u64 },
    #[error("gallery \"{name}\" is not served: {cause}; {}", cause.way_out)]
    Refused { name: GalleryName, cause: Arc<Unserved> },
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Commits are numbered anew when a gallery is made again or its database is put back to an earlier state.
    #[error("the gallery is at commit {commit}, the request needs commit {min_commit}")]
    CommitUnknown { min_commit: u64, commit: u64 },
    /// A copy of a shared gallery, for a call that may not read an older one.
    #[error(
        "this server's copy of the gallery is older than {:.3} s and could not be brought up to date in that time{}",
        limit.as_secs_f64(),
        cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default()
    )]
    Stale { limit: Duration, cause: Option<StoreError> },
    #[error("the disk of the galleries has no room left")]
    DiskFull,
    #[error("the data directory cannot be used: {0}")]
    Io(Arc<io::Error>),
    /// It panicked.
    #[error("reading the gallery failed")]
    Failed,
}

/// Why an existing gallery is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Unserved {
    pub kind: UnservedKind,
    pub cause: String,
    /// What its owner can do about it.
    pub way_out: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnservedKind {
    /// A later version of the program wrote it.
    Newer,
    /// The stored data differs from what was written.
    Damaged,
    /// The stored data cannot be reached.
    Unreadable,
    /// Other servers are to serve it.
    NotHeld,
    /// There is no memory for it.
    TooLarge,
}

impl From<Unreachable> for CatalogError {
    fn from(cause: Unreachable) -> Self {
        Self::Store(cause.into())
    }
}

impl CatalogError {
    /// Stable and suitable for programs and labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound(_) => Reason::GalleryNotFound,
            Self::Exists(_) => Reason::GalleryExists,
            Self::GalleriesFull { .. } => Reason::GalleriesQuota,
            Self::ImportsFull { .. } => Reason::ImportingTooMuch,
            Self::Refused { cause, .. } => match cause.kind {
                UnservedKind::Damaged => Reason::GalleryDamaged,
                UnservedKind::Newer | UnservedKind::Unreadable => Reason::GalleryRefused,
                UnservedKind::NotHeld => Reason::GalleryNotHeld,
                UnservedKind::TooLarge => Reason::GalleryTooLarge,
            },
            Self::Store(cause) => cause.reason(),
            Self::CommitUnknown { .. } => Reason::CommitUnknown,
            Self::Stale { .. } => Reason::GalleryStale,
            Self::DiskFull => Reason::DiskFull,
            Self::Io(_) => Reason::DataDirectoryUnusable,
            Self::Failed => Reason::GalleryFailed,
        }
    }
}

impl From<Stopped> for CatalogError {
    fn from(cause: Stopped) -> Self {
        Self::Store(cause.into())
    }
}
