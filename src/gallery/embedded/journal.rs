//! Galleries whose files are a copy of something that several servers share: every commit is made there first, and what
//! other servers committed is taken in.

use std::collections::BTreeMap;
use std::fmt;

use super::record::StateRecord;
use crate::gallery::index::RowId;
use crate::gallery::store::{About, StoreError};

/// The truth that a gallery's files are a copy of. Methods wait for it on the calling thread.
pub trait Journal: fmt::Debug + Send {
    /// Locks the gallery for the next commit, and returns what others have committed since `known`. Nobody else
    /// commits until [`commit`](Self::commit) or [`release`](Self::release).
    ///
    /// # Errors
    /// The truth cannot be reached, or `known` is too old to be brought up to date.
    fn lock(&mut self, known: &Known) -> Result<Option<Delta>, StoreError>;

    /// Commits what follows upon the state that [`lock`](Self::lock) returned, and unlocks the gallery. Once this
    /// returns without an error, every server will see it.
    ///
    /// # Errors
    /// It was not committed, or nobody knows whether it was: the next [`lock`](Self::lock) tells.
    fn commit(&mut self, delta: &Delta) -> Result<(), StoreError>;

    /// Unlocks the gallery without a commit.
    fn release(&mut self);

    /// What others have committed since `known`, without locking anything.
    ///
    /// # Errors
    /// See [`lock`](Self::lock).
    fn fetch(&mut self, known: &Known) -> Result<Option<Delta>, StoreError>;
}

/// The state of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub commit: u64,
    pub committed_at: i64,
    pub next_row: u64,
    pub generation: u64,
    pub shadow: Option<u64>,
}

impl Known {
    pub fn new(about: &About, state: &StateRecord) -> Self {
        Self {
            commit: state.commit,
            committed_at: state.committed_at,
            next_row: state.next_row,
            generation: about.generation,
            shadow: about.shadow.map(|shadow| shadow.generation),
        }
    }

    /// Whether the copy has vectors of a generation.
    pub fn has(&self, generation: u64) -> bool {
        self.generation == generation || self.shadow == Some(generation)
    }
}

/// What one or more commits changed, and the state after them.
#[derive(Clone, Debug)]
pub struct Delta {
    pub effects: Effects,
    pub about: About,
    pub state: StateRecord,
    pub entries: u64,
}

/// Changes of rows. Removals come first.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    pub removed: Vec<RowId>,
    pub inserted: BTreeMap<RowId, Inserted>,
    /// Sealed records of rows that were there before.
    pub rewritten: BTreeMap<RowId, Vec<u8>>,
    /// Sealed vectors, by row and generation.
    pub vectors: BTreeMap<(RowId, u64), Vec<u8>>,
}

/// A new row.
#[derive(Clone, Debug)]
pub struct Inserted {
    /// A sealed [`RowRecord`](super::record::RowRecord).
    pub record: Vec<u8>,
    /// A sealed [`ChipRecord`](crate::gallery::record::ChipRecord).
    pub chip: Option<Vec<u8>>,
}

impl Effects {
    pub fn is_empty(&self) -> bool {
        let Self { removed, inserted, rewritten, vectors } = self;
        removed.is_empty() && inserted.is_empty() && rewritten.is_empty() && vectors.is_empty()
    }

    pub fn insert(&mut self, row: RowId, record: &[u8], chip: Option<&[u8]>) {
        self.inserted.insert(row, Inserted { record: record.to_vec(), chip: chip.map(<[u8]>::to_vec) });
    }

    pub fn rewrite(&mut self, row: RowId, record: &[u8]) {
        match self.inserted.get_mut(&row) {
            Some(inserted) => inserted.record = record.to_vec(),
            None => drop(self.rewritten.insert(row, record.to_vec())),
        }
    }

    /// A row that came with the same commit leaves no trace.
    pub fn remove(&mut self, row: RowId) {
        self.rewritten.remove(&row);
        let of_row: Vec<_> = self.vectors.range((row, 0)..=(row, u64::MAX)).map(|(key, _)| *key).collect();
        for key in of_row {
            self.vectors.remove(&key);
        }
        if self.inserted.remove(&row).is_none() {
            self.removed.push(row);
        }
    }

    pub fn add_vector(&mut self, generation: u64, row: RowId, vector: &[u8]) {
        self.vectors.insert((row, generation), vector.to_vec());
    }
}
