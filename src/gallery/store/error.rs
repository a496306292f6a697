//! Errors of stores.

use crate::cancellation::Stopped;
use crate::embedding::ModelDigest;
use crate::gallery::entry::EntryId;
use crate::postgres::Unreachable;
use crate::reason::Reason;

/// An operation that was not carried out. Unless the error says otherwise, nothing has changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StoreError {
    #[error("entry \"{0}\" exists with other content")]
    AlreadyExists(EntryId),
    #[error("the embedding is of model {found}, the gallery of model {expected}")]
    Model { expected: ModelDigest, found: ModelDigest },
    #[error("the embedding has {found} numbers, those of the gallery have {expected}")]
    Dimension { expected: usize, found: usize },
    #[error("the gallery has {limit} entries, which is the limit")]
    EntriesFull { limit: u64 },
    #[error("the galleries of the tenant would exceed {limit} bytes, which is the limit")]
    BytesFull { limit: u64 },
    /// Writes are refused until there is room again if the cause is a full disk, else until the gallery is opened
    /// again. Reads continue.
    #[error("the gallery is read-only: {reason}")]
    ReadOnly { reason: String },
    /// It is shutting down or was deleted.
    #[error("the gallery is closed")]
    Closed,
    /// The database that servers share cannot be reached. A write may have been committed all the same; asking again is
    /// safe.
    #[error("the database of the galleries cannot be used: {0}")]
    Unreachable(String),
    /// This server's copy of a shared gallery is loaded anew.
    #[error("this server's copy of the gallery is out of date and is being loaded")]
    Outdated,
    /// The requested data cannot be read.
    #[error("the gallery cannot be read: {0}")]
    Unreadable(String),
    /// The caller no longer waits for the result.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<Unreachable> for StoreError {
    fn from(Unreachable(cause): Unreachable) -> Self {
        Self::Unreachable(cause)
    }
}

impl StoreError {
    /// Whether only this operation is at fault, so that others in its group continue.
    pub(in crate::gallery) fn is_refusal(&self) -> bool {
        match self {
            Self::AlreadyExists(_)
            | Self::Model { .. }
            | Self::Dimension { .. }
            | Self::EntriesFull { .. }
            | Self::BytesFull { .. } => true,
            Self::ReadOnly { .. }
            | Self::Closed
            | Self::Unreachable(_)
            | Self::Outdated
            | Self::Unreadable(_)
            | Self::Stopped(_) => false,
        }
    }

    /// Stable and suitable for programs and labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::AlreadyExists(_) => Reason::EntryExists,
            Self::Model { .. } => Reason::ModelMismatch,
            Self::Dimension { .. } => Reason::DimensionMismatch,
            Self::EntriesFull { .. } => Reason::EntriesQuota,
            Self::BytesFull { .. } => Reason::BytesQuota,
            Self::ReadOnly { .. } => Reason::GalleryReadOnly,
            Self::Closed => Reason::GalleryClosed,
            Self::Unreachable(_) => Reason::DatabaseUnreachable,
            Self::Outdated => Reason::GalleryLoading,
            Self::Unreadable(_) => Reason::GalleryUnreadable,
            Self::Stopped(stopped) => stopped.reason(),
        }
    }
}
