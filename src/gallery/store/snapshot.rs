//! One committed state of a gallery: its index and its tables, which always agree.

use std::fmt;
use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction, TableDefinition};

use super::error::StoreError;
use super::record::{
    ChipRecord, Damage, RowRecord, StateRecord, decode, read_embedding, read_vector, unseal,
};
use super::schema::{About, CHIP_ROWS, ENTRIES, IDS};
use crate::chip::SourceChip;
use crate::durable::DatabaseError;
use crate::embedding::Embedding;
use crate::gallery::entry::{ContentHash, Entry, EntryId};
use crate::gallery::filter::Filter;
use crate::gallery::index::{Found, Group, Index, IndexQuery, RowId, Selection};

pub(super) type RowTable = ReadOnlyTable<u64, &'static [u8]>;

/// What was committed at one time. It stays as it is while the gallery goes on; whoever holds one for long holds the
/// space of what is deleted since.
///
/// Every method that returns an error reads the disk, so none is for an async task.
pub struct Snapshot {
    about: Arc<About>,
    state: StateRecord,
    index: Index,
    tables: Tables,
}

/// The tables of one commit.
pub(in crate::gallery) struct Tables {
    pub entries: RowTable,
    pub ids: ReadOnlyTable<&'static str, u64>,
    pub vectors: RowTable,
    pub chips: Option<RowTable>,
}

/// Entries that were asked for by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Looked {
    /// In the order asked for.
    pub found: Vec<(RowId, Entry)>,
    pub missing: Vec<EntryId>,
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// By ascending row.
    pub entries: Vec<(RowId, Entry)>,
    /// Where the next page begins, unless this is the last one.
    pub next: Option<RowId>,
}

impl Tables {
    /// # Errors
    /// A table is missing or cannot be read.
    pub fn open(
        gallery: &ReadTransaction,
        chips: Option<&ReadTransaction>,
        about: &About,
    ) -> Result<Self, DatabaseError> {
        let vectors = about.vectors();
        Ok(Self {
            entries: gallery.open_table(ENTRIES)?,
            ids: gallery.open_table(IDS)?,
            vectors: gallery.open_table(TableDefinition::new(&vectors))?,
            chips: chips.map(|chips| chips.open_table(CHIP_ROWS)).transpose()?,
        })
    }
}

impl Snapshot {
    pub(super) fn new(about: Arc<About>, state: StateRecord, index: Index, tables: Tables) -> Self {
        Self { about, state, index, tables }
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Commits up to here.
    pub fn commit(&self) -> u64 {
        self.state.commit
    }

    /// Bytes of entries, embeddings and kept chips. The files are larger.
    pub fn stored_bytes(&self) -> u64 {
        self.state.bytes
    }

    pub(in crate::gallery) fn state(&self) -> &StateRecord {
        &self.state
    }

    pub(in crate::gallery) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// # Errors
    /// The gallery cannot be read.
    pub fn row(&self, id: &EntryId) -> Result<Option<RowId>, StoreError> {
        let row = self.tables.ids.get(id.as_str()).map_err(DatabaseError::from)?;
        Ok(row.map(|row| RowId(row.value())))
    }

    /// # Errors
    /// There is no such row, or it cannot be read.
    pub fn entry(&self, row: RowId) -> Result<Entry, StoreError> {
        let record = self.tables.entries.get(row.0).map_err(DatabaseError::from)?;
        let record = record.ok_or_else(|| missing(row))?;
        let record: RowRecord = decode(record.value()).map_err(|damage| damaged(row, &damage))?;
        record.into_entry().map_err(|damage| damaged(row, &damage))
    }

    /// Writes the unit vector of a row into `values`, which has the gallery's dimension.
    ///
    /// # Errors
    /// There is no such row, or it cannot be read.
    pub fn vector(&self, row: RowId, values: &mut [f32]) -> Result<(), StoreError> {
        let sealed = self.tables.vectors.get(row.0).map_err(DatabaseError::from)?;
        let sealed = sealed.ok_or_else(|| missing(row))?;
        let read = unseal(sealed.value()).and_then(|bytes| read_vector(bytes, values));
        read.map_err(|damage| damaged(row, &damage))
    }

    /// # Errors
    /// There is no such row, or it cannot be read.
    pub fn embedding(&self, row: RowId) -> Result<Embedding, StoreError> {
        let sealed = self.tables.vectors.get(row.0).map_err(DatabaseError::from)?;
        let sealed = sealed.ok_or_else(|| missing(row))?;
        let read = unseal(sealed.value()).and_then(|bytes| read_embedding(bytes, self.about.dimension));
        read.map_err(|damage| damaged(row, &damage))
    }

    /// The source chip of a row, where one was enrolled and is kept.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn chip(&self, row: RowId) -> Result<Option<SourceChip>, StoreError> {
        let Some(chips) = &self.tables.chips else { return Ok(None) };
        let Some(sealed) = chips.get(row.0).map_err(DatabaseError::from)? else { return Ok(None) };
        let record = decode::<ChipRecord>(sealed.value()).and_then(SourceChip::try_from);
        record.map(Some).map_err(|damage| damaged(row, &damage))
    }

    /// Whether this content is enrolled under this id, so that enrolling it again would change nothing.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn is_enrolled(&self, id: &EntryId, content: &ContentHash) -> Result<bool, StoreError> {
        let Some(row) = self.row(id)? else { return Ok(false) };
        Ok(self.entry(row)?.content == *content)
    }

    /// # Errors
    /// The gallery cannot be read.
    pub fn get(&self, ids: &[EntryId]) -> Result<Looked, StoreError> {
        let mut looked = Looked::default();
        for id in ids {
            match self.row(id)? {
                Some(row) => looked.found.push((row, self.entry(row)?)),
                None => looked.missing.push(id.clone()),
            }
        }
        Ok(looked)
    }

    /// The rows that `filter` admits.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn select(&self, filter: &Filter) -> Result<Selection, StoreError> {
        if filter.entries.is_empty() {
            return Ok(self.index.select(filter, None));
        }
        let mut listed = Vec::new();
        for id in &filter.entries {
            listed.extend(self.row(id)?);
        }
        listed.sort_unstable();
        listed.dedup();
        Ok(self.index.select(filter, Some(&listed)))
    }

    /// The best of a selection for every query, with vectors from the disk.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn search(
        &self,
        queries: &[IndexQuery<'_>],
        selection: &Selection,
        group: Group,
    ) -> Result<Vec<Found>, StoreError> {
        self.index.search(queries, selection, group, |row, values| self.vector(row, values))
    }

    /// The first `size` entries that `filter` admits in rows above `after`.
    ///
    /// What is enrolled while somebody pages through comes last; nothing that stays is passed over or comes twice.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn list(&self, filter: &Filter, after: Option<RowId>, size: usize) -> Result<Page, StoreError> {
        let selection = self.select(filter)?;
        let mut rows = self.index.rows(&selection).skip_while(|row| after.is_some_and(|after| *row <= after));
        let mut entries = Vec::new();
        for row in rows.by_ref().take(size) {
            entries.push((row, self.entry(row)?));
        }
        let next = rows.next().and(entries.last()).map(|(row, _)| *row);
        Ok(Page { entries, next })
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("about", &self.about)
            .field("state", &self.state)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

fn missing(row: RowId) -> StoreError {
    StoreError::Unreadable(format!("row {} is missing", row.0))
}

fn damaged(row: RowId, damage: &Damage) -> StoreError {
    StoreError::Unreadable(format!("row {} {damage}", row.0))
}
