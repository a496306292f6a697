//! A checksum of entry ids, since an index does not have them.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::RowId;
use crate::gallery::entry::EntryId;

/// An order-independent checksum of ids with their rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdSum {
    pub(super) count: u64,
    pub(super) sum: u64,
}

impl IdSum {
    pub fn add(&mut self, id: &str, row: RowId) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash(id, row));
    }

    /// Takes out what was added.
    pub(super) fn take(&mut self, id: &EntryId, row: RowId) {
        self.count -= 1;
        self.sum = self.sum.wrapping_sub(hash(id.as_str(), row));
    }
}

fn hash(id: &str, row: RowId) -> u64 {
    let mut hasher = DefaultHasher::new();
    (id, row.0).hash(&mut hasher);
    hasher.finish()
}
