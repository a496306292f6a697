//! Commits of a gallery: under the lock of its row, so that the numbers of commits are their order.

use std::fmt;
use std::time::Instant;

use futures_util::future::try_join5;
use tokio_postgres::Client;

use super::delta::{HEAD, Head};
use super::rows::{EntryColumns, insert_chips, insert_vectors};
use crate::gallery::embedded::{Delta, Journal, Known, sealed_about};
use crate::gallery::store::StoreError;
use crate::metrics;
use crate::postgres::{Database, READING, Transaction, WRITING, execute, query};

/// The journal of one gallery.
pub struct PostgresJournal {
    database: Database,
    gallery: i64,
    /// The transaction that holds the lock.
    held: Option<Transaction>,
}

impl PostgresJournal {
    pub fn new(database: Database, gallery: i64) -> Self {
        Self { database, gallery, held: None }
    }
}

impl Journal for PostgresJournal {
    fn lock(&mut self, known: &Known) -> Result<Option<Delta>, StoreError> {
        self.held = None;
        let (transaction, delta) = self.database.wait(async {
            let transaction = Transaction::begin(&self.database, WRITING).await?;
            let asked = Instant::now();
            let head = head(&transaction, self.gallery, "for update").await?;
            metrics::gallery_locked(asked.elapsed());
            let delta = head.since(&transaction, known).await?;
            Ok::<_, StoreError>((transaction, delta))
        })?;
        self.held = Some(transaction);
        Ok(delta)
    }

    fn commit(&mut self, delta: &Delta) -> Result<(), StoreError> {
        let transaction = self.held.take().expect("it is locked");
        self.database.wait(async {
            write(&transaction, self.gallery, delta).await?;
            Ok(transaction.commit().await?)
        })
    }

    fn release(&mut self) {
        let Some(transaction) = self.held.take() else { return };
        if let Err(cause) = self.database.wait(transaction.roll_back()) {
            tracing::debug!(%cause, "a transaction ended with its connection");
        }
    }

    fn fetch(&mut self, known: &Known) -> Result<Option<Delta>, StoreError> {
        self.database.wait(async {
            let transaction = Transaction::begin(&self.database, READING).await?;
            let delta = head(&transaction, self.gallery, "").await?.since(&transaction, known).await?;
            transaction.roll_back().await?;
            Ok(delta)
        })
    }
}

/// The state of a gallery.
///
/// # Errors
/// It is deleted, or the database cannot be reached.
pub async fn head(client: &Client, gallery: i64, lock: &str) -> Result<Head, StoreError> {
    let sql = format!("select {HEAD} from galleries where id = $1 and name is not null {lock}");
    let rows = query!(client, &sql, gallery => INT8)?;
    Head::of(rows.first().ok_or(StoreError::Closed)?)
}

async fn write(transaction: &Transaction, id: i64, delta: &Delta) -> Result<(), StoreError> {
    let Delta { effects, about, state, .. } = delta;
    let number = state.commit as i64;
    let removed: Vec<i64> = effects.removed.iter().map(|row| row.0 as i64).collect();
    let (mut inserted, mut rewritten) = (EntryColumns::default(), EntryColumns::default());
    for (row, new) in &effects.inserted {
        inserted.push(*row, &new.record)?;
    }
    for (row, record) in &effects.rewritten {
        rewritten.push(*row, record)?;
    }
    let chips = effects.inserted.iter().filter_map(|(row, new)| Some((*row, new.chip.as_deref()?)));
    let vectors =
        effects.vectors.iter().map(|((row, generation), vector)| (*generation, *row, vector.as_slice()));
    // The statements are sent together and executed in this order: removals first.
    try_join5(
        remove(transaction, id, number, &removed),
        inserted.insert(transaction, id, number),
        rewritten.update(transaction, id, number),
        insert_vectors(transaction, id, number, vectors),
        async {
            insert_chips(transaction, id, chips).await?;
            let generations: Vec<i64> =
                [Some(about.generation), about.shadow.map(|shadow| shadow.generation)]
                    .into_iter()
                    .flatten()
                    .map(|number| number as i64)
                    .collect();
            write_head(transaction, id, delta).await?;
            if effects.is_empty() {
                let sql = "delete from vectors where gallery = $1 and generation <> all ($2)";
                execute!(transaction, sql, id => INT8, generations => INT8_ARRAY)?;
            }
            Ok(())
        },
    )
    .await?;
    Ok(())
}

async fn remove(transaction: &Transaction, id: i64, number: i64, rows: &[i64]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    for table in ["entries", "vectors", "chips"] {
        let sql = format!("delete from {table} where gallery = $1 and \"row\" = any ($2)");
        execute!(transaction, &sql, id => INT8, rows => INT8_ARRAY)?;
    }
    let sql = "insert into removed (gallery, changed, \"row\") select $1, $2, unnest($3)";
    execute!(transaction, sql, id => INT8, number => INT8, rows => INT8_ARRAY)?;
    Ok(())
}

async fn write_head(transaction: &Transaction, id: i64, delta: &Delta) -> Result<(), StoreError> {
    let Delta { about, state, entries, .. } = delta;
    let about = sealed_about(about);
    let sql = "update galleries set about = $2, commit = $3, committed_at = $4, next_row = $5, bytes = $6,
        entries = $7 where id = $1";
    let numbers = [state.commit, state.next_row, state.bytes, *entries].map(|number| number as i64);
    let [commit, next_row, bytes, entries] = numbers;
    let written = execute!(transaction, sql, id => INT8, about => BYTEA, commit => INT8,
        state.committed_at => INT8, next_row => INT8, bytes => INT8, entries => INT8)?;
    if written == 1 { Ok(()) } else { Err(StoreError::Closed) }
}

impl fmt::Debug for PostgresJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresJournal").field("gallery", &self.gallery).finish_non_exhaustive()
    }
}
