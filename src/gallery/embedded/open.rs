//! Opens the files of a gallery: finishes what the last process left unfinished, and builds the index.

use std::ops::Range;
use std::sync::Arc;
use std::thread;

use redb::{ReadableTable, ReadableTableMetadata};

use super::record::StateRecord;
use super::scan::{for_each_entry, sum_ids, whole_rows};
use super::schema::{CHIP_ROWS, CHIPS, GALLERY, GONE, SCHEMA, SchemaError, read_about, read_state};
use super::sidecar::{self, Header, Unusable};
use super::snapshot::{Snapshot, Tables};
use crate::durable::{Database, DatabaseError, Volume, guard};
use crate::gallery::index::{Code, IdSum, Index, RowId};
use crate::gallery::record::{Damage, read_vector, unseal};
use crate::gallery::store::About;

/// Chips that a killed process may have written ahead of their rows.
const UNBORN_MAX: u64 = 1 << 20;

/// Why a gallery cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{file} has schema version {found}, this program reads up to version {SCHEMA}")]
    Newer { file: &'static str, found: u32 },
    #[error("{file} is damaged: {cause}")]
    Damaged { file: &'static str, cause: String },
    #[error("{file} cannot be read: {cause}")]
    Io { file: &'static str, cause: std::io::Error },
}

/// A gallery's databases and what is committed in them.
pub struct Opened {
    pub gallery: Database,
    pub chips: Option<Database>,
    pub snapshot: Snapshot,
    /// Rows that are still marked as deleted although their chips are removed.
    pub swept: Vec<RowId>,
}

/// # Errors
/// See [`OpenError`].
pub fn open(volume: &dyn Volume, cache_bytes: usize) -> Result<Opened, OpenError> {
    let in_gallery = |error: SchemaError| OpenError::new(GALLERY, error);
    let gallery = Database::open(volume, GALLERY, cache_bytes).map_err(|cause| in_gallery(cause.into()))?;
    let about = guard(|| read_about(&gallery.begin_read()?)).map_err(in_gallery)?;
    let chips = about.keeps_chips.then(|| Database::open(volume, CHIPS, cache_bytes)).transpose();
    let chips = chips.map_err(|cause| OpenError::new(CHIPS, cause.into()))?;
    let content = guard(|| read_content(volume, &gallery, chips.as_ref(), &about)).map_err(in_gallery)?;
    let swept = guard(|| chips.as_ref().map(|chips| drop_stray_chips(chips, &content)).transpose());
    let swept = swept.map_err(|cause| OpenError::new(CHIPS, cause))?.unwrap_or_default();
    let Content { state, index, .. } = content;
    let snapshot = guard(|| {
        let of_chips = chips.as_ref().map(Database::begin_read).transpose()?;
        let tables = Tables::open(&gallery.begin_read()?, of_chips.as_ref(), &about)?;
        Ok(Snapshot::new(Arc::new(about), state, index, tables)?)
    });
    Ok(Opened { gallery, chips, snapshot: snapshot.map_err(in_gallery)?, swept })
}

/// The content of a gallery's file, once its tables are known to agree.
struct Content {
    state: StateRecord,
    index: Index,
    /// Deleted rows whose chips may still be stored.
    gone: Vec<RowId>,
}

/// Removes the chips of rows that were deleted or never committed. Returns the marks that are no longer needed.
fn drop_stray_chips(chips: &Database, content: &Content) -> Result<Vec<RowId>, SchemaError> {
    let (next_row, gone) = (content.state.next_row, content.gone.clone());
    let rows = chips.begin_read()?.open_table(CHIP_ROWS).map_err(DatabaseError::from)?;
    let beyond = next_row.saturating_add(UNBORN_MAX);
    if let Some(row) = rows.range(beyond..).map_err(DatabaseError::from)?.next() {
        let row = row.map_err(DatabaseError::from)?.0.value();
        return Err(Damage(format!("there is a chip of row {row}, which never came to be")).into());
    }
    let unborn = rows.range(next_row..).map_err(DatabaseError::from)?.next().is_some();
    if gone.is_empty() && !unborn {
        return Ok(gone);
    }
    match remove_chips(chips, &gone, next_row..beyond) {
        Ok(()) => Ok(gone),
        // A full disk does not stop the gallery from being served.
        Err(DatabaseError::Sealed(_)) => Ok(vec![]),
        Err(other) => Err(other.into()),
    }
}

fn remove_chips(chips: &Database, gone: &[RowId], unborn: Range<u64>) -> Result<(), DatabaseError> {
    let removal = chips.begin_write()?;
    let mut table = removal.open_table(CHIP_ROWS)?;
    for row in gone {
        table.remove(row.0)?;
    }
    table.retain_in(unborn, |_, _| false)?;
    drop(table);
    chips.commit(removal)
}

fn read_content(
    volume: &dyn Volume,
    gallery: &Database,
    chips: Option<&Database>,
    about: &About,
) -> Result<Content, SchemaError> {
    let transaction = gallery.begin_read()?;
    let state = read_state(&transaction)?;
    let chips = chips.map(Database::begin_read).transpose()?;
    let tables = Tables::open(&transaction, chips.as_ref(), about)?;
    let rows = tables.entries.len().map_err(DatabaseError::from)?;
    if tables.vectors.len().map_err(DatabaseError::from)? != rows {
        return Err(Damage("it has not as many embeddings as entries".into()).into());
    }
    let header = Header::new(about, &state, rows);
    let index = read_index(volume, &header, about, &tables)?;
    if index.len() as u64 != rows {
        return Err(Damage(format!("it should have {rows} entries, it has {}", index.len())).into());
    }
    let gone = transaction.open_table(GONE).map_err(DatabaseError::from)?;
    let gone = gone.iter().map_err(DatabaseError::from)?.map(|mark| Ok(RowId(mark?.0.value())));
    let gone = gone.collect::<Result<Vec<_>, redb::StorageError>>().map_err(DatabaseError::from)?;
    if let Some(row) = gone.iter().find(|row| index.contains(**row)) {
        return Err(Damage(format!("row {} is there and marked as gone", row.0)).into());
    }
    Ok(Content { state, index, gone })
}

/// The index in the sidecar, while another thread checks the tables, or else one from the vectors.
fn read_index(
    volume: &dyn Volume,
    header: &Header,
    about: &About,
    tables: &Tables,
) -> Result<Index, SchemaError> {
    let check = || guard(|| Ok::<_, SchemaError>((whole_rows(tables)?, sum_ids(tables)?)));
    let (saved, checked) = thread::scope(|scope| {
        let checking = scope.spawn(check);
        let saved = sidecar::read(volume, header, about);
        let panicked = |_| Err(DatabaseError::Damaged("it could not be checked".into()).into());
        (saved, checking.join().unwrap_or_else(panicked))
    });
    let ((rows, of_rows), ids) = checked?;
    let index = match saved {
        Ok(Some(index)) if index.live_rows().eq(rows) && index.ids() == of_rows => index,
        Ok(None) => build(about, tables)?,
        Ok(Some(_)) => passed_over(&Unusable::Stale, about, tables)?,
        Err(cause) => passed_over(&cause, about, tables)?,
    };
    check_ids(&index, ids)?;
    Ok(index)
}

fn passed_over(cause: &Unusable, about: &About, tables: &Tables) -> Result<Index, SchemaError> {
    tracing::info!(%cause, "the saved index is passed over");
    build(about, tables)
}

/// Whether the table of ids agrees with the entries.
fn check_ids(index: &Index, ids: IdSum) -> Result<(), SchemaError> {
    if index.ids() == ids {
        Ok(())
    } else {
        Err(Damage("its ids are not those of its entries".into()).into())
    }
}

/// The index from the vectors alone, if the table of ids agrees with it.
pub(super) fn index_from_vectors(about: &About, tables: &Tables) -> Result<Index, SchemaError> {
    let index = build(about, tables)?;
    check_ids(&index, sum_ids(tables)?)?;
    Ok(index)
}

fn build(about: &About, tables: &Tables) -> Result<Index, SchemaError> {
    let mut index = Index::composed(about.dimension, about.composition);
    let mut values = vec![0.0; about.dimension];
    let mut vectors = tables.vectors.iter().map_err(DatabaseError::from)?;
    for_each_entry(tables, |row, entry| {
        let vector = vectors.next().transpose().map_err(DatabaseError::from)?;
        let (_, sealed) = vector
            .filter(|(of, _)| of.value() == row.0)
            .ok_or_else(|| Damage(format!("row {} has no embedding", row.0)))?;
        let read = unseal(sealed.value()).and_then(|bytes| read_vector(bytes, &mut values));
        read.map_err(|damage| Damage(format!("the embedding of row {} {damage}", row.0)))?;
        index.push(row, &Code::composed(&values, about.composition.as_ref()), entry);
        Ok(())
    })?;
    index.settle_names();
    Ok(index)
}

impl OpenError {
    fn new(file: &'static str, error: SchemaError) -> Self {
        match error {
            SchemaError::Newer { found } => Self::Newer { file, found },
            SchemaError::Damaged(Damage(cause)) | SchemaError::Database(DatabaseError::Damaged(cause)) => {
                Self::Damaged { file, cause }
            }
            SchemaError::Database(DatabaseError::Io(cause)) => Self::Io { file, cause },
            SchemaError::Database(error) => {
                Self::Io { file, cause: std::io::Error::other(error.to_string()) }
            }
        }
    }
}
