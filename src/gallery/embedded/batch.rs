//! Operations in one transaction: each happens as a whole, or is refused and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::journal::Effects;
use super::prepared::{Prepared, Vector};
use super::quota::Allowance;
use super::record::{RowRecord, StateRecord};
use super::schema::{ENTRIES, GONE, IDS, write_state};
use crate::durable::DatabaseError;
use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::catalog::Quotas;
use crate::gallery::entry::{Entry, EntryId, VesselId};
use crate::gallery::filter::Filter;
use crate::gallery::index::{Index, RowId};
use crate::gallery::record::{EntryRecord, decode, encode, seal, sealed_vector_bytes, vector_bytes};
use crate::gallery::store::{About, Conflict, Enrolled, Field, Selector, StoreError, Update, Updated};

/// The settings that a batch is applied under.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    pub about: &'a About,
    pub quotas: &'a Quotas,
    pub allowance: &'a Arc<Allowance>,
}

/// A transaction that operations are applied to, and the index that results.
pub struct WriteBatch<'t> {
    ground: Ground<'t>,
    entries: Table<'t, u64, &'static [u8]>,
    ids: Table<'t, &'static str, u64>,
    vectors: Table<'t, u64, &'static [u8]>,
    /// The vectors of the gallery's shadow, if it has one.
    shadow: Option<Table<'t, u64, &'static [u8]>>,
    gone: Table<'t, u64, ()>,
    index: Index,
    state: StateRecord,
    changes: Changes,
    /// What a journal is to be told; `None` without one.
    effects: Option<Effects>,
    /// Allowance used so far; given back unless the batch is committed.
    taken: QuotaUse,
}

/// What a batch changed besides its transaction.
#[derive(Debug, Default)]
pub struct Changes {
    /// Sealed chips to keep.
    pub chips: BTreeMap<RowId, Vec<u8>>,
    /// Deleted rows that had chips.
    pub gone: Vec<RowId>,
    any: bool,
}

/// The result of a batch.
pub struct Finished {
    pub index: Index,
    pub state: StateRecord,
    pub changes: Changes,
    pub effects: Option<Effects>,
    pub taken: QuotaUse,
}

/// Bytes that a batch takes and releases.
pub struct QuotaUse {
    allowance: Arc<Allowance>,
    taken: u64,
    released: u64,
}

/// A row as it is stored now.
struct Stored {
    row: RowId,
    entry: Entry,
    /// Of its record.
    bytes: u64,
    chip_bytes: u64,
    chip_checksum: Option<u32>,
}

impl<'t> WriteBatch<'t> {
    /// # Errors
    /// The tables cannot be opened.
    pub fn new(
        transaction: &'t WriteTransaction,
        ground: Ground<'t>,
        index: Index,
        state: StateRecord,
        is_journaled: bool,
    ) -> Result<Self, DatabaseError> {
        let vectors = ground.about.vectors();
        let shadow = ground.about.shadow.map(|shadow| shadow.vectors());
        Ok(Self {
            entries: transaction.open_table(ENTRIES)?,
            ids: transaction.open_table(IDS)?,
            vectors: transaction.open_table(TableDefinition::new(&vectors))?,
            shadow: shadow.map(|name| transaction.open_table(TableDefinition::new(&name))).transpose()?,
            gone: transaction.open_table(GONE)?,
            index,
            state,
            changes: Changes::default(),
            effects: is_journaled.then(Effects::default),
            taken: QuotaUse { allowance: ground.allowance.clone(), taken: 0, released: 0 },
            ground,
        })
    }

