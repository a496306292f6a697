//! Filters on columns, which select the rows that take part.

use fixedbitset::FixedBitSet;

use super::names::Names;
use super::names::{DetectionHash, SceneNumber};
use super::segment::{Columns, Segment};
use super::vessels::VesselNumber;
use super::{Index, ROWS, RowId};
use crate::gallery::entry::{Position, Time, VesselId};
use crate::gallery::filter::Filter;

/// The rows that take part. Valid only for the index that selected them.
#[derive(Clone, Debug)]
pub struct IndexSelection {
    /// Indexed by slot.
    pub(super) slots: FixedBitSet,
    len: usize,
}

impl IndexSelection {
    /// Number of rows that take part.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// # Panics
    /// Another state of the index made the selection, where that can be detected.
    pub(super) fn check(&self, index: &Index) {
        assert_eq!(self.slots.len(), index.live.len(), "a selection belongs to the index that made it");
    }
}

/// What the kinematic gate needs to know of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sighting {
    pub row: RowId,
    pub vessel: VesselNumber,
    pub observed_at: Option<Time>,
    pub position: Option<Position>,
    pub scene: Option<SceneNumber>,
    pub detection: Option<DetectionHash>,
}

/// Bits in a word of a set of slots.
const WORD: usize = usize::BITS as usize;

impl Index {
    /// The rows that `filter` admits. `listed` are the rows of `filter.entries` and `excluded` those of
    /// `filter.excluded_entries`, since an index does not know ids; rows that do not exist are skipped.
    ///
    /// # Panics
    /// `filter` names entries and `listed` is `None`.
    pub fn select(&self, filter: &Filter, listed: Option<&[RowId]>, excluded: &[RowId]) -> IndexSelection {
        assert!(listed.is_some() || filter.entries.is_empty(), "an index knows rows, not ids");
        let mut slots = match listed {
            None => self.live.clone(),
            Some(rows) => {
                let mut slots = FixedBitSet::with_capacity(self.live.len());
                rows.iter().filter_map(|row| self.slot(*row)).for_each(|slot| slots.insert(slot));
                slots
            }
        };
        let wanted = Wanted::new(filter, &self.names());
        for (words, segment) in slots.as_mut_slice().chunks_mut(ROWS / WORD).zip(&self.segments) {
            wanted.keep(words, segment.columns());
        }
        excluded.iter().filter_map(|row| self.slot(*row)).for_each(|slot| slots.remove(slot));
        let len = slots.count_ones(..);
        IndexSelection { slots, len }
    }

    /// Whether a row is selected.
    pub fn is_selected(&self, selection: &IndexSelection, row: RowId) -> bool {
        selection.check(self);
        self.slot(row).is_some_and(|slot| selection.slots.contains(slot))
    }

    /// Selected rows, ascending.
    pub fn rows<'a>(&'a self, selection: &'a IndexSelection) -> impl Iterator<Item = RowId> + 'a {
        self.rows_after(selection, None)
    }

    /// Selected rows above `after`, ascending.
    pub fn rows_after<'a>(
        &'a self,
        selection: &'a IndexSelection,
        after: Option<RowId>,
    ) -> impl Iterator<Item = RowId> + 'a {
        selection.check(self);
        // Skips whole segments without looking at their rows.
        let is_before = |segment: &Segment| segment.columns().rows.last() <= after.as_ref();
        let first = after.map_or(0, |_| self.segments.partition_point(is_before)) * ROWS;
        let words = selection.slots.as_slice()[first / WORD..].iter().enumerate();
        let slots = words.filter(|(_, word)| **word != 0).flat_map(move |(at, word)| {
            let slots = (0..WORD).filter(move |bit| word >> bit & 1 == 1);
            slots.map(move |bit| first + at * WORD + bit)
        });
        let row = |slot: usize| self.segments[slot / ROWS].columns().rows[slot % ROWS];
        slots.map(row).skip_while(move |row| after.is_some_and(|after| *row <= after))
    }

    /// Selected rows with what the kinematic gate needs, ascending.
    pub fn sightings<'a>(&'a self, selection: &'a IndexSelection) -> impl Iterator<Item = Sighting> + 'a {
        self.selected(selection).map(|slot| {
            let (columns, at) = (self.segments[slot / ROWS].columns(), slot % ROWS);
            Sighting {
                row: columns.rows[at],
                vessel: VesselNumber::of(columns.vessels[at], slot),
                observed_at: columns.times[at],
                position: columns.positions[at],
                scene: columns.scenes[at],
                detection: columns.detections[at],
            }
        })
    }

    /// Slots of selected rows, ascending.
    pub(super) fn selected<'a>(&self, selection: &'a IndexSelection) -> impl Iterator<Item = usize> + 'a {
        selection.check(self);
        selection.slots.ones()
    }
}

