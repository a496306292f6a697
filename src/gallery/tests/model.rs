//! A simple model of a gallery, neither fast nor durable, and operations for both it and stores.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::gallery::embedded::Snapshot;
use crate::gallery::embedded::batch::WriteBatch;
use crate::gallery::embedded::prepared::Prepared;
use crate::gallery::embedded::writer::Writer;
use crate::gallery::record::{read_embedding, unseal};

/// The expected state of a gallery.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub rows: BTreeMap<RowId, Kept>,
    pub next_row: u64,
    /// The model of the active embeddings.
    pub of: ModelDigest,
    /// The model of the shadow's embeddings.
    pub shadow: Option<ModelDigest>,
}

impl Default for Model {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), next_row: 0, of: model(), shadow: None }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    pub entry: Entry,
    pub embedding: Embedding,
    pub shadow: Option<Embedding>,
    pub chip: Option<SourceChip>,
}

/// An operation that changes a gallery.
#[derive(Clone, Debug)]
pub enum Operation {
    Enrol(Box<Enrolment>),
    Delete(Selector),
    Update(Vec<Update>, Vec<Field>),
    Merge(Vec<VesselId>, VesselId),
    Fill(ModelDigest, Vec<(RowId, Embedding)>),
}

/// What changes the generations of a gallery's embeddings.
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    Begin(ModelDigest),
    Drop,
    Flip(ModelDigest),
}

/// The result of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Enrolled(Result<Enrolled, StoreError>),
    Count(Result<u64, StoreError>),
    Updated(Result<Updated, StoreError>),
}

impl Operation {
    pub fn run(&self, batch: &mut WriteBatch<'_>) -> Result<Answer, StoreError> {
        Ok(match self {
            Self::Enrol(enrolment) => {
                let prepared = Prepared::new(enrolment, batch.about());
                Answer::Enrolled(batch.enrol(prepared))
            }
            Self::Delete(selector) => Answer::Count(batch.delete(selector)),
            Self::Update(updates, fields) => Answer::Updated(batch.update(updates, fields)),
            Self::Merge(vessels, into) => Answer::Count(batch.merge(vessels, into)),
            Self::Fill(model, embeddings) => Answer::Count(batch.fill_shadow(*model, embeddings)),
        })
    }

    pub async fn ask(self, gallery: &dyn GalleryStore) -> Answer {
        match self {
            Self::Enrol(enrolment) => Answer::Enrolled(gallery.enrol(*enrolment).await),
            Self::Delete(selector) => Answer::Count(gallery.delete(selector).await),
            Self::Update(updates, fields) => Answer::Updated(gallery.update(updates, fields).await),
            Self::Merge(vessels, into) => Answer::Count(gallery.merge(vessels, into).await),
            Self::Fill(model, embeddings) => Answer::Count(gallery.fill_shadow(model, embeddings).await),
        }
    }
}

impl Turn {
    pub fn run(self, writer: &mut Writer) -> Result<(), StoreError> {
        match self {
            Self::Begin(model) => writer.begin_shadow(target(model, DIMENSION)),
            Self::Drop => writer.drop_shadow(),
            Self::Flip(model) => writer.flip(model).map(drop),
        }
    }

    pub async fn ask(self, gallery: &dyn GalleryStore) -> Result<(), StoreError> {
        match self {
            Self::Begin(model) => gallery.begin_shadow(target(model, DIMENSION)).await,
            Self::Drop => gallery.drop_shadow().await,
            Self::Flip(model) => gallery.flip(model).await.map(drop),
        }
    }
}

impl Model {
    pub fn apply(&mut self, operation: &Operation) -> Answer {
        match operation {
            Operation::Enrol(enrolment) => Answer::Enrolled(self.enrol(enrolment)),
            Operation::Delete(Selector::Ids(ids)) => {
                Answer::Count(Ok(self.remove(|entry| ids.contains(&entry.id))))
            }
            Operation::Delete(Selector::Filter(filter)) => {
                Answer::Count(Ok(self.remove(|entry| filter.admits(entry))))
            }
            Operation::Update(updates, fields) => Answer::Updated(Ok(self.update(updates, fields))),
            Operation::Merge(vessels, into) => Answer::Count(Ok(self.merge(vessels, into))),
            Operation::Fill(model, embeddings) => Answer::Count(self.fill(*model, embeddings)),
        }
    }

