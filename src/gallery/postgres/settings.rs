//! How a server takes part in the galleries of a database.

use std::time::Duration;

/// The database, and what this server does with its copies.
#[derive(Clone, Debug)]
pub struct PostgresSettings {
    /// A `postgres://` URL.
    pub url: String,
    /// A copy that is older is not read by a call that asks for a local one.
    pub local_age_max: Duration,
}
