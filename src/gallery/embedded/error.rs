//! How callers are told about errors of redb and damaged records.

use crate::durable::DatabaseError;
use crate::gallery::record::Damage;
use crate::gallery::store::StoreError;

impl From<DatabaseError> for StoreError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Closed => Self::Closed,
            DatabaseError::Sealed(failure) => Self::ReadOnly { reason: failure.reason },
            DatabaseError::Damaged(_) | DatabaseError::Io(_) => Self::Unreadable(error.to_string()),
        }
    }
}

impl From<Damage> for StoreError {
    fn from(damage: Damage) -> Self {
        Self::Unreadable(damage.to_string())
    }
}