    /// What enrolments are prepared for.
    #[cfg(test)]
    pub fn about(&self) -> &'t About {
        self.ground.about
    }

    /// # Errors
    /// The enrolment is refused, or the transaction failed.
    pub fn enrol(&mut self, enrolment: Prepared) -> Result<Enrolled, StoreError> {
        let Prepared { entry, record, chip, vector, shadow, conflict } = enrolment;
        let active = self.active(&vector, shadow.as_ref())?;
        let previous = self.find(&entry.id)?;
        match &previous {
            Some(previous) if previous.entry.content == entry.content => return Ok(Enrolled::Unchanged),
            Some(_) if conflict == Conflict::Refuse => {
                return Err(StoreError::AlreadyExists(entry.id.clone()));
            }
            Some(_) => {}
            None => self.check_room()?,
        }
        let stored = &active.sealed;
        let bytes = (record.len() + stored.len() + chip.as_ref().map_or(0, Vec::len)) as u64;
        self.account(previous.as_ref().map_or(0, |previous| self.bytes(previous)), bytes)?;
        if let Some(previous) = &previous {
            self.take_out(previous)?;
        }
        let row = RowId(self.state.next_row);
        self.state.next_row += 1;
        self.insert(row, &entry, &record, stored)?;
        if let Some(effects) = &mut self.effects {
            effects.insert(row, &record, chip.as_deref());
            effects.add_vector(self.ground.about.generation, row, stored);
        }
        if let Some(Vector { model, dimension, sealed, .. }) = &shadow {
            self.insert_shadow(row, *model, *dimension, || sealed.clone())?;
        }
        self.index.push(row, &active.code, &entry);
        self.changes.chips.extend(chip.map(|chip| (row, chip)));
        Ok(if previous.is_some() { Enrolled::Replaced } else { Enrolled::Created })
    }

    /// Returns how many entries there were to delete.
    ///
    /// # Errors
    /// The transaction failed.
    pub fn delete(&mut self, selector: &Selector) -> Result<u64, StoreError> {
        let rows = match selector {
            Selector::Ids(ids) => self.rows_of(ids)?,
            Selector::Filter(filter) => self.select(filter)?,
        };
        for row in &rows {
            let stored = self.read(*row)?;
            self.account(self.bytes(&stored), 0)?;
            self.take_out(&stored)?;
            self.ids.remove(stored.entry.id.as_str()).map_err(DatabaseError::from)?;
        }
        Ok(rows.len() as u64)
    }

    /// # Errors
    /// The updates are refused, or the transaction failed.
    pub fn update(&mut self, updates: &[Update], fields: &[Field]) -> Result<Updated, StoreError> {
        let mut answer = Updated::default();
        let mut changed: BTreeMap<RowId, (Stored, Entry)> = BTreeMap::new();
        for update in updates {
            let Some(row) = self.row_of(&update.id)? else {
                answer.missing.push(update.id.clone());
                continue;
            };
            if let Some((_, entry)) = changed.get_mut(&row) {
                update.apply(fields, entry);
            } else {
                let stored = self.read(row)?;
                let mut entry = stored.entry.clone();
                update.apply(fields, &mut entry);
                changed.insert(row, (stored, entry));
            }
            answer.updated += 1;
        }
        self.rewrite(changed.into_values())?;
        Ok(answer)
    }

    /// Returns how many entries moved.
    ///
    /// # Errors
    /// The merge is refused, or the transaction failed.
    pub fn merge(&mut self, vessels: &[VesselId], into: &VesselId) -> Result<u64, StoreError> {
        let from: Vec<VesselId> = vessels.iter().filter(|vessel| *vessel != into).cloned().collect();
        if from.is_empty() {
            return Ok(0);
        }
        let mut changed = Vec::new();
        for row in self.select(&Filter { vessels: from, ..Filter::default() })? {
            let stored = self.read(row)?;
            let entry = Entry { vessel: Some(into.clone()), ..stored.entry.clone() };
            changed.push((stored, entry));
        }
        let moved = changed.len() as u64;
        self.rewrite(changed)?;
        Ok(moved)
    }

    /// Adds embeddings by `model` to the shadow and returns how many were new. Rows that were deleted or replaced since
    /// they were read, and rows that the shadow already has, are skipped.
    ///
    /// # Errors
    /// The shadow is of another model or dimension, or the transaction failed.
    pub fn fill_shadow(
        &mut self,
        model: ModelDigest,
        embeddings: &[(RowId, Embedding)],
    ) -> Result<u64, StoreError> {
        let expected = self.ground.about.shadow;
        let expected =
            expected.ok_or(StoreError::Model { expected: self.ground.about.model, found: model })?;
        if expected.model != model {
            return Err(StoreError::Model { expected: expected.model, found: model });
        }
        let mut added = 0;
        for (row, embedding) in embeddings {
            let found = embedding.dimension();
            if found != expected.dimension {
                return Err(StoreError::Dimension { expected: expected.dimension, found });
            }
            let is_there = self.entries.get(row.0).map_err(DatabaseError::from)?.is_some();
            let sealed = || seal(vector_bytes(embedding.as_slice()));
            if is_there && self.insert_shadow(*row, model, found, sealed)? {
                added += 1;
            }
        }
        Ok(added)
    }

    /// Clears the marks of rows whose chips may still be stored.
    ///
    /// # Errors
    /// The transaction failed.
    pub fn clear_gone(&mut self, rows: &[RowId]) -> Result<(), StoreError> {
        for row in rows {
            self.gone.remove(row.0).map_err(DatabaseError::from)?;
        }
        Ok(())
    }

    /// Writes the state after the batch; `None` when nothing changed.
    ///
    /// # Errors
    /// The transaction failed.
    pub fn finish(
        self,
        transaction: &WriteTransaction,
        committed_at: i64,
    ) -> Result<Option<Finished>, StoreError> {
        let Self { mut index, mut state, changes, effects, taken, .. } = self;
        if !changes.any {
            return Ok(None);
        }
        index.tidy_names();
        state.commit += 1;
        state.committed_at = committed_at;
        write_state(transaction, &state)?;
        Ok(Some(Finished { index, state, changes, effects, taken }))
    }

    /// The active embedding. If the shadow became active after the enrolment was prepared, it is the shadow's.
    fn active<'v>(&self, vector: &'v Vector, shadow: Option<&'v Vector>) -> Result<&'v Vector, StoreError> {
        let about = self.ground.about;
        let mut either = [Some(vector), shadow].into_iter().flatten();
        let active = either.find(|vector| vector.model == about.model);
        let active = active.ok_or(StoreError::Model { expected: about.model, found: vector.model })?;
        if active.dimension != about.dimension {
            return Err(StoreError::Dimension { expected: about.dimension, found: active.dimension });
        }
        // It was prepared before the gallery had anything to do with its model, an ensemble.
        if active.code.parts().len() != self.index.parts() {
            return Err(StoreError::Model { expected: about.model, found: active.model });
        }
        Ok(active)
    }

    fn check_room(&self) -> Result<(), StoreError> {
        let limit = self.ground.quotas.entries_per_gallery;
        if self.index.len() as u64 >= limit { Err(StoreError::EntriesFull { limit }) } else { Ok(()) }
    }

    /// The rows that `filter` admits, ascending.
    fn select(&self, filter: &Filter) -> Result<Vec<RowId>, StoreError> {
        let listed = if filter.entries.is_empty() { None } else { Some(self.rows_of(&filter.entries)?) };
        let excluded = self.rows_of(&filter.excluded_entries)?;
        let selection = self.index.select(filter, listed.as_deref(), &excluded);
        Ok(self.index.rows(&selection).collect())
    }

    /// The rows of those ids that exist, without duplicates.
    fn rows_of(&self, ids: &[EntryId]) -> Result<Vec<RowId>, StoreError> {
        let mut rows = Vec::new();
        for id in ids {
            rows.extend(self.row_of(id)?);
        }
        rows.sort_unstable();
        rows.dedup();
        Ok(rows)
    }

    fn row_of(&self, id: &EntryId) -> Result<Option<RowId>, StoreError> {
        let row = self.ids.get(id.as_str()).map_err(DatabaseError::from)?;
        Ok(row.map(|row| RowId(row.value())))
    }

    fn find(&self, id: &EntryId) -> Result<Option<Stored>, StoreError> {
        self.row_of(id)?.map(|row| self.read(row)).transpose()
    }

    fn read(&self, row: RowId) -> Result<Stored, StoreError> {
        let record = self.entries.get(row.0).map_err(DatabaseError::from)?;
        let record = record.ok_or_else(|| StoreError::Unreadable(format!("row {} is missing", row.0)))?;
        let bytes = record.value().len() as u64;
        let record: RowRecord = decode(record.value())?;
        let RowRecord { chip_bytes, chip_checksum, .. } = record;
        Ok(Stored { row, entry: record.into_entry()?, bytes, chip_bytes, chip_checksum })
    }

    /// All bytes that are stored for a row.
    fn bytes(&self, stored: &Stored) -> u64 {
        stored.bytes + stored.chip_bytes + sealed_vector_bytes(self.ground.about.dimension)
    }

    /// Accounts for a change from `before` bytes to `after`.
    fn account(&mut self, before: u64, after: u64) -> Result<(), StoreError> {
        self.taken.change(before, after)?;
        self.state.bytes = self.state.bytes - before + after;
        Ok(())
    }

    fn insert(
        &mut self,
        row: RowId,
        entry: &Entry,
        record: &[u8],
        vector: &[u8],
    ) -> Result<(), DatabaseError> {
        self.changes.any = true;
        self.entries.insert(row.0, record)?;
        self.vectors.insert(row.0, vector)?;
        self.ids.insert(entry.id.as_str(), row.0)?;
        Ok(())
    }

    /// Returns whether the embedding is new in the shadow; one of another model or dimension is skipped.
    fn insert_shadow(
        &mut self,
        row: RowId,
        model: ModelDigest,
        dimension: usize,
        sealed: impl FnOnce() -> Vec<u8>,
    ) -> Result<bool, DatabaseError> {
        let (Some(about), Some(table)) = (self.ground.about.shadow, &mut self.shadow) else {
            return Ok(false);
        };
        if about.model != model || about.dimension != dimension || table.get(row.0)?.is_some() {
            return Ok(false);
        }
        let vector = sealed();
        table.insert(row.0, vector.as_slice())?;
        if let Some(effects) = &mut self.effects {
            effects.add_vector(about.generation, row, &vector);
        }
        self.changes.any = true;
        Ok(true)
    }

    /// Removes a row; the caller removes its id.
    fn take_out(&mut self, stored: &Stored) -> Result<(), DatabaseError> {
        self.changes.any = true;
        self.entries.remove(stored.row.0)?;
        self.vectors.remove(stored.row.0)?;
        if let Some(shadow) = &mut self.shadow {
            shadow.remove(stored.row.0)?;
        }
        if stored.chip_bytes > 0 {
            self.gone.insert(stored.row.0, ())?;
            self.changes.chips.remove(&stored.row);
            self.changes.gone.push(stored.row);
        }
        if let Some(effects) = &mut self.effects {
            effects.remove(stored.row);
        }
        self.index.remove(stored.row, &stored.entry.id);
        Ok(())
    }

    /// Replaces what is known of rows, all or none.
    fn rewrite(&mut self, changed: impl IntoIterator<Item = (Stored, Entry)>) -> Result<(), StoreError> {
        let record = |(stored, entry): (Stored, Entry)| {
            let Stored { chip_bytes, chip_checksum, .. } = stored;
            let record = RowRecord { entry: Some(EntryRecord::from(&entry)), chip_bytes, chip_checksum };
            let record = encode(&record);
            (stored, entry, record)
        };
        let differs = |(stored, entry): &(Stored, Entry)| stored.entry != *entry;
        let changed: Vec<_> = changed.into_iter().filter(differs).map(record).collect();
        let before = changed.iter().map(|(stored, ..)| stored.bytes).sum();
        let after = changed.iter().map(|(.., record)| record.len() as u64).sum();
        self.account(before, after)?;
        for (stored, entry, record) in &changed {
            self.changes.any = true;
            self.entries.insert(stored.row.0, record.as_slice()).map_err(DatabaseError::from)?;
            if let Some(effects) = &mut self.effects {
                effects.rewrite(stored.row, record);
            }
            self.index.update(stored.row, entry);
        }
        Ok(())
    }
}

impl QuotaUse {
    /// Keeps the accounted bytes permanently.
    pub fn keep(mut self) {
        self.allowance.give_back(self.released);
        (self.taken, self.released) = (0, 0);
    }

    fn change(&mut self, before: u64, after: u64) -> Result<(), StoreError> {
        if after > before {
            self.allowance.take(after - before)?;
            self.taken += after - before;
        } else {
            // A tenant over the limit may delete but not replace, since a replacement needs as much room in the files
            // as an addition.
            if after > 0 {
                self.allowance.check(0)?;
            }
            self.released += before - after;
        }
        Ok(())
    }
}

impl Drop for QuotaUse {
    fn drop(&mut self) {
        self.allowance.give_back(self.taken);
    }
}