    pub fn row(&self, id: &EntryId) -> Option<RowId> {
        self.rows.iter().find(|(_, kept)| kept.entry.id == *id).map(|(row, _)| *row)
    }

    pub fn admitted(&self, filter: &Filter) -> Vec<RowId> {
        let admitted = self.rows.iter().filter(|(_, kept)| filter.admits(&kept.entry));
        admitted.map(|(row, _)| *row).collect()
    }

    fn enrol(&mut self, enrolment: &Enrolment) -> Result<Enrolled, StoreError> {
        let entry = &enrolment.entry;
        let also = |wanted| enrolment.shadow.as_ref().filter(|shadow| Some(shadow.model) == wanted);
        let embedding = if enrolment.model == self.of {
            &enrolment.embedding
        } else {
            let mismatch = StoreError::Model { expected: self.of, found: enrolment.model };
            &also(Some(self.of)).ok_or(mismatch)?.embedding
        };
        let previous = self.row(&entry.id);
        if let Some(row) = previous {
            if self.rows[&row].entry.content == entry.content {
                return Ok(Enrolled::Unchanged);
            }
            if enrolment.conflict == Conflict::Refuse {
                return Err(StoreError::AlreadyExists(entry.id.clone()));
            }
            self.rows.remove(&row);
        }
        let kept = Kept {
            entry: entry.clone(),
            embedding: embedding.clone(),
            shadow: also(self.shadow).map(|shadow| shadow.embedding.clone()),
            chip: enrolment.chip.clone(),
        };
        self.rows.insert(RowId(self.next_row), kept);
        self.next_row += 1;
        Ok(if previous.is_some() { Enrolled::Replaced } else { Enrolled::Created })
    }

    pub fn turn(&mut self, turn: &Turn) -> Result<(), StoreError> {
        match turn {
            Turn::Begin(model) if *model == self.of => {
                return Err(StoreError::Model { expected: self.of, found: *model });
            }
            Turn::Begin(model) if self.shadow == Some(*model) => {}
            Turn::Begin(model) => self.set_shadow(Some(*model)),
            Turn::Drop => self.set_shadow(None),
            Turn::Flip(model) => {
                if self.shadow != Some(*model) {
                    return Err(StoreError::Model { expected: self.of, found: *model });
                }
                if self.rows.values().all(|kept| kept.shadow.is_some()) {
                    self.of = *model;
                    for kept in self.rows.values_mut() {
                        kept.embedding = kept.shadow.take().expect("every row has one");
                    }
                    self.shadow = None;
                }
            }
        }
        Ok(())
    }

    /// The model of the gallery after an export and import.
    pub fn without_shadow(&self) -> Self {
        let mut bare = self.clone();
        bare.set_shadow(None);
        bare
    }

    fn set_shadow(&mut self, model: Option<ModelDigest>) {
        self.shadow = model;
        self.rows.values_mut().for_each(|kept| kept.shadow = None);
    }

    fn fill(&mut self, model: ModelDigest, embeddings: &[(RowId, Embedding)]) -> Result<u64, StoreError> {
        if self.shadow != Some(model) {
            return Err(StoreError::Model { expected: self.shadow.unwrap_or(self.of), found: model });
        }
        let mut added = 0;
        for (row, embedding) in embeddings {
            if let Some(kept) = self.rows.get_mut(row).filter(|kept| kept.shadow.is_none()) {
                kept.shadow = Some(embedding.clone());
                added += 1;
            }
        }
        Ok(added)
    }

    fn remove(&mut self, goes: impl Fn(&Entry) -> bool) -> u64 {
        let before = self.rows.len();
        self.rows.retain(|_, kept| !goes(&kept.entry));
        (before - self.rows.len()) as u64
    }

