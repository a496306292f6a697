//! Removes what nobody wants any more from the database, in small transactions.

use crate::gallery::store::StoreError;
use crate::postgres::{Database, Transaction, execute, query};

/// Rows that one statement removes.
const ROWS: i64 = 2_000;
/// Commits whose removals a copy can follow; a copy that is further behind is loaded anew.
const COMMITS_KEPT: i64 = 100_000;

/// # Errors
/// The database cannot be reached.
pub async fn sweep(database: &Database) -> Result<(), StoreError> {
    let own = database.clone();
    database
        .run(move |_| async move {
            while sweep_some(&own).await? {}
            forget_removals(&own).await
        })
        .await
}

/// Removes rows of a gallery that has no name any more; returns whether there may be more. What another server sweeps
/// is passed over.
async fn sweep_some(database: &Database) -> Result<bool, StoreError> {
    let transaction = Transaction::begin(database, "begin").await?;
    let unwanted = "select id from galleries where name is null and expires_at <= now()
        order by id limit 1 for update skip locked";
    let rows = query!(transaction, unwanted)?;
    let Some(row) = rows.first() else {
        transaction.roll_back().await?;
        return Ok(false);
    };
    let id: i64 = row.get(0);
    let mut removed = 0;
    for table in ["entries", "vectors", "chips", "removed", "moves"] {
        let sql = format!(
            "delete from {table} where ctid = any (array (select ctid from {table} where gallery = $1 limit $2))"
        );
        removed += execute!(transaction, &sql, id => INT8, ROWS => INT8)?;
    }
    if removed == 0 {
        execute!(transaction, "delete from galleries where id = $1", id => INT8)?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// Forgets removals that are so old that no copy should need them.
async fn forget_removals(database: &Database) -> Result<(), StoreError> {
    let transaction = Transaction::begin(database, "begin").await?;
    let sql = "update galleries set removed_from = commit - $1 where commit - removed_from > 2 * $1
        returning id, removed_from";
    for row in query!(transaction, sql, COMMITS_KEPT => INT8)? {
        let (id, from): (i64, i64) = (row.get(0), row.get(1));
        let sql = "delete from removed where gallery = $1 and changed <= $2";
        execute!(transaction, sql, id => INT8, from => INT8)?;
    }
    Ok(transaction.commit().await?)
}
