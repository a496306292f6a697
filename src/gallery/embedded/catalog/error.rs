//! How callers are told about errors of files.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::durable::{DatabaseError, LockError, is_full};
use crate::gallery::catalog::{CatalogError, DraftError, Unserved, UnservedKind};
use crate::gallery::embedded::builder::GalleryBuildError;
use crate::gallery::embedded::open::OpenError;

/// Why the data directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedOpenError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
}

impl From<OpenError> for Unserved {
    fn from(error: OpenError) -> Self {
        let (kind, way_out) = match error {
            OpenError::Newer { .. } => {
                (UnservedKind::Newer, "start the program that wrote it, or delete the gallery")
            }
            OpenError::Damaged { .. } => {
                (UnservedKind::Damaged, "restore the file from a copy and start again, or delete the gallery")
            }
            OpenError::Io { .. } => {
                (UnservedKind::Unreadable, "make the file readable and start again, or delete the gallery")
            }
        };
        Self { kind, cause: error.to_string(), way_out }
    }
}

impl From<io::Error> for CatalogError {
    fn from(cause: io::Error) -> Self {
        if is_full(&cause) { Self::DiskFull } else { Self::Io(Arc::new(cause)) }
    }
}

impl From<DatabaseError> for CatalogError {
    fn from(error: DatabaseError) -> Self {
        match error {
            full if full.is_full() => Self::DiskFull,
            DatabaseError::Io(cause) => cause.into(),
            other => io::Error::other(other.to_string()).into(),
        }
    }
}

impl From<GalleryBuildError> for DraftError {
    fn from(error: GalleryBuildError) -> Self {
        match error {
            GalleryBuildError::Twice(id) => Self::Twice(id),
            GalleryBuildError::Database(cause) => Self::Catalog(cause.into()),
        }
    }
}

impl From<GalleryBuildError> for CatalogError {
    fn from(error: GalleryBuildError) -> Self {
        match error {
            GalleryBuildError::Database(cause) => cause.into(),
            GalleryBuildError::Twice(_) => {
                io::Error::new(io::ErrorKind::InvalidData, error.to_string()).into()
            }
        }
    }
}
