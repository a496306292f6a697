//! All entries of a gallery in memory, as needed for search: codes of the vectors, and columns for filters.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use fixedbitset::FixedBitSet;

use super::entry::{Entry, EntryId};
use crate::embedding::{Composition, make_unit};

mod block;
mod codes;
mod floor;
mod grown;
mod ids;
mod kernel;
mod names;
mod pace;
mod saved;
mod search;
mod segment;
mod select;
mod summary;
#[cfg(test)]
mod tests;
mod vessels;

pub use codes::Code;
pub use ids::IdSum;
pub use names::{DetectionHash, SceneNumber};
pub use pace::search_pace;
pub use saved::hash_mark;
pub use search::{Group, Hit, IndexQuery, SearchResult, cosine};
pub use select::{IndexSelection, Sighting};
pub use summary::VesselSummary;
pub use vessels::{VesselNumber, VesselSet};

use names::{LabelSet, Names, Renaming};
use segment::{RowFacts, Segment};
use vessels::Tally;

/// Rows of a full segment: a multiple of the words of a bit set; codes of 768 values fill three huge pages.
const ROWS: usize = 8192;
/// Two neighbouring segments with at most this many live rows together are merged. It is less than a full segment, so
/// that rows must be added before the next merge.
const MERGED_MAX: usize = ROWS / 8 * 7;

/// A row of a gallery, never reused. Rows ascend in order of enrolment; their numbers have no other meaning outside the
/// store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub(in crate::gallery) u64);

impl RowId {
    /// The inverse of [`to_u64`](Self::to_u64), for numbers that callers send back, such as page tokens.
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    pub const fn to_u64(self) -> u64 {
        self.0
    }
}

/// One state of a gallery's entries.
///
/// Clones share everything until they change: the writer clones, changes and publishes; readers keep their state.
#[derive(Clone)]
pub struct Index {
    dimension: usize,
    /// Of an ensemble: each member's part of a vector is searched alone.
    composition: Option<Composition>,
    /// Ordered by row. Row `at` of segment `n` has the slot `n * ROWS + at`.
    segments: Vec<Segment>,
    /// Slots of rows that were not removed.
    live: FixedBitSet,
    len: usize,
    tally: Tally,
    ids: IdSum,
    /// Live entries without vessel id.
    unnamed: usize,
    names: Arc<RwLock<Names>>,
    /// Bytes of the names after the last removal of unused ones.
    names_kept: usize,
}

/// Bytes that the names may exceed twice their size after the last removal by, before unused ones are removed again.
const NAMES_IDLE: usize = 1 << 20;
/// Further bytes for each row, since the removal takes time for each row.
const NAMES_IDLE_PER_ROW: usize = 16;

impl Index {
    /// No entries, for vectors with `dimension` values.
    pub fn new(dimension: usize) -> Self {
        Self::composed(dimension, None)
    }

    /// No entries, for vectors with `dimension` values, perhaps of an ensemble.
    ///
    /// # Panics
    /// The ensemble's vectors have another dimension.
    pub fn composed(dimension: usize, composition: Option<Composition>) -> Self {
        assert!(composition.is_none_or(|composition| composition.dimension() == dimension), "one dimension");
        Self {
            dimension,
            composition,
            segments: vec![],
            live: FixedBitSet::new(),
            len: 0,
            tally: Tally::default(),
            ids: IdSum::default(),
            unnamed: 0,
            names: Arc::default(),
            names_kept: 0,
        }
    }

    /// Number of values of a vector.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Number of parts of a vector: the members of an ensemble, or the whole.
    pub fn parts(&self) -> usize {
        self.composition.as_ref().map_or(1, |composition| composition.parts().len())
    }

    /// Number of values of each part.
    fn part_dimensions(&self) -> impl Iterator<Item = usize> {
        let whole = self.composition.is_none().then_some(self.dimension);
        let members = self.composition.iter().flat_map(Composition::parts).map(|part| part.dimension);
        whole.into_iter().chain(members)
    }

