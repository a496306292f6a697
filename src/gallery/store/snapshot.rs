//! One committed state of a gallery: its index and its tables, which always agree.

use std::fmt;
use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTableMetadata, TableDefinition};

use super::error::StoreError;
use super::record::{
    ChipRecord, Damage, RowRecord, StateRecord, decode, read_embedding, read_vector, unseal,
};
use super::schema::{About, CHIP_ROWS, ENTRIES, IDS};
use crate::chip::SourceChip;
use crate::durable::{DatabaseError, guard};
use crate::embedding::Embedding;
use crate::gallery::entry::{ContentHash, Entry, EntryId};
use crate::gallery::filter::Filter;
use crate::gallery::index::{Found, Group, Index, IndexQuery, RowId, Selection};
use crate::gallery::patience::Patience;

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
    shadow_rows: u64,
}

/// The tables of one commit.
pub(in crate::gallery) struct Tables {
    pub entries: RowTable,
    pub ids: ReadOnlyTable<&'static str, u64>,
    pub vectors: RowTable,
    pub shadow: Option<RowTable>,
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
        let shadow = about.shadow.map(|shadow| shadow.vectors());
        Ok(Self {
            entries: gallery.open_table(ENTRIES)?,
            ids: gallery.open_table(IDS)?,
            vectors: gallery.open_table(TableDefinition::new(&vectors))?,
            shadow: shadow.map(|name| gallery.open_table(TableDefinition::new(&name))).transpose()?,
            chips: chips.map(|chips| chips.open_table(CHIP_ROWS)).transpose()?,
        })
    }
}

impl Snapshot {
    /// # Errors
    /// The tables cannot be read.
    pub(super) fn new(
        about: Arc<About>,
        state: StateRecord,
        index: Index,
        tables: Tables,
    ) -> Result<Self, DatabaseError> {
        let shadow_rows = tables.shadow.as_ref().map_or(Ok(0), RowTable::len)?;
        Ok(Self { about, state, index, tables, shadow_rows })
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

    /// Embeddings in the shadow.
    pub fn shadow_rows(&self) -> u64 {
        self.shadow_rows
    }

    /// The first `size` rows above `after` that have no embedding in the shadow yet; none without a shadow.
    ///
    /// # Errors
    /// The gallery cannot be read.
    pub fn rows_to_shadow(&self, after: Option<RowId>, size: usize) -> Result<Vec<RowId>, StoreError> {
        let Some(shadow) = &self.tables.shadow else { return Ok(vec![]) };
        let mut rows = Vec::new();
        let from = after.map_or(0, |after| after.0.saturating_add(1));
        for row in self.tables.entries.range(from..).map_err(DatabaseError::from)? {
            let row = row.map_err(DatabaseError::from)?.0.value();
            if rows.len() == size {
                break;
            }
            if shadow.get(row).map_err(DatabaseError::from)?.is_none() {
                rows.push(RowId(row));
            }
        }
        Ok(rows)
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
        guard(|| {
            let row = self.tables.ids.get(id.as_str()).map_err(DatabaseError::from)?;
            Ok(row.map(|row| RowId(row.value())))
        })
    }

    /// # Errors
    /// There is no such row, or it cannot be read.
    pub fn entry(&self, row: RowId) -> Result<Entry, StoreError> {
        let entry = |sealed: &[u8]| decode::<RowRecord>(sealed)?.into_entry();
        read(&self.tables.entries, row, entry)?.ok_or_else(|| missing(row))
    }

    /// Writes the unit vector of a row into `values`, which has the gallery's dimension.
    ///
    /// # Errors
    /// There is no such row, or it cannot be read.
    pub fn vector(&self, row: RowId, values: &mut [f32]) -> Result<(), StoreError> {
        let vector = |sealed: &[u8]| read_vector(unseal(sealed)?, values);
        read(&self.tables.vectors, row, vector)?.ok_or_else(|| missing(row))?;
        // A changed key leads to the vector of another row.
        if self.index.is_of(row, values) { Ok(()) } else { Err(misplaced("embedding", row)) }
    }

    /// # Errors
    /// There is no such row, or it cannot be read.
    pub fn embedding(&self, row: RowId) -> Result<Embedding, StoreError> {
        let embedding = |sealed: &[u8]| read_embedding(unseal(sealed)?, self.about.dimension);
        let embedding = read(&self.tables.vectors, row, embedding)?.ok_or_else(|| missing(row))?;
        let is_its = self.index.is_of(row, embedding.as_slice());
        if is_its { Ok(embedding) } else { Err(misplaced("embedding", row)) }
    }

    /// The source chip of a row, where one was enrolled and is kept.
    ///
    /// # Errors
    /// There is no such row, or its chip should be there and cannot be read.
    pub fn chip(&self, row: RowId) -> Result<Option<SourceChip>, StoreError> {
        let Some(record) = self.chip_record(row)? else { return Ok(None) };
        let chip = SourceChip::try_from(record);
        Ok(Some(chip.map_err(|damage| StoreError::Unreadable(format!("row {} {damage}", row.0)))?))
    }

    pub(in crate::gallery) fn chip_record(&self, row: RowId) -> Result<Option<ChipRecord>, StoreError> {
        let Some(chips) = &self.tables.chips else { return Ok(None) };
        let of = read(&self.tables.entries, row, decode::<RowRecord>)?.ok_or_else(|| missing(row))?;
        if of.chip_bytes == 0 {
            return Ok(None);
        }
        let chip = |sealed: &[u8]| Ok(if of.has_chip(sealed) { Some(decode(sealed)?) } else { None });
        match read(chips, row, chip)? {
            Some(Some(chip)) => Ok(Some(chip)),
            Some(None) => Err(misplaced("chip", row)),
            None => Err(StoreError::Unreadable(format!("the chip of row {} is missing", row.0))),
        }
    }

    /// Whether the source chip of a row is kept, without reading it.
    ///
    /// # Errors
    /// There is no such row, or it cannot be read.
    pub fn keeps_chip(&self, row: RowId) -> Result<bool, StoreError> {
        let kept = |sealed: &[u8]| Ok(decode::<RowRecord>(sealed)?.chip_bytes > 0);
        read(&self.tables.entries, row, kept)?.ok_or_else(|| missing(row))
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
    /// The gallery cannot be read, or the patience has run out.
    pub fn search(
        &self,
        queries: &[IndexQuery<'_>],
        selection: &Selection,
        group: Group,
        patience: &Patience,
    ) -> Result<Vec<Found>, StoreError> {
        let go_on = || Ok(patience.check()?);
        self.index.search_while(queries, selection, group, go_on, |row, values| self.vector(row, values))
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

/// What `parse` makes of a row of a table, `None` where there is no such row.
fn read<T>(
    table: &RowTable,
    row: RowId,
    parse: impl FnOnce(&[u8]) -> Result<T, Damage>,
) -> Result<Option<T>, StoreError> {
    guard(|| {
        let sealed = table.get(row.0).map_err(DatabaseError::from)?;
        let parsed = sealed.map(|sealed| parse(sealed.value())).transpose();
        parsed.map_err(|damage| StoreError::Unreadable(format!("row {} {damage}", row.0)))
    })
}

fn misplaced(what: &str, row: RowId) -> StoreError {
    StoreError::Unreadable(format!("the {what} of row {} is that of another one", row.0))
}

fn missing(row: RowId) -> StoreError {
    StoreError::Unreadable(format!("row {} is missing", row.0))
}
