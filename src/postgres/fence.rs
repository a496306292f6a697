//! The right to write what a training job makes: it ends where another server has taken the job over.

use tokio_postgres::Client;

use super::failure::Unreachable;
use super::statement::query;

/// A job that a server holds, and the term in which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    pub job: i64,
    pub term: i64,
}

impl Fence {
    /// Whether the job is still held in this term. If so, nobody takes it over before the client's transaction ends.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn holds(self, client: &Client) -> Result<bool, Unreachable> {
        let sql = "select from jobs where id = $1 and term = $2 and holder is not null for share";
        Ok(!query!(client, sql, self.job => INT8, self.term => INT8)?.is_empty())
    }
}
