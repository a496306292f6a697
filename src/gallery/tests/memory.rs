//! An in-memory store: the model behind the store's interface, with an index for its searches.

use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use tokio::sync::watch;

use super::conformance::{OPERATIONS, Trial};
use super::model::{Answer, Model, Operation, Turn};
use super::*;
use crate::gallery::embedded::quota::Allowance;
use crate::gallery::store::Files;

#[derive(Debug)]
pub struct MemoryGallery {
    about: About,
    bounds: Bounds,
    state: RwLock<Arc<State>>,
    /// `None` once it is closed.
    files: watch::Sender<Files>,
}

/// Limits of a gallery.
#[derive(Debug)]
pub struct Bounds {
    pub entries_max: u64,
    /// Shared by the galleries of its tenant.
    pub allowance: Arc<Allowance>,
}

#[derive(Debug)]
struct State {
    about: About,
    model: Model,
    index: Index,
    commit: u64,
}

impl MemoryGallery {
    /// A gallery without entries.
    pub fn new(about: About, bounds: Bounds) -> Self {
        let model = Model { of: about.model, ..Model::default() };
        Self::with(about, model, bounds).expect("it holds nothing")
    }

    /// # Errors
    /// The tenant has no room for the content of `model`.
    pub fn with(about: About, model: Model, bounds: Bounds) -> Result<Self, StoreError> {
        let state = State::new(&about, model, 1);
        bounds.allowance.take(state.stored_bytes())?;
        let state = RwLock::new(Arc::new(state));
        Ok(Self { about, bounds, state, files: watch::Sender::new(Files::Open) })
    }

    /// Refuses everything from now on.
    pub fn close(&self) {
        self.files.send_replace(Files::Closed);
    }

    /// Closes it permanently and frees its tenant's room.
    pub fn remove(&self) {
        self.close();
        self.bounds.allowance.give_back(self.state().stored_bytes());
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> Result<T, StoreError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if *self.files.borrow() == Files::Closed {
            return Err(StoreError::Closed);
        }
        let mut model = state.model.clone();
        let answer = change(&mut model);
        let changed = State::new(&self.about, model, state.commit + 1);
        let (before, after) = (state.stored_bytes(), changed.stored_bytes());
        if changed.entries() > state.entries() && changed.entries() as u64 > self.bounds.entries_max {
            return Err(StoreError::EntriesFull { limit: self.bounds.entries_max });
        }
        self.bounds.allowance.take(after.saturating_sub(before))?;
        self.bounds.allowance.give_back(before.saturating_sub(after));
        *state = Arc::new(changed);
        Ok(answer)
    }

    fn apply(&self, operation: &Operation) -> Result<Answer, StoreError> {
        self.change(|model| model.apply(operation))
    }

    fn count(&self, operation: &Operation) -> Result<u64, StoreError> {
        match self.apply(operation)? {
            Answer::Count(count) => count,
            other => panic!("{other:?} is no count"),
        }
    }
}

impl State {
    fn new(made: &About, model: Model, commit: u64) -> Self {
        let mut about = About { model: model.of, ..made.clone() };
        about.shadow = model.shadow.map(|model| Shadow {
            model,
            dimension: DIMENSION,
            composition: None,
            precision: Some(Precision::F32),
            generation: 2,
        });
        let mut index = Index::new(DIMENSION);
        for (row, kept) in &model.rows {
            index.push(*row, &Code::new(kept.embedding.as_slice()), &kept.entry);
        }
        Self { about, model, index, commit }
    }

    fn kept(&self, row: RowId) -> Result<&super::model::Kept, StoreError> {
        self.model.rows.get(&row).ok_or_else(|| StoreError::Unreadable(format!("no row {}", row.0)))
    }
}

#[async_trait]
impl GalleryStore for MemoryGallery {
    fn snapshot(&self) -> Arc<dyn GalleryReader> {
        self.state()
    }

    fn opening(&self) -> Opening {
        Opening::now(self.files.subscribe())
    }

    fn info(&self) -> Info {
        let state = self.state();
        Info {
            about: state.about.clone(),
            entries: state.entries() as u64,
            vessels: state.vessels() as u64,
            stored_bytes: state.stored_bytes(),
            read_only: None,
            following: None,
        }
    }

    async fn enrol(&self, mut enrolment: Enrolment) -> Result<Enrolled, StoreError> {
        enrolment.chip = enrolment.chip.filter(|_| self.about.keeps_chips);
        match self.apply(&Operation::Enrol(Box::new(enrolment)))? {
            Answer::Enrolled(enrolled) => enrolled,
            other => panic!("{other:?} is no enrolment"),
        }
    }

    async fn delete(&self, selector: Selector) -> Result<u64, StoreError> {
        self.count(&Operation::Delete(selector))
    }

    async fn update(&self, updates: Vec<Update>, fields: Vec<Field>) -> Result<Updated, StoreError> {
        match self.apply(&Operation::Update(updates, fields))? {
            Answer::Updated(updated) => updated,
            other => panic!("{other:?} is no update"),
        }
    }

