//! A gallery as one would write it who need not be fast nor survive anything, and random work for it and for stores.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::gallery::embedded::Snapshot;
use crate::gallery::embedded::batch::Batch;
use crate::gallery::embedded::record::{read_embedding, unseal};
use crate::gallery::embedded::writer::Writer;

/// What must be true of a gallery.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub rows: BTreeMap<RowId, Kept>,
    pub next_row: u64,
    /// Made the embeddings that count.
    pub of: ModelDigest,
    /// Makes those of the shadow.
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

/// Something that changes a gallery.
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

/// What it is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Enrolled(Result<Enrolled, StoreError>),
    Count(Result<u64, StoreError>),
    Updated(Result<Updated, StoreError>),
}

impl Operation {
    pub fn run(&self, batch: &mut Batch<'_>) -> Result<Answer, StoreError> {
        Ok(match self {
            Self::Enrol(enrolment) => Answer::Enrolled(batch.enrol(enrolment)),
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
            Self::Begin(model) => writer.begin_shadow(model, DIMENSION),
            Self::Drop => writer.drop_shadow(),
            Self::Flip(model) => writer.flip(model).map(drop),
        }
    }

    pub async fn ask(self, gallery: &dyn GalleryStore) -> Result<(), StoreError> {
        match self {
            Self::Begin(model) => gallery.begin_shadow(model, DIMENSION).await,
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

    /// The same as it is exported.
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

    /// By id, of the rows that are wanted.
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

    /// What `snapshot` has, from its tables.
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

    /// Whether everything that a state of a gallery says follows from this model.
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

    /// The same of an embedded gallery, in memory and on disk.
    pub fn check_embedded(&self, snapshot: &Snapshot) {
        self.check(snapshot);
        assert_eq!(Self::of(snapshot), *self);
        for ((row, code), (expected, kept)) in snapshot.index().codes().zip(&self.rows) {
            assert_eq!(row, *expected);
            assert_eq!(code, Code::new(kept.embedding.as_slice()).parts());
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

    /// The best row of each vessel, and how many rows of it `filter` admits.
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

/// What is kept of a row, its embedding in the shadow aside.
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

/// Random work on few ids and vessels, so that it meets itself.
pub struct Work(pub ChaCha8Rng);

impl Work {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn operation(&mut self) -> Operation {
        match self.0.random_range(0..20) {
            0..12 => Operation::Enrol(Box::new(self.enrolment())),
            12..15 => Operation::Delete(Selector::Ids(self.ids())),
            15 => {
                let filter = self.filter();
                Operation::Delete(Selector::Filter(Box::new(filter)))
            }
            16..19 => {
                let ids = self.ids();
                let updates = ids.into_iter().map(|id| self.update(id)).collect();
                Operation::Update(updates, self.fields())
            }
            _ => {
                let vessels = (0..2).map(|_| self.vessel()).collect();
                Operation::Merge(vessels, self.vessel())
            }
        }
    }

    pub fn turn(&mut self, known: &Model) -> Turn {
        let model = self.model();
        match self.0.random_range(0..10) {
            0..4 => Turn::Begin(model),
            4 => Turn::Drop,
            5 => Turn::Flip(model),
            _ => Turn::Flip(known.shadow.unwrap_or(model)),
        }
    }

    /// Embeddings by the model of the shadow, if there is one, of most rows or of all; a few rows are not there.
    pub fn fill(&mut self, known: &Model) -> Operation {
        let model = known.shadow.filter(|_| self.0.random_bool(0.9)).unwrap_or_else(|| self.model());
        let some = self.0.random_bool(0.3);
        let rows = known.rows.keys().copied().chain([RowId(known.next_row)]);
        let rows: Vec<RowId> = rows.filter(|_| !some || self.0.random_bool(0.7)).collect();
        Operation::Fill(model, rows.into_iter().map(|row| (row, embedding(1000 + row.0))).collect())
    }

    /// The gallery's first model, or the one that it may follow.
    fn model(&mut self) -> ModelDigest {
        if self.0.random() { model() } else { other_model() }
    }

    pub fn filter(&mut self) -> Filter {
        let mut filter = Filter::default();
        match self.0.random_range(0..12) {
            0 => filter.modalities = vec![self.modality()],
            1 => {
                let from = self.time();
                let to = Time::from_nanos(from.nanos() + self.0.random_range(0..50));
                filter.time_range = Some(TimeRange::new(Some(from), Some(to)).expect("in order"));
            }
            2 => {
                let (south, west) = (self.0.random_range(-90.0..0.0), self.0.random_range(-180.0..180.0));
                let east = self.0.random_range(-180.0..180.0);
                filter.area = Some(Area::new(south, west, south + 60.0, east).expect("an area"));
            }
            3 => filter.vessels = vec![self.vessel(), self.vessel()],
            4 => filter.labels = vec![("fleet".into(), self.0.random_range(0..3).to_string())],
            5 => filter.entries = self.ids(),
            6 => filter.excluded_vessels = vec![self.vessel(), self.vessel()],
            7 => filter.excluded_labels = (0..2).map(|fleet| ("fleet".into(), fleet.to_string())).collect(),
            8 => filter.excluded_entries = self.ids(),
            9 => filter.is_unnamed = true,
            10 => {
                filter.excluded_vessels = vec![self.vessel()];
                filter.labels = vec![("fleet".into(), self.0.random_range(0..3).to_string())];
            }
            _ => filter.modalities = vec![Modality::Optical, Modality::Sar],
        }
        filter
    }

    pub fn ids(&mut self) -> Vec<EntryId> {
        (0..self.0.random_range(1..4)).map(|_| self.id()).collect()
    }

    pub fn id(&mut self) -> EntryId {
        id(&format!("entry {}", self.0.random_range(0..60)))
    }

    fn enrolment(&mut self) -> Enrolment {
        let name = self.id();
        let seed = self.0.random_range(0..200);
        let mut enrolment = enrolment(name.as_str(), seed);
        if self.0.random_bool(0.3) {
            enrolment.conflict = Conflict::Overwrite;
        }
        if self.0.random_bool(0.3) {
            enrolment.chip = None;
        }
        if self.0.random_bool(0.5) {
            let embedding = embedding(5000 + seed);
            enrolment.shadow = Some(ShadowEmbedding { embedding, model: other_model() });
        }
        enrolment.entry.modality = self.modality();
        enrolment.entry.vessel = self.0.random_bool(0.7).then(|| self.vessel());
        enrolment.entry.labels = self.labels();
        enrolment.entry.observation = self.observation();
        enrolment
    }

    fn update(&mut self, id: EntryId) -> Update {
        Update {
            id,
            vessel: self.0.random_bool(0.7).then(|| self.vessel()),
            labels: self.labels(),
            observation: self.observation(),
        }
    }

    fn fields(&mut self) -> Vec<Field> {
        use Field::*;
        let all = [
            Vessel,
            Labels,
            Observation,
            DetectionId,
            SceneId,
            Sensor,
            ObservedAt,
            Position,
            Heading,
            Length,
            Width,
        ];
        all.into_iter().filter(|_| self.0.random_bool(0.3)).collect()
    }

    fn observation(&mut self) -> Observation {
        let random = &mut self.0;
        let position = random.random_bool(0.6).then(|| {
            let (latitude, longitude) =
                (random.random_range(-90.0..=90.0), random.random_range(-180.0..=180.0));
            Position::new(latitude, longitude, random.random_range(0.0..500.0)).expect("a place")
        });
        let heading = random
            .random_bool(0.5)
            .then(|| Heading::new(random.random_range(0.0..360.0), random.random()).expect("a heading"));
        Observation {
            detection_id: format!("detection {}", random.random_range(0..5)),
            scene_id: format!("scene {}", random.random_range(0..5)),
            sensor: "sensor".repeat(random.random_range(0..4)),
            observed_at: random.random_bool(0.7).then(|| Time::from_nanos(random.random_range(-50..50))),
            position,
            heading,
            length_m: random.random_bool(0.5).then(|| random.random_range(1.0..400.0)),
            width_m: random.random_bool(0.5).then(|| random.random_range(1.0..60.0)),
        }
    }

    fn labels(&mut self) -> Labels {
        let fleet = ("fleet".to_owned(), self.0.random_range(0..3).to_string());
        Labels::new(self.0.random_bool(0.6).then_some(fleet)).expect("valid labels")
    }

    fn modality(&mut self) -> Modality {
        if self.0.random() { Modality::Optical } else { Modality::Sar }
    }

    fn vessel(&mut self) -> VesselId {
        VesselId::new(&format!("vessel {}", self.0.random_range(0..8))).expect("an id")
    }

    fn time(&mut self) -> Time {
        Time::from_nanos(self.0.random_range(-50..50))
    }
}
