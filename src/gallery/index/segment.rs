//! A part of an index: the codes of up to 8,192 rows, and the columns that filters read.

use std::sync::Arc;

use super::block::Block;
use super::codes::{Code, Codes, Measure};
use super::grown::Grown;
use super::names::{DetectionHash, LabelSet, NamedVessel, SceneNumber};
use super::{ROWS, RowId};
use crate::chip::Modality;
use crate::gallery::entry::{Position, Time};

/// Codes and columns change separately: updating the facts of a row copies no codes, and appending a row copies nothing.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// One for each part of the vectors.
    codes: Arc<Vec<Codes>>,
    columns: Arc<Columns>,
}

/// What an index knows of a row in addition to its code.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowFacts {
    pub modality: Modality,
    pub observed_at: Option<Time>,
    pub position: Option<Position>,
    pub vessel: Option<NamedVessel>,
    pub scene: Option<SceneNumber>,
    pub detection: Option<DetectionHash>,
    pub labels: LabelSet,
}

/// Every column has one value for each row.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    /// Ascending.
    pub rows: Grown<RowId>,
    pub modalities: Grown<Modality>,
    pub times: Grown<Option<Time>>,
    pub positions: Grown<Option<Position>>,
    pub vessels: Grown<Option<NamedVessel>>,
    pub scenes: Grown<Option<SceneNumber>>,
    pub detections: Grown<Option<DetectionHash>>,
    pub labels: Grown<LabelSet>,
}

impl Segment {
    /// No rows, for vectors whose parts have these numbers of values.
    pub fn new(dimensions: impl Iterator<Item = usize>) -> Self {
        Self { codes: Arc::new(dimensions.map(Codes::new).collect()), columns: Arc::default() }
    }

    /// The codes of one part.
    pub fn codes(&self, part: usize) -> &Codes {
        &self.codes[part]
    }

    /// The codes of all parts.
    pub fn parts(&self) -> &[Codes] {
        &self.codes
    }

    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    pub fn len(&self) -> usize {
        self.columns.rows.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() == ROWS
    }

    /// # Panics
    /// The code has other parts, or one of another dimension.
    pub fn push(&mut self, row: RowId, code: &Code, known: RowFacts) {
        assert_eq!(code.parts().len(), self.codes.len(), "rows have the same parts");
        let parts = Arc::make_mut(&mut self.codes).iter_mut().zip(code.parts());
        parts.for_each(|(codes, code)| codes.push(code));
        Arc::make_mut(&mut self.columns).push(row, known);
    }

    /// Appends the facts of a row whose code is still to be [pushed](Self::push_codes).
    pub fn push_facts(&mut self, row: RowId, known: RowFacts) {
        Arc::make_mut(&mut self.columns).push(row, known);
    }

    /// Appends the codes of one part, with their sums.
    pub fn push_codes(&mut self, part: usize, blocks: &[Block], measures: &[Measure], sums: &[i32]) {
        Arc::make_mut(&mut self.codes)[part].extend(blocks, measures, sums);
    }

    pub fn update(&mut self, at: usize, known: RowFacts) {
        Arc::make_mut(&mut self.columns).set(at, known);
    }

    /// Replaces the facts of every row; the codes stay.
    pub fn map(&mut self, mut known: impl FnMut(RowFacts) -> RowFacts) {
        let old = &self.columns;
        let mut columns = Columns::default();
        (0..old.rows.len()).for_each(|at| columns.push(old.rows[at], known(old.known(at))));
        self.columns = Arc::new(columns);
    }

    /// Appends the rows `kept` of another segment.
    pub fn append(&mut self, other: &Self, kept: impl Iterator<Item = usize>) {
        for at in kept {
            let parts = Arc::make_mut(&mut self.codes).iter_mut().zip(other.parts());
            parts.for_each(|(codes, other)| codes.push(other.code(at)));
            self.push_facts(other.columns.rows[at], other.columns.known(at));
        }
    }
}

impl Columns {
    fn push(&mut self, row: RowId, known: RowFacts) {
        self.rows.extend(&[row], ROWS);
        self.modalities.extend(&[known.modality], ROWS);
        self.times.extend(&[known.observed_at], ROWS);
        self.positions.extend(&[known.position], ROWS);
        self.vessels.extend(&[known.vessel], ROWS);
        self.scenes.extend(&[known.scene], ROWS);
        self.detections.extend(&[known.detection], ROWS);
        self.labels.extend(&[known.labels], ROWS);
    }

    fn set(&mut self, at: usize, known: RowFacts) {
        self.modalities.set(at, known.modality);
        self.times.set(at, known.observed_at);
        self.positions.set(at, known.position);
        self.vessels.set(at, known.vessel);
        self.scenes.set(at, known.scene);
        self.detections.set(at, known.detection);
        self.labels.set(at, known.labels);
    }

    pub fn known(&self, at: usize) -> RowFacts {
        RowFacts {
            modality: self.modalities[at],
            observed_at: self.times[at],
            position: self.positions[at],
            vessel: self.vessels[at],
            scene: self.scenes[at],
            detection: self.detections[at],
            labels: self.labels[at],
        }
    }
}
