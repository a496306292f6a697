//! One database with its tables, as the servers that share it know it.

use super::failure::Unreachable;
use super::link::Database;
use super::schema::{Tenancy, migrate};
use super::skew::observe_skew;

/// A database whose tables this program may use. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub database: Database,
    /// Tells these tables from all others.
    pub id: String,
    /// Tells this server, from its start to its end, from the others.
    pub server: String,
}

impl Cluster {
    /// Connects to the database of a `postgres://` URL, and makes its tables if need be.
    ///
    /// # Errors
    /// The database cannot be reached, refuses its user, or its tables are not for this program.
    pub async fn open(url: &str, tenancy: Tenancy) -> Result<Self, Unreachable> {
        let database = Database::open(url).await?;
        let id = database.run(move |connection| migrate(connection, tenancy)).await?;
        observe_skew(&database).await?;
        Ok(Self { database, id, server: hex::encode(rand::random::<[u8; 16]>()) })
    }
}
