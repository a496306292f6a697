//! How a server takes part in the galleries of a database.

use std::time::Duration;

use crate::holding::Holding;
use crate::postgres::Cluster;

/// The database, and what this server does with its copies.
#[derive(Clone, Debug)]
pub struct PostgresSettings {
    pub cluster: Cluster,
    /// A copy that is older is not read by a call that asks for a local one.
    pub local_age_max: Duration,
    /// Of which galleries this server has copies.
    pub holding: Holding,
    /// Memory that the copies may take together when one more is loaded.
    pub resident_bytes_max: u64,
}
