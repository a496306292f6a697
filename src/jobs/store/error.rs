//! Errors of the job store.

use crate::durable::DatabaseError;
use crate::jobs::job::JobId;
use crate::jobs::record::RecordError;
use crate::postgres::Unreachable;

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the job store has schema {found}, this program knows {known}")]
    Newer { found: u64, known: u64 },
    #[error("the job store is damaged: {0}")]
    Damaged(String),
    /// Other jobs can be used.
    #[error("{id} is damaged: {cause}; what is left of it is kept")]
    DamagedJob { id: JobId, cause: String },
    /// Temporarily; nothing has changed.
    #[error("the job store cannot be used now: {0}")]
    Unavailable(Trouble),
    /// The change will be applied once, when the store can be used again.
    #[error("the job store cannot be written now: {0}; the request takes effect once it can")]
    Pending(Trouble),
    /// The database that servers share. What was asked of it may have been done all the same.
    #[error("the database of the jobs cannot be used: {0}")]
    Unreachable(String),
}

/// What prevents the store from being used, for now.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Trouble {
    cause: String,
    /// Whether its disk is full. Then it can still be read.
    pub is_full: bool,
}

/// Why a job was not created.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error("the request id started {0} with another configuration")]
    OtherOrder(JobId),
    #[error("the tenant has {max} jobs already")]
    Full { max: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a job was not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E> {
    /// Or, if the change was to be made under a hold, the job is no longer held.
    #[error("there is no such job")]
    Unknown,
    #[error("{0}")]
    Refused(E),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<DatabaseError> for StoreError {
    fn from(cause: DatabaseError) -> Self {
        match cause {
            DatabaseError::Damaged(cause) => Self::Damaged(cause),
            DatabaseError::Io(_) | DatabaseError::Sealed(_) | DatabaseError::Closed => {
                Self::Unavailable(Trouble { is_full: cause.is_full(), cause: cause.to_string() })
            }
        }
    }
}

impl StoreError {
    pub(super) fn of_job(id: JobId) -> impl Fn(RecordError) -> Self {
        move |cause| Self::DamagedJob { id, cause: cause.to_string() }
    }

    pub(super) fn pending(self) -> Self {
        Self::Pending(match self {
            Self::Unavailable(trouble) | Self::Pending(trouble) => trouble,
            other => Trouble { cause: other.to_string(), is_full: false },
        })
    }

    /// Whether it is due to a lack of space, which may become available again.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Unavailable(trouble) | Self::Pending(trouble) => trouble.is_full,
            Self::Newer { .. } | Self::Damaged(_) | Self::DamagedJob { .. } | Self::Unreachable(_) => false,
        }
    }
}

impl From<Unreachable> for StoreError {
    fn from(Unreachable(cause): Unreachable) -> Self {
        Self::Unreachable(cause)
    }
}

impl From<Unreachable> for AddError {
    fn from(cause: Unreachable) -> Self {
        Self::Store(cause.into())
    }
}

impl<E> From<Unreachable> for UpdateError<E> {
    fn from(cause: Unreachable) -> Self {
        Self::Store(cause.into())
    }
}

impl From<DatabaseError> for AddError {
    fn from(cause: DatabaseError) -> Self {
        Self::Store(cause.into())
    }
}

impl<E> From<DatabaseError> for UpdateError<E> {
    fn from(cause: DatabaseError) -> Self {
        Self::Store(cause.into())
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(cause: $error) -> Self {
                DatabaseError::from(cause).into()
            }
        })*
    };
}
from_redb!(redb::StorageError, redb::TableError);