/// A filter in the numbers of an index; `None` means no condition.
struct Wanted<'f> {
    filter: &'f Filter,
    vessels: Option<FixedBitSet>,
    label_sets: Option<FixedBitSet>,
    excluded_vessels: Option<FixedBitSet>,
    excluded_label_sets: Option<FixedBitSet>,
}

impl<'f> Wanted<'f> {
    fn new(filter: &'f Filter, names: &Names) -> Self {
        let numbers = |ids: &[VesselId]| -> FixedBitSet {
            let known = ids.iter().filter_map(|id| names.known_vessel(id));
            known.map(|vessel| vessel.number() as usize).collect()
        };
        let label_sets = || names.label_sets_with(&filter.labels);
        let with_any = || {
            let mut any = FixedBitSet::new();
            filter.excluded_labels.chunks(1).for_each(|label| any.union_with(&names.label_sets_with(label)));
            any
        };
        Self {
            filter,
            vessels: (!filter.vessels.is_empty()).then(|| numbers(&filter.vessels)),
            label_sets: (!filter.labels.is_empty()).then(label_sets),
            excluded_vessels: (!filter.excluded_vessels.is_empty())
                .then(|| numbers(&filter.excluded_vessels)),
            excluded_label_sets: (!filter.excluded_labels.is_empty()).then(with_any),
        }
    }

    /// Clears the bits of a segment's rows that the filter does not admit.
    fn keep(&self, words: &mut [usize], columns: &Columns) {
        let filter = self.filter;
        if !filter.modalities.is_empty() {
            keep(words, &columns.modalities, |modality| filter.modalities.contains(modality));
        }
        if let Some(range) = filter.time_range {
            keep(words, &columns.times, |time| time.is_some_and(|time| range.contains(time)));
        }
        if let Some(vessels) = &self.vessels {
            keep(words, &columns.vessels, |vessel| {
                vessel.is_some_and(|vessel| vessels.contains(vessel.number() as usize))
            });
        }
        if filter.is_unnamed {
            keep(words, &columns.vessels, Option::is_none);
        }
        if let Some(excluded) = &self.excluded_vessels {
            keep(words, &columns.vessels, |vessel| {
                vessel.is_none_or(|vessel| !excluded.contains(vessel.number() as usize))
            });
        }
        if let Some(excluded) = &self.excluded_label_sets {
            keep(words, &columns.labels, |set| !excluded.contains(set.number()));
        }
        if let Some(sets) = &self.label_sets {
            keep(words, &columns.labels, |set| sets.contains(set.number()));
        }
        if let Some(area) = filter.area {
            keep(words, &columns.positions, |place| place.as_ref().is_some_and(|place| area.contains(place)));
        }
    }
}

/// Clears the bits of the rows for which the condition does not hold.
fn keep<T>(words: &mut [usize], column: &[T], holds: impl Fn(&T) -> bool) {
    for (word, values) in words.iter_mut().zip(column.chunks(WORD)) {
        if *word != 0 {
            // Without a branch on the value, which would be unpredictable.
            let bit = |(at, value)| usize::from(holds(value)) << at;
            *word &= values.iter().enumerate().map(bit).fold(0, |bits, bit| bits | bit);
        }
    }
}