    async fn merge(&self, vessels: Vec<VesselId>, into: VesselId) -> Result<u64, StoreError> {
        self.count(&Operation::Merge(vessels, into))
    }

    async fn begin_shadow(&self, target: ShadowTarget) -> Result<(), StoreError> {
        self.change(|known| known.turn(&Turn::Begin(target.model)))?
    }

    async fn drop_shadow(&self) -> Result<(), StoreError> {
        self.change(|known| known.turn(&Turn::Drop))?
    }

    async fn fill_shadow(
        &self,
        model: ModelDigest,
        embeddings: Vec<(RowId, Embedding)>,
    ) -> Result<u64, StoreError> {
        self.count(&Operation::Fill(model, embeddings))
    }

    async fn flip(&self, model: ModelDigest) -> Result<Flip, StoreError> {
        self.change(|known| known.turn(&Turn::Flip(model)))??;
        let state = self.state();
        let missing = state.entries() as u64 - state.shadow_rows();
        Ok(if state.about.shadow.is_none() { Flip::Done } else { Flip::Incomplete { missing } })
    }

    fn stall(&self, _reason: Option<(ModelDigest, String)>) {}

    fn file_bytes(&self) -> u64 {
        0
    }

    fn is_held_up(&self, _before: u64) -> bool {
        false
    }
}

impl GalleryReader for State {
    fn about(&self) -> &About {
        &self.about
    }

    fn commit(&self) -> u64 {
        self.commit
    }

    fn entries(&self) -> usize {
        self.model.rows.len()
    }

    fn vessels(&self) -> usize {
        self.index.vessels()
    }

    fn stored_bytes(&self) -> u64 {
        let chip = |kept: &super::model::Kept| kept.chip.as_ref().map_or(0, |chip| chip.image.len());
        self.model.rows.values().map(|kept| (4 * DIMENSION + chip(kept)) as u64).sum()
    }

    fn next_row(&self) -> RowId {
        RowId(self.model.next_row)
    }

    fn shadow_rows(&self) -> u64 {
        self.model.rows.values().filter(|kept| kept.shadow.is_some()).count() as u64
    }

    fn rows_to_shadow(&self, after: Option<RowId>, size: usize) -> Result<Vec<RowId>, StoreError> {
        let is_bare = |row: &RowId| self.about.shadow.is_some() && self.model.rows[row].shadow.is_none();
        let above = |row: &RowId| after.is_none_or(|after| *row > after);
        let rows = self.model.rows.keys().copied().filter(|row| is_bare(row) && above(row));
        Ok(rows.take(size).collect())
    }

    fn find(&self, id: &EntryId) -> Result<Option<RowId>, StoreError> {
        Ok(self.model.row(id))
    }

    fn entry(&self, row: RowId) -> Result<Entry, StoreError> {
        Ok(self.kept(row)?.entry.clone())
    }

    fn embedding(&self, row: RowId) -> Result<Embedding, StoreError> {
        Ok(self.kept(row)?.embedding.clone())
    }

    fn chip(&self, row: RowId) -> Result<Option<SourceChip>, StoreError> {
        Ok(self.kept(row)?.chip.clone())
    }

    fn keeps_chip(&self, row: RowId) -> Result<bool, StoreError> {
        Ok(self.kept(row)?.chip.is_some())
    }

    fn scene_number(&self, scene_id: &str) -> Option<SceneNumber> {
        self.index.scene_number(scene_id)
    }

    fn select(&self, filter: &Filter) -> Result<Selection, StoreError> {
        let listed = self.model.admitted(filter);
        Ok(Selection(self.index.select(&Filter::default(), Some(&listed), &[])))
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
        let summaries = self.model.vessel_summaries(|row| self.index.is_selected(&selection.0, row));
        let beyond = |summary: &VesselSummary| after.is_none_or(|after| summary.id > *after);
        summaries.into_iter().filter(beyond).take(size).collect()
    }

    fn for_each_sighting(&self, selection: &Selection, see: &mut dyn FnMut(Sighting)) {
        self.index.sightings(&selection.0).for_each(see);
    }

    fn search(
        &self,
        queries: &[IndexQuery<'_>],
        selection: &Selection,
        group: Group,
        _cancellation: &Cancellation,
    ) -> Result<Vec<SearchResult>, StoreError> {
        let vector = |row: RowId, values: &mut [f32]| {
            values.copy_from_slice(self.kept(row)?.embedding.as_slice());
            Ok(())
        };
        self.index.search(queries, &selection.0, group, vector)
    }
}

#[tokio::test]
async fn a_store_in_memory_does_what_every_store_has_to_do() {
    let about = About::new(model(), DIMENSION, true, Time::from_nanos(0));
    let bounds = Bounds { entries_max: u64::MAX, allowance: Arc::new(Allowance::new(u64::MAX)) };
    let gallery = MemoryGallery::new(about, bounds);
    let mut trial = Trial::new(Arc::new(gallery), 7);
    let mut done = 0;
    while done < OPERATIONS {
        done += trial.change().await;
        trial.check();
    }
}