    fn update(&mut self, updates: &[Update], fields: &[Field]) -> Updated {
        let mut answer = Updated::default();
        for update in updates {
            let Some(kept) = self.row(&update.id).and_then(|row| self.rows.get_mut(&row)) else {
                answer.missing.push(update.id.clone());
                continue;
            };
            let (entry, new) = (&mut kept.entry, &update.observation);
            for field in fields {
                let old = &mut entry.observation;
                match field {
                    Field::Vessel => entry.vessel = update.vessel.clone(),
                    Field::Labels => entry.labels = update.labels.clone(),
                    Field::Observation => *old = new.clone(),
                    Field::DetectionId => old.detection_id = new.detection_id.clone(),
                    Field::SceneId => old.scene_id = new.scene_id.clone(),
                    Field::Sensor => old.sensor = new.sensor.clone(),
                    Field::ObservedAt => old.observed_at = new.observed_at,
                    Field::Position => old.position = new.position,
                    Field::Heading => old.heading = new.heading,
                    Field::Length => old.length_m = new.length_m,
                    Field::Width => old.width_m = new.width_m,
                }
            }
            answer.updated += 1;
        }
        answer
    }

    fn merge(&mut self, vessels: &[VesselId], into: &VesselId) -> u64 {
        let mut moved = 0;
        for kept in self.rows.values_mut() {
            let vessel = &mut kept.entry.vessel;
            if vessel.as_ref().is_some_and(|vessel| vessel != into && vessels.contains(vessel)) {
                *vessel = Some(into.clone());
                moved += 1;
            }
        }
        moved
    }

    fn vessels(&self) -> usize {
        let vessels = || self.rows.values().map(|kept| &kept.entry.vessel);
        let named: BTreeSet<&VesselId> = vessels().flatten().collect();
        named.len() + vessels().filter(|vessel| vessel.is_none()).count()
    }

    /// The selected rows, by id.
    pub fn vessel_summaries(&self, is_wanted: impl Fn(RowId) -> bool) -> Vec<VesselSummary> {
        let mut entries: BTreeMap<VesselId, Vec<&Entry>> = BTreeMap::new();
        for (_, kept) in self.rows.iter().filter(|(row, _)| is_wanted(**row)) {
            let vessel = kept.entry.vessel.clone();
            vessel.into_iter().for_each(|vessel| entries.entry(vessel).or_default().push(&kept.entry));
        }
        let summary = |(id, entries): (VesselId, Vec<&Entry>)| {
            let mut times: Vec<Time> =
                entries.iter().filter_map(|entry| entry.observation.observed_at).collect();
            times.sort();
            let both = [Modality::Optical, Modality::Sar];
            let is_seen = |modality: &Modality| entries.iter().any(|entry| entry.modality == *modality);
            VesselSummary {
                id,
                entries: entries.len() as u64,
                first_observed: times.first().copied(),
                last_observed: times.last().copied(),
                modalities: both.into_iter().filter(is_seen).collect(),
            }
        };
        entries.into_iter().map(summary).collect()
    }

    /// The model of what the tables of `snapshot` contain.
    pub fn of(snapshot: &Snapshot) -> Self {
        let everything =
            snapshot.list(&Filter::default(), None, usize::MAX, &Cancellation::default()).expect("readable");
        assert_eq!(everything.next, None);
        let kept = |(row, entry): (RowId, Entry)| {
            let shadow = shadow_embedding(snapshot, row);
            (row, Kept { shadow, ..read(snapshot, row, entry) })
        };
        let about = snapshot.about();
        Self {
            rows: everything.entries.into_iter().map(kept).collect(),
            next_row: snapshot.next_row().0,
            of: about.model,
            shadow: about.shadow.map(|shadow| shadow.model),
        }
    }

