//! How much a tenant may store.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::gallery::store::StoreError;

/// What the files of an almost empty gallery may take.
const FILE_BYTES: u64 = 16 << 20;
/// What files may take for each stored byte: pages are not always full, and files grow in steps.
const FILE_FACTOR: u64 = 4;

/// Bytes that the files of a gallery may take without counting against the limit.
pub(crate) fn explained(stored: u64) -> u64 {
    stored.saturating_mul(FILE_FACTOR).saturating_add(FILE_BYTES)
}

/// Bytes of a gallery's files that count against the limit in addition to what it stores: readers of old states, or
/// deleted data, occupy them.
pub(crate) fn excess(stored: u64, files: u64) -> u64 {
    files.saturating_sub(explained(stored))
}

/// The bytes of one tenant, shared by the writers of its galleries. It is not a `Budget` with permits, since stored
/// data has no guard that could give it back, and may exceed a limit that was higher once.
#[derive(Debug)]
pub(crate) struct Allowance {
    used: AtomicU64,
    limit: u64,
}

impl Allowance {
    pub fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit }
    }

    /// Takes `bytes` of what is left.
    ///
    /// # Errors
    /// Fewer bytes are left.
    pub fn take(&self, bytes: u64) -> Result<(), StoreError> {
        let taken = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        let update = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        update.map(|_| ()).map_err(|_| StoreError::BytesFull { limit: self.limit })
    }

    /// Checks that `bytes` are left, without taking them.
    ///
    /// # Errors
    /// Fewer bytes are left.
    pub fn check(&self, bytes: u64) -> Result<(), StoreError> {
        let used = self.used.load(Ordering::Relaxed);
        let fits = used.checked_add(bytes).is_some_and(|used| used <= self.limit);
        if fits { Ok(()) } else { Err(StoreError::BytesFull { limit: self.limit }) }
    }

    /// Counts what is already stored, even beyond the limit.
    pub fn count(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back what was taken or counted.
    pub fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
