//! A part of an index: the codes of up to 8,192 rows, and the columns that filters read.

use std::sync::Arc;

use super::block::Block;
use super::codes::{CodeRef, Codes, Measure};
use super::grown::Grown;
use super::names::{DetectionHash, LabelSet, NamedVessel, SceneNumber};
use super::{ROWS, RowId};
use crate::chip::Modality;
use crate::gallery::entry::{Position, Time};

/// Codes and columns change separately: updating the facts of a row copies no codes, and appending a row copies nothing.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    codes: Arc<Codes>,
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
    pub fn new(dimension: usize) -> Self {
        Self { codes: Arc::new(Codes::new(dimension)), columns: Arc::default() }
    }

    pub fn codes(&self) -> &Codes {
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
    /// The code has another dimension.
    pub fn push(&mut self, row: RowId, code: CodeRef<'_>, known: RowFacts) {
        Arc::make_mut(&mut self.codes).push(code);
        Arc::make_mut(&mut self.columns).push(row, known);
    }

    /// Appends the facts of a row whose code is still to be [pushed](Self::push_codes).
    pub fn push_facts(&mut self, row: RowId, known: RowFacts) {
        Arc::make_mut(&mut self.columns).push(row, known);
    }

    /// Appends codes, with their sums.
    pub fn push_codes(&mut self, blocks: &[Block], measures: &[Measure], sums: &[i32]) {
        Arc::make_mut(&mut self.codes).extend(blocks, measures, sums);
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
            self.push(other.columns.rows[at], other.codes.code(at), other.columns.known(at));
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
