//! One committed state of a gallery: its index and its tables, which always agree.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTableMetadata, TableDefinition};

use super::record::{RowRecord, StateRecord};
use super::schema::{CHIP_ROWS, ENTRIES, IDS};
use crate::cancellation::Cancellation;
use crate::chip::SourceChip;
use crate::durable::{DatabaseError, guard};
use crate::embedding::Embedding;
use crate::gallery::entry::{Entry, EntryId, VesselId};
use crate::gallery::filter::Filter;
use crate::gallery::index::{
    Group, Index, IndexQuery, RowId, SceneNumber, SearchResult, Sighting, VesselSummary,
};
use crate::gallery::record::{ChipRecord, Damage, decode, read_embedding, read_vector, unseal};
use crate::gallery::store::{About, GalleryReader, Selection, StoreError};

pub(super) type RowTable = ReadOnlyTable<u64, &'static [u8]>;

/// The state of one commit.
pub struct Snapshot {
    about: Arc<About>,
    state: StateRecord,
    index: Index,
    tables: Tables,
    shadow_rows: u64,
    /// When this server had committed it, or taken it in; `None` if it was found on the disk.
    made_at: Option<Instant>,
}

/// The tables of one commit.
pub(in crate::gallery) struct Tables {
    pub entries: RowTable,
    pub ids: ReadOnlyTable<&'static str, u64>,
    pub vectors: RowTable,
    pub shadow: Option<RowTable>,
    pub chips: Option<RowTable>,
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
        Ok(Self { about, state, index, tables, shadow_rows, made_at: None })
    }

    /// The same, made now.
    pub(super) fn made(self) -> Self {
        Self { made_at: Some(Instant::now()), ..self }
    }

    pub(in crate::gallery) fn made_at(&self) -> Option<Instant> {
        self.made_at
    }

    pub(in crate::gallery) fn index(&self) -> &Index {
        &self.index
    }

    pub(in crate::gallery) fn state(&self) -> &StateRecord {
        &self.state
    }

    #[cfg(test)]
    pub(in crate::gallery) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Writes the unit vector of a row into `values`, which has the gallery's dimension.
    fn read_vector(&self, row: RowId, values: &mut [f32]) -> Result<(), StoreError> {
        let vector = |sealed: &[u8]| read_vector(unseal(sealed)?, values);
        read(&self.tables.vectors, row, vector)?.ok_or_else(|| missing(row))?;
        // A changed key may lead to the vector of another row.
        if self.index.is_of(row, values) { Ok(()) } else { Err(misplaced("embedding", row)) }
    }

    fn chip_record(&self, row: RowId) -> Result<Option<ChipRecord>, StoreError> {
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
}

impl GalleryReader for Snapshot {
    fn about(&self) -> &About {
        &self.about
    }

    fn commit(&self) -> u64 {
        self.state.commit
    }

    fn entries(&self) -> usize {
        self.index.len()
    }

    fn vessels(&self) -> usize {
        self.index.vessels()
    }

    fn stored_bytes(&self) -> u64 {
        self.state.bytes
    }

    fn next_row(&self) -> RowId {
        RowId(self.state.next_row)
    }

    fn shadow_rows(&self) -> u64 {
        self.shadow_rows
    }

    fn rows_to_shadow(&self, after: Option<RowId>, size: usize) -> Result<Vec<RowId>, StoreError> {
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

    fn find(&self, id: &EntryId) -> Result<Option<RowId>, StoreError> {
        guard(|| {
            let row = self.tables.ids.get(id.as_str()).map_err(DatabaseError::from)?;
            Ok(row.map(|row| RowId(row.value())))
        })
    }

    fn entry(&self, row: RowId) -> Result<Entry, StoreError> {
        let entry = |sealed: &[u8]| decode::<RowRecord>(sealed)?.into_entry();
        read(&self.tables.entries, row, entry)?.ok_or_else(|| missing(row))
    }

    fn embedding(&self, row: RowId) -> Result<Embedding, StoreError> {
        let embedding = |sealed: &[u8]| read_embedding(unseal(sealed)?, self.about.dimension);
        let embedding = read(&self.tables.vectors, row, embedding)?.ok_or_else(|| missing(row))?;
        let is_its = self.index.is_of(row, embedding.as_slice());
        if is_its { Ok(embedding) } else { Err(misplaced("embedding", row)) }
    }

    fn chip(&self, row: RowId) -> Result<Option<SourceChip>, StoreError> {
        let Some(record) = self.chip_record(row)? else { return Ok(None) };
        let chip = SourceChip::try_from(record);
        Ok(Some(chip.map_err(|damage| StoreError::Unreadable(format!("row {} {damage}", row.0)))?))
    }

    fn keeps_chip(&self, row: RowId) -> Result<bool, StoreError> {
        let kept = |sealed: &[u8]| Ok(decode::<RowRecord>(sealed)?.chip_bytes > 0);
        read(&self.tables.entries, row, kept)?.ok_or_else(|| missing(row))
    }

    fn scene_number(&self, scene_id: &str) -> Option<SceneNumber> {
        self.index.scene_number(scene_id)
    }

    fn select(&self, filter: &Filter) -> Result<Selection, StoreError> {
        let rows_of = |ids: &[EntryId]| -> Result<Vec<RowId>, StoreError> {
            let mut rows = Vec::new();
            for id in ids {
                rows.extend(self.find(id)?);
            }
            rows.sort_unstable();
            rows.dedup();
            Ok(rows)
        };
        let listed = if filter.entries.is_empty() { None } else { Some(rows_of(&filter.entries)?) };
        let excluded = rows_of(&filter.excluded_entries)?;
        Ok(Selection(self.index.select(filter, listed.as_deref(), &excluded)))
    }

    fn is_selected(&self, selection: &Selection, row: RowId) -> bool {
        self.index.is_selected(&selection.0, row)
    }

    fn rows(&self, selection: &Selection, after: Option<RowId>, size: usize) -> Vec<RowId> {
        self.index.rows_after(&selection.0, after).take(size).collect()
    }

    fn vessel_summaries(
        &self,
        selection: &Selection,
        after: Option<&VesselId>,
        size: usize,
    ) -> Vec<VesselSummary> {
        self.index.vessel_summaries(&selection.0, after, size)
    }

    fn for_each_sighting(&self, selection: &Selection, see: &mut dyn FnMut(Sighting)) {
        self.index.sightings(&selection.0).for_each(see);
    }

    fn search(
        &self,
        queries: &[IndexQuery<'_>],
        selection: &Selection,
        group: Group,
        cancellation: &Cancellation,
    ) -> Result<Vec<SearchResult>, StoreError> {
        let go_on = || Ok(cancellation.check()?);
        let vector = |row, values: &mut [f32]| self.read_vector(row, values);
        self.index.search_while(queries, &selection.0, group, go_on, vector)
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

/// Applies `parse` to a row of a table, `None` where there is no such row.
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
