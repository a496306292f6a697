//! Statements, none of them prepared.

/// Runs a statement with parameters of given types, without preparing it: a pooler may give each to another connection.
macro_rules! execute {
    ($client:expr, $sql:expr $(, $value:expr => $kind:ident)* $(,)?) => {
        $client
            .execute_typed($sql, &[$((&$value as &(dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type::$kind)),*])
            .await
            .map_err(|cause| $crate::postgres::failed(&cause))
    };
}

/// The rows that a statement with parameters of given types returns.
macro_rules! query {
    ($client:expr, $sql:expr $(, $value:expr => $kind:ident)* $(,)?) => {
        $client
            .query_typed($sql, &[$((&$value as &(dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type::$kind)),*])
            .await
            .map_err(|cause| $crate::postgres::failed(&cause))
    };
}

pub(crate) use {execute, query};