    /// One part of a vector, of unit length; `values` are used up.
    fn unit_part<'v>(&self, part: usize, values: &'v mut [f32]) -> &'v [f32] {
        let Some(composition) = &self.composition else { return values };
        let range = composition.ranges().nth(part).expect("one for each member");
        let values = &mut values[range];
        make_unit(values);
        values
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of vessels that entries show; an entry without vessel id is a vessel of its own.
    pub fn vessels(&self) -> usize {
        self.tally.shown() + self.unnamed
    }

    /// A checksum of the entries' ids.
    pub fn ids(&self) -> IdSum {
        self.ids
    }

    /// Adds an entry.
    ///
    /// # Panics
    /// `row` is not above all rows before, or `code` has another dimension or other parts.
    pub fn push(&mut self, row: RowId, code: &Code, entry: &Entry) {
        let last = self.segments.last().and_then(|segment| segment.columns().rows.last());
        assert!(last.is_none_or(|last| *last < row), "rows ascend");
        let known = self.known(entry);
        if self.segments.last().is_none_or(Segment::is_full) {
            self.segments.push(Segment::new(self.part_dimensions()));
            self.live.grow(self.segments.len() * ROWS);
        }
        let number = self.segments.len() - 1;
        let segment = &mut self.segments[number];
        self.live.insert(number * ROWS + segment.len());
        segment.push(row, code, known);
        self.len += 1;
        self.ids.add(entry.id.as_str(), row);
        self.count(known);
    }

    /// Removes the entry with that id; `false` if it does not exist.
    pub fn remove(&mut self, row: RowId, id: &EntryId) -> bool {
        let Some(slot) = self.slot(row) else { return false };
        let known = self.segments[slot / ROWS].columns().known(slot % ROWS);
        self.live.remove(slot);
        self.len -= 1;
        self.ids.take(id, row);
        self.uncount(known);
        self.tidy(slot / ROWS);
        true
    }

    /// Whether the row exists.
    pub fn contains(&self, row: RowId) -> bool {
        self.slot(row).is_some()
    }

    /// Whether a vector can be that of a row, judging by its code; `false` if the row does not exist.
    pub fn is_of(&self, row: RowId, vector: &[f32]) -> bool {
        let Some(slot) = self.slot(row) else { return false };
        let (parts, at) = (self.segments[slot / ROWS].parts(), slot % ROWS);
        match &self.composition {
            None => parts[0].code(at).is_of(vector),
            Some(composition) if vector.len() == self.dimension => {
                let vectors = composition.unit_parts(vector);
                parts.iter().zip(&vectors).all(|(codes, vector)| codes.code(at).is_of(vector))
            }
            Some(_) => false,
        }
    }

    /// Replaces what is known of an entry but not its vector; `false` if it does not exist.
    pub fn update(&mut self, row: RowId, entry: &Entry) -> bool {
        let Some(slot) = self.slot(row) else { return false };
        let (before, after) = (self.segments[slot / ROWS].columns().known(slot % ROWS), self.known(entry));
        self.segments[slot / ROWS].update(slot % ROWS, after);
        self.uncount(before);
        self.count(after);
        true
    }

    /// The number of a scene; `None` if it never had an entry.
    pub fn scene_number(&self, scene_id: &str) -> Option<SceneNumber> {
        self.names().known_scene(scene_id)
    }

    /// The codes of the first part of all entries, by ascending row.
    #[cfg(test)]
    pub fn codes(&self) -> impl Iterator<Item = (RowId, codes::CodeRef<'_>)> {
        self.live.ones().map(|slot| {
            let segment = &self.segments[slot / ROWS];
            (segment.columns().rows[slot % ROWS], segment.codes(0).code(slot % ROWS))
        })
    }

    /// All rows, ascending.
    pub fn live_rows(&self) -> impl Iterator<Item = RowId> {
        self.live.ones().map(|slot| self.segments[slot / ROWS].columns().rows[slot % ROWS])
    }

    /// Removes unused names once there may be many. Earlier states keep theirs.
    pub fn tidy_names(&mut self) {
        let rows = self.segments.iter().map(Segment::len).sum::<usize>();
        if self.names_bytes() <= 2 * self.names_kept + NAMES_IDLE + NAMES_IDLE_PER_ROW * rows {
            return;
        }
        self.renew_names();
    }

    /// Keeps only the names that entries have.
    fn renew_names(&mut self) {
        let names = Arc::clone(&self.names);
        let old = names.read().unwrap_or_else(PoisonError::into_inner);
        let (mut renaming, mut tally) = (Renaming::of(&old), Tally::default());
        for (number, segment) in self.segments.iter_mut().enumerate() {
            let mut slot = number * ROWS;
            let live = &self.live;
            segment.map(|known| {
                let is_live = live.contains(slot);
                slot += 1;
                // The columns of removed rows are never read.
                let vessel = known.vessel.filter(|_| is_live).map(|vessel| renaming.vessel(vessel));
                vessel.into_iter().for_each(|vessel| tally.add(vessel));
                let scene = known.scene.filter(|_| is_live).map(|scene| renaming.scene(scene));
                let labels = if is_live { renaming.label_set(known.labels) } else { LabelSet::default() };
                RowFacts { vessel, scene, labels, ..known }
            });
        }
        let new = renaming.finish();
        (self.names_kept, self.tally) = (new.bytes(), tally);
        self.names = Arc::new(RwLock::new(new));
    }

    /// Regards all current names as used.
    pub fn settle_names(&mut self) {
        self.names_kept = self.names_bytes();
    }

    /// Estimated memory of the names.
    pub fn names_bytes(&self) -> usize {
        self.names().bytes()
    }

    fn names(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, entry: &Entry) -> RowFacts {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let observation = &entry.observation;
        RowFacts {
            modality: entry.modality,
            observed_at: observation.observed_at,
            position: observation.position,
            vessel: entry.vessel.as_ref().map(|vessel| names.vessel(vessel)),
            scene: names.scene(&observation.scene_id),
            detection: DetectionHash::of(&observation.detection_id),
            labels: names.label_set(&entry.labels),
        }
    }

    fn count(&mut self, known: RowFacts) {
        match known.vessel {
            Some(vessel) => self.tally.add(vessel),
            None => self.unnamed += 1,
        }
    }

    fn uncount(&mut self, known: RowFacts) {
        match known.vessel {
            Some(vessel) => self.tally.take(vessel),
            None => self.unnamed -= 1,
        }
    }

    /// The slot of a row that was not removed.
    fn slot(&self, row: RowId) -> Option<usize> {
        let starts_by = |segment: &Segment| segment.columns().rows.first().is_some_and(|first| *first <= row);
        let number = self.segments.partition_point(starts_by).checked_sub(1)?;
        let at = self.segments[number].columns().rows.binary_search(&row).ok()?;
        let slot = number * ROWS + at;
        self.live.contains(slot).then_some(slot)
    }

    /// Merges a segment that lost a row with a neighbour, if the live rows of both fit.
    fn tidy(&mut self, number: usize) {
        let live = |number: usize| self.live.count_ones(number * ROWS..(number + 1) * ROWS);
        let merges =
            |first: &usize| first + 1 < self.segments.len() && live(*first) + live(first + 1) <= MERGED_MAX;
        if let Some(first) = number.checked_sub(1).into_iter().chain([number]).find(merges) {
            self.merge(first);
        }
    }

    /// Replaces `first` and the segment after it with one segment of their live rows.
    fn merge(&mut self, first: usize) {
        let mut merged = Segment::new(self.part_dimensions());
        for number in [first, first + 1] {
            let slots = number * ROWS..(number + 1) * ROWS;
            let kept = slots.filter(|slot| self.live.contains(*slot));
            merged.append(&self.segments[number], kept.map(|slot| slot % ROWS));
        }
        let mut words = self.live.as_slice().to_vec();
        let of_segment = ROWS / usize::BITS as usize;
        words.drain(first * of_segment..(first + 1) * of_segment);
        self.segments.splice(first..first + 2, [merged]);
        self.live = FixedBitSet::with_capacity_and_blocks(self.segments.len() * ROWS, words);
        self.live.remove_range(first * ROWS..(first + 1) * ROWS);
        self.live.insert_range(first * ROWS..first * ROWS + self.segments[first].len());
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments = self.segments.len();
        f.debug_struct("Index")
            .field("dimension", &self.dimension)
            .field("len", &self.len)
            .field("segments", &segments)
            .finish()
    }
}
