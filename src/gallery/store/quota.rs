//! How much a tenant may store.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::StoreError;

/// Bounds on what is stored.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    pub galleries_per_tenant: usize,
    pub entries_per_gallery: u64,
    /// Of entries, embeddings and chips.
    pub bytes_per_tenant: u64,
}

/// The bytes of one tenant, shared by the writers of its galleries.
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
    /// As much is not left.
    pub fn take(&self, bytes: u64) -> Result<(), StoreError> {
        let taken = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        let update = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        update.map(|_| ()).map_err(|_| StoreError::BytesFull { limit: self.limit })
    }

    /// Counts what is stored already, even beyond the limit, which may have been higher once.
    pub fn count(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back what was taken or counted.
    pub fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
