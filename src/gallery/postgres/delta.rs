//! What others have committed to a gallery since a copy of it was up to date.

use std::collections::BTreeMap;

use futures_util::future::{TryFutureExt, try_join, try_join3};
use tokio_postgres::{Client, Row};

use crate::gallery::embedded::{Delta, Effects, Inserted, Known, SchemaError, StateRecord, about_of};
use crate::gallery::index::RowId;
use crate::gallery::store::{About, StoreError};
use crate::postgres::{check_usable, query};

/// Rows of a delta; a copy that lacks more is loaded anew.
const ROWS_MAX: i64 = 20_000;

/// A row of `galleries`.
#[derive(Clone, Debug)]
pub struct Head {
    pub id: i64,
    pub about: About,
    pub state: StateRecord,
    pub entries: u64,
    /// Removals of older commits are no longer known.
    removed_from: u64,
}

/// The columns of a [`Head`].
pub const HEAD: &str = "id, about, commit, committed_at, next_row, bytes, entries, removed_from,
    (select usable_from from shipreid) as usable_from";

impl Head {
    /// # Errors
    /// A newer program wrote it or changed the tables, or it is damaged.
    pub fn of(row: &Row) -> Result<Self, StoreError> {
        check_usable(row.get("usable_from"))?;
        let number = |name: &str| row.get::<_, i64>(name) as u64;
        Ok(Self {
            id: row.get("id"),
            about: about_of(row.get("about")).map_err(unreadable)?,
            state: StateRecord {
                commit: number("commit"),
                committed_at: row.get("committed_at"),
                next_row: number("next_row"),
                bytes: number("bytes"),
            },
            entries: number("entries"),
            removed_from: number("removed_from"),
        })
    }

    /// What a copy lacks. The client sees one state of the database in all of its statements.
    ///
    /// # Errors
    /// The copy is to be loaded anew, or the database cannot be reached.
    pub async fn since(self, client: &Client, known: &Known) -> Result<Option<Delta>, StoreError> {
        let Self { id, about, state, entries, removed_from } = self;
        if state.commit == known.commit && state.committed_at == known.committed_at {
            return Ok(None);
        }
        let is_of_its_past = state.commit > known.commit && known.commit >= removed_from;
        if !is_of_its_past || state.next_row.saturating_sub(known.next_row) > ROWS_MAX as u64 {
            return Err(StoreError::Outdated);
        }
        let generations = [Some(about.generation), about.shadow.map(|shadow| shadow.generation)];
        let [active, shadow] = generations.map(|number| vectors(client, id, number, known));
        let (rows, chips, vectors) =
            try_join3(changed(client, id, known), chips(client, id, known), try_join(active, shadow)).await?;
        let (removed, mut inserted, rewritten) = rows;
        for (row, chip) in chips {
            if let Some(inserted) = inserted.get_mut(&row) {
                inserted.chip = Some(chip);
            }
        }
        let vectors = vectors.0.into_iter().chain(vectors.1).collect();
        let effects = Effects { removed, inserted, rewritten, vectors };
        Ok(Some(Delta { effects, about, state, entries }))
    }
}

type Changed = (Vec<RowId>, BTreeMap<RowId, Inserted>, BTreeMap<RowId, Vec<u8>>);

async fn changed(client: &Client, id: i64, known: &Known) -> Result<Changed, StoreError> {
    let (commit, next_row) = (known.commit as i64, known.next_row as i64);
    let removed = "select \"row\" from removed where gallery = $1 and changed > $2 and \"row\" < $3 limit $4";
    let entries =
        "select \"row\", record from entries where gallery = $1 and changed > $2 order by \"row\" limit $3";
    let limit = ROWS_MAX + 1;
    let (removed, entries) = try_join(
        async { query!(client, removed, id => INT8, commit => INT8, next_row => INT8, limit => INT8) },
        async { query!(client, entries, id => INT8, commit => INT8, limit => INT8) },
    )
    .await?;
    if removed.len().max(entries.len()) as i64 > ROWS_MAX {
        return Err(StoreError::Outdated);
    }
    let removed = removed.iter().map(row_of).collect();
    let (mut inserted, mut rewritten) = (BTreeMap::new(), BTreeMap::new());
    for entry in &entries {
        let (row, record) = (row_of(entry), entry.get::<_, Vec<u8>>(1));
        if row.0 >= known.next_row {
            inserted.insert(row, Inserted { record, chip: None });
        } else {
            rewritten.insert(row, record);
        }
    }
    Ok((removed, inserted, rewritten))
}

async fn chips(client: &Client, id: i64, known: &Known) -> Result<Vec<(RowId, Vec<u8>)>, StoreError> {
    let next_row = known.next_row as i64;
    let sql = "select \"row\", chip from chips where gallery = $1 and \"row\" >= $2";
    let found = async { query!(client, sql, id => INT8, next_row => INT8) };
    Ok(found.map_ok(|rows| rows.iter().map(|row| (row_of(row), row.get(1))).collect()).await?)
}

async fn vectors(
    client: &Client,
    id: i64,
    generation: Option<u64>,
    known: &Known,
) -> Result<Vec<((RowId, u64), Vec<u8>)>, StoreError> {
    let Some(generation) = generation else { return Ok(vec![]) };
    let (of, after) = (generation as i64, if known.has(generation) { known.commit as i64 } else { -1 });
    let sql = "select \"row\", vector from vectors
        where gallery = $1 and generation = $2 and changed > $3 order by \"row\" limit $4";
    let limit = ROWS_MAX + 1;
    let found = query!(client, sql, id => INT8, of => INT8, after => INT8, limit => INT8)?;
    if found.len() as i64 > ROWS_MAX {
        return Err(StoreError::Outdated);
    }
    Ok(found.iter().map(|row| ((row_of(row), generation), row.get(1))).collect())
}

pub fn row_of(row: &Row) -> RowId {
    RowId(row.get::<_, i64>(0) as u64)
}

pub fn unreadable(error: SchemaError) -> StoreError {
    StoreError::Unreadable(error.to_string())
}
