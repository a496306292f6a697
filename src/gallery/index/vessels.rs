//! Vessels within one index: their numbers, sets of them, and how many entries show each.

use std::sync::Arc;

use fixedbitset::FixedBitSet;

use super::names::NamedVessel;

/// A vessel of one [`Index`](super::Index). Other states of the index may give the number to another vessel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VesselNumber(u32);

/// Marks vessels that are a single entry without vessel id; the other bits are the entry's slot.
const OWN: u32 = 1 << 31;

impl VesselNumber {
    /// The vessel of the entry in `slot`.
    pub(super) fn of(named: Option<NamedVessel>, slot: usize) -> Self {
        // Does not overflow: an index of two thousand million rows would take terabytes.
        Self(named.map_or(slot as u32 | OWN, NamedVessel::number))
    }

    /// `None` for an entry without vessel id.
    pub(super) fn named(self) -> Option<u32> {
        (self.0 & OWN == 0).then_some(self.0)
    }

    pub(super) fn raw(self) -> u32 {
        self.0
    }
}

/// A set of vessels of one index.
#[derive(Clone, Debug, Default)]
pub struct VesselSet {
    named: FixedBitSet,
    own: FixedBitSet,
}

impl VesselSet {
    pub fn insert(&mut self, vessel: VesselNumber) {
        let (set, number) =
            if vessel.0 & OWN == 0 { (&mut self.named, vessel.0) } else { (&mut self.own, vessel.0 ^ OWN) };
        set.grow_and_insert(number as usize);
    }

    pub fn contains(&self, vessel: VesselNumber) -> bool {
        match vessel.named() {
            Some(number) => self.named.contains(number as usize),
            None => self.own.contains((vessel.0 ^ OWN) as usize),
        }
    }

    /// Number of vessels in the set.
    pub fn len(&self) -> usize {
        self.named.count_ones(..) + self.own.count_ones(..)
    }

    pub fn is_empty(&self) -> bool {
        self.named.is_clear() && self.own.is_clear()
    }
}

impl FromIterator<VesselNumber> for VesselSet {
    fn from_iter<I: IntoIterator<Item = VesselNumber>>(vessels: I) -> Self {
        let mut set = Self::default();
        vessels.into_iter().for_each(|vessel| set.insert(vessel));
        set
    }
}

/// Counts that are copied together when one of them changes.
const SHARED: usize = 1024;

/// How many entries show each named vessel.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    counts: Vec<Arc<[u32; SHARED]>>,
    /// Vessels with an entry.
    shown: usize,
}

impl Tally {
    pub fn shown(&self) -> usize {
        self.shown
    }

    pub fn count(&self, named: u32) -> u32 {
        let number = named as usize;
        self.counts.get(number / SHARED).map_or(0, |counts| counts[number % SHARED])
    }

    pub fn add(&mut self, vessel: NamedVessel) {
        let number = vessel.number() as usize;
        if self.counts.len() <= number / SHARED {
            self.counts.resize_with(number / SHARED + 1, || Arc::new([0; SHARED]));
        }
        let count = &mut Arc::make_mut(&mut self.counts[number / SHARED])[number % SHARED];
        *count += 1;
        self.shown += usize::from(*count == 1);
    }

    /// Removes one entry that was added.
    pub fn take(&mut self, vessel: NamedVessel) {
        let number = vessel.number() as usize;
        let count = &mut Arc::make_mut(&mut self.counts[number / SHARED])[number % SHARED];
        *count -= 1;
        self.shown -= usize::from(*count == 0);
    }
}
