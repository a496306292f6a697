//! How a server takes part in the galleries of a database.

use std::time::Duration;

/// The database, and what this server does with its copies.
#[derive(Clone, Debug)]
pub struct PostgresSettings {
    /// A `postgres://` URL.
    pub url: String,
    /// A copy that is older is not read by a call that asks for a local one.
    pub local_age_max: Duration,
    pub tenancy: Tenancy,
}

/// How servers tell tenants apart; all servers of a database do it in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    /// There are no keys, and one tenant.
    OneTenant,
    ByKeys,
}