    /// Checks that everything a state of a gallery reports follows from this model.
    pub fn check(&self, gallery: &dyn GalleryReader) {
        let everything =
            gallery.list(&Filter::default(), None, usize::MAX, &Cancellation::default()).expect("readable");
        assert_eq!((everything.entries.len(), everything.next), (self.rows.len(), None));
        for ((row, entry), (expected, kept)) in everything.entries.into_iter().zip(&self.rows) {
            assert_eq!((row, gallery.find(&entry.id)), (*expected, Ok(Some(row))));
            assert_eq!(gallery.keeps_chip(row), Ok(kept.chip.is_some()));
            let found = read(gallery, row, entry);
            assert_eq!(found, Kept { shadow: None, ..kept.clone() });
        }
        assert_eq!(gallery.next_row(), RowId(self.next_row));
        assert_eq!((gallery.entries(), gallery.vessels()), (self.rows.len(), self.vessels()));
        let about = gallery.about();
        assert_eq!((about.model, about.shadow.map(|shadow| shadow.model)), (self.of, self.shadow));
        let bare = self.rows.iter().filter(|(_, kept)| self.shadow.is_some() && kept.shadow.is_none());
        let bare: Vec<RowId> = bare.map(|(row, _)| *row).collect();
        assert_eq!(gallery.rows_to_shadow(None, usize::MAX), Ok(bare));
        let shadowed = self.rows.values().filter(|kept| kept.shadow.is_some()).count();
        assert_eq!(gallery.shadow_rows(), shadowed as u64);
    }

    /// Checks the same of an embedded gallery, in memory and on disk.
    pub fn check_embedded(&self, snapshot: &Snapshot) {
        self.check(snapshot);
        assert_eq!(Self::of(snapshot), *self);
        for ((row, code), (expected, kept)) in snapshot.index().codes().zip(&self.rows) {
            assert_eq!(row, *expected);
            assert_eq!(Some(code), Code::new(kept.embedding.as_slice()).parts().next());
        }
        assert_eq!(snapshot.stored_bytes(), bytes_on_disk(snapshot));
    }

    /// The rows that `filter` admits with their cosines, best first.
    pub fn best(&self, filter: &Filter, query: &[f32]) -> Vec<(RowId, f32)> {
        let score = |row: RowId| (row, cosine(query, self.rows[&row].embedding.as_slice()));
        let mut best: Vec<_> = self.admitted(filter).into_iter().map(score).collect();
        best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        best
    }

    /// The best row of each vessel, and how many of its rows `filter` admits.
    pub fn best_vessels(&self, filter: &Filter, query: &[f32]) -> Vec<((RowId, f32), u32)> {
        let mut best: Vec<((RowId, f32), u32)> = Vec::new();
        let vessel = |row: RowId| self.rows[&row].entry.vessel.as_ref();
        for hit in self.best(filter, query) {
            let same = |other: RowId| vessel(hit.0).is_some() && vessel(hit.0) == vessel(other);
            match best.iter_mut().find(|(other, _)| same(other.0)) {
                Some((_, entries)) => *entries += 1,
                None => best.push((hit, 1)),
            }
        }
        best
    }
}

/// What is stored of a row, without its embedding in the shadow.
fn read(gallery: &dyn GalleryReader, row: RowId, entry: Entry) -> Kept {
    let embedding = gallery.embedding(row).expect("readable");
    let chip = gallery.chip(row).expect("readable");
    Kept { entry, embedding, shadow: None, chip }
}

fn shadow_embedding(snapshot: &Snapshot, row: RowId) -> Option<Embedding> {
    let sealed = snapshot.tables().shadow.as_ref()?.get(row.0).expect("readable")?;
    let bytes = unseal(sealed.value()).expect("in order");
    Some(read_embedding(bytes, DIMENSION).expect("in order"))
}

fn bytes_on_disk(snapshot: &Snapshot) -> u64 {
    use redb::ReadableTable;
    let tables = snapshot.tables();
    let mut bytes = 0;
    for row in tables.entries.iter().expect("readable") {
        let (row, record) = row.expect("readable");
        let of = |table: &redb::ReadOnlyTable<u64, &'static [u8]>| {
            table.get(row.value()).expect("readable").map_or(0, |record| record.value().len())
        };
        bytes += record.value().len() + of(&tables.vectors) + tables.chips.as_ref().map_or(0, of);
    }
    bytes as u64
}
