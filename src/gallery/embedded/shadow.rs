//! How a gallery moves to another model: its chips are re-embedded into a shadow, which one transaction then makes
//! active.

use std::sync::Arc;

use redb::{Durability, TableDefinition};

use super::journal::{Delta, Effects};
use super::open::index_from_vectors;
use super::schema::{SchemaError, write_about, write_state};
use super::snapshot::Snapshot;
use super::writer::Writer;
use crate::durable::DatabaseError;
use crate::embedding::ModelDigest;
use crate::gallery::entry::Time;
use crate::gallery::index::Index;
use crate::gallery::record::sealed_vector_bytes;
use crate::gallery::store::{About, Flip, GalleryReader, ShadowTarget, StoreError};

/// The state after a transaction that changes the generations.
struct GenerationChange {
    about: About,
    /// The index before the transaction, unless its embeddings change.
    index: Index,
    bytes: u64,
    /// The table of vectors that are no longer needed.
    obsolete: Option<String>,
}

impl Writer {
    /// Begins a shadow. An existing shadow of the same model is continued, one of another is dropped.
    ///
    /// # Errors
    /// The gallery is already of that model, keeps no chips, or does not accept writes.
    pub fn begin_shadow(&mut self, target: ShadowTarget) -> Result<(), StoreError> {
        self.locked(|writer| writer.begin_locked_shadow(&target))
    }

    fn begin_locked_shadow(&mut self, target: &ShadowTarget) -> Result<(), StoreError> {
        let ShadowTarget { model, dimension, precision, .. } = *target;
        if self.about.model == model || !self.about.keeps_chips {
            return Err(StoreError::Model { expected: self.about.model, found: model });
        }
        let former = self.about.shadow;
        if let Some(shadow) = former.filter(|shadow| shadow.model == model && shadow.dimension == dimension) {
            return match shadow.precision {
                Some(former) if former != precision => self.turn(self.about.with_mixed_shadow(), None),
                Some(_) | None => Ok(()),
            };
        }
        // A copy must not take it for one that was dropped.
        let floor = if self.journal.is_some() { self.known().commit } else { 0 };
        let about = self.about.with_shadow(target, floor);
        self.turn(about, former.map(|shadow| shadow.vectors()))
    }

    /// Drops the shadow, if there is one.
    ///
    /// # Errors
    /// The gallery does not accept writes.
    pub fn drop_shadow(&mut self) -> Result<(), StoreError> {
        self.locked(|writer| match writer.about.shadow {
            None => Ok(()),
            Some(shadow) => writer.turn(writer.about.without_shadow(), Some(shadow.vectors())),
        })
    }

    /// Makes the shadow of `model` active if it is complete, in one transaction, so that every snapshot is of one
    /// model. Reads all its vectors while writes wait.
    ///
    /// # Errors
    /// There is no such shadow, it cannot be read, or the gallery does not accept writes.
    pub fn flip(&mut self, model: ModelDigest) -> Result<Flip, StoreError> {
        self.locked(|writer| writer.flip_locked(model))
    }

    fn flip_locked(&mut self, model: ModelDigest) -> Result<Flip, StoreError> {
        let no_shadow = StoreError::Model { expected: self.about.model, found: model };
        let shadow = self.about.shadow.filter(|shadow| shadow.model == model).ok_or(no_shadow)?;
        self.check_writable()?;
        let before = self.published.snapshot();
        let missing = (before.index().len() as u64).saturating_sub(before.shadow_rows());
        if missing > 0 {
            return Ok(Flip::Incomplete { missing });
        }
        let about = self.about.flipped(shadow, Time::now());
        let index = index_from_vectors(&about, &self.tables(&about)?).map_err(unreadable)?;
        let rows = index.len() as u64;
        let [old, new] =
            [self.about.dimension, about.dimension].map(|dimension| rows * sealed_vector_bytes(dimension));
        let bytes = before.state().bytes - old + new;
        let obsolete = Some(self.about.vectors());
        self.commit_turn(GenerationChange { about, index, bytes, obsolete })
            .map_err(|error| self.give_up(error))?;
        // The shadow did not count against the tenant's limit, and a flip must not fail because of it.
        self.bounds.allowance.count(new);
        self.bounds.allowance.give_back(old);
        Ok(Flip::Done)
    }

    /// Runs a change of generations that nobody else changes meanwhile.
    fn locked<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.journal.is_some() {
            self.check_writable()?;
        }
        self.lock().map_err(|error| self.give_up(error))?;
        let changed = change(self);
        self.release();
        changed
    }

    fn turn(&mut self, about: About, obsolete: Option<String>) -> Result<(), StoreError> {
        self.check_writable()?;
        let before = self.published.snapshot();
        let (index, bytes) = (before.index().clone(), before.state().bytes);
        self.commit_turn(GenerationChange { about, index, bytes, obsolete })
            .map_err(|error| self.give_up(error))
    }

    fn commit_turn(&mut self, turn: GenerationChange) -> Result<(), StoreError> {
        let GenerationChange { about, index, bytes, obsolete } = turn;
        let mut state = *self.published.snapshot().state();
        (state.commit, state.committed_at, state.bytes) = (state.commit + 1, Time::now().nanos(), bytes);
        let transaction = self.gallery.begin_write()?;
        if let Some(name) = obsolete {
            let table: TableDefinition<u64, &[u8]> = TableDefinition::new(&name);
            transaction.delete_table(table).map_err(DatabaseError::from)?;
        }
        if let Some(shadow) = about.shadow {
            let name = shadow.vectors();
            let table: TableDefinition<u64, &[u8]> = TableDefinition::new(&name);
            transaction.open_table(table).map_err(DatabaseError::from)?;
        }
        write_about(&transaction, &about)?;
        write_state(&transaction, &state)?;
        if let Some(journal) = &mut self.journal {
            let (about, entries) = (about.clone(), index.len() as u64);
            journal.commit(&Delta { effects: Effects::default(), about, state, entries })?;
        }
        self.add_chips([].into_iter(), Durability::Immediate)?;
        self.commit_files(transaction, Durability::Immediate)?;
        self.about = Arc::new(about);
        let tables = self.tables(&self.about)?;
        self.published.publish(Snapshot::new(self.about.clone(), state, index, tables)?.made());
        self.weigh();
        Ok(())
    }
}

fn unreadable(error: SchemaError) -> StoreError {
    match error {
        SchemaError::Database(cause) => cause.into(),
        SchemaError::Newer { .. } | SchemaError::Damaged(_) => StoreError::Unreadable(error.to_string()),
    }
}
