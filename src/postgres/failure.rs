//! Errors of the database: one line each, with the cause as a metric names it.

use std::error::Error as _;

use tokio_postgres::error::{DbError, SqlState};

use crate::metrics;

/// The database cannot be used: it cannot be reached, refuses, or is not for this program. What was asked of it may have been
/// done all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the database of store.url cannot be used: {0}")]
pub struct Unreachable(pub String);

/// One line, without the URL, which may hold a password.
pub fn failed(error: &tokio_postgres::Error) -> Unreachable {
    let Some(told) = error.as_db_error() else {
        metrics::database_failed("connection");
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        return Unreachable(format!("{error}{cause}"));
    };
    let (cause, way_out) = known(told);
    metrics::database_failed(cause);
    let (message, code) = (told.message(), told.code().code());
    Unreachable(format!("{message} ({code}){way_out}"))
}

/// The cause for the metric, and what its owner can do where the message does not say it.
fn known(told: &DbError) -> (&'static str, &'static str) {
    let code = told.code();
    match *code {
        SqlState::LOCK_NOT_AVAILABLE => ("lock", "; another transaction holds what this one needs"),
        SqlState::QUERY_CANCELED | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => ("timeout", ""),
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => ("conflict", ""),
        SqlState::DISK_FULL => ("disk_full", "; reads go on, writes do once there is room again"),
        SqlState::READ_ONLY_SQL_TRANSACTION => ("read_only", "; it is a standby, or read-only for this user"),
        SqlState::INSUFFICIENT_PRIVILEGE | SqlState::INVALID_SCHEMA_NAME => {
            ("refused", "; the user of store.url must own the schema (docs/scaling.md)")
        }
        _ if code.code().starts_with("28") || code.code().starts_with("3D") => ("refused", ""),
        _ if code.code().starts_with("08") || code.code().starts_with("57P") => ("connection", ""),
        _ => ("other", ""),
    }
}
