//! Random operations for a gallery.

use super::model::{Model, Operation, Turn};
use super::*;

/// Random operations on few ids and vessels, so that they affect each other.
pub struct OperationGenerator(pub ChaCha8Rng);

impl OperationGenerator {
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

    /// Embeddings by the shadow's model, if there is one, of most or all rows, and of a few rows that do not exist.
    pub fn fill(&mut self, known: &Model) -> Operation {
        let model = known.shadow.filter(|_| self.0.random_bool(0.9)).unwrap_or_else(|| self.model());
        let some = self.0.random_bool(0.3);
        let rows = known.rows.keys().copied().chain([RowId(known.next_row)]);
        let rows: Vec<RowId> = rows.filter(|_| !some || self.0.random_bool(0.7)).collect();
        Operation::Fill(model, rows.into_iter().map(|row| (row, embedding(1000 + row.0))).collect())
    }

    /// The gallery's first model, or the one that it may move to.
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
        enrolment.entry.precision =
            [None, Some(Precision::F32), Some(Precision::Bf16), Some(Precision::Int8)][seed as usize % 4];
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
