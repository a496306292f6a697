//! A storage backend that stops writing at the first failure and continues in memory.
//!
//! Once its backend has failed, redb answers nothing any more, not even reads of earlier commits. This backend
//! therefore hides failed writes from it: it seals the file at once and keeps later writes in memory. Code that commits
//! must ask [`Health`] before it relies on durability.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::{BackendError, StorageBackend};

const BLOCK: usize = 4096;

/// Whether everything that was written has reached the file.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<State>);

#[derive(Debug, Default)]
struct State {
    failure: OnceLock<WriteFailure>,
    bytes: AtomicU64,
}

/// Why a file is no longer written to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct WriteFailure {
    pub reason: String,
    /// Whether the cause is a lack of room, which may pass.
    pub is_full: bool,
}

impl Health {
    /// Why the file is no longer written to.
    pub fn failure(&self) -> Option<&WriteFailure> {
        self.0.failure.get()
    }

    /// Size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    fn fail(&self, failure: WriteFailure) {
        // The first failure is the cause of the later ones.
        let _ = self.0.failure.set(failure);
    }

    fn set_bytes(&self, bytes: u64) {
        self.0.bytes.store(bytes, Ordering::Relaxed);
    }
}

/// Whether an operation failed for lack of room, either on the disk or within its owner's allowance.
pub fn is_full(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A file that is sealed when a write to it fails.
#[derive(Debug)]
pub(super) struct Shield {
    inner: Box<dyn StorageBackend>,
    name: String,
    health: Health,
    sealed: RwLock<Option<Overlay>>,
}

/// What was written after the file was sealed.
#[derive(Debug)]
struct Overlay {
    len: u64,
    /// The valid length of the file; the file itself may be longer.
    valid: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl Shield {
    pub fn new(inner: Box<dyn StorageBackend>, name: &str, health: Health) -> Self {
        // A file whose length is unknown is refused when it is read.
        health.set_bytes(inner.len().unwrap_or(0));
        Self { inner, name: name.to_owned(), health, sealed: RwLock::new(None) }
    }

    /// Writes through `attempt`, or into memory where that fails or the file is already sealed.
    fn write_or_seal(
        &self,
        doing: &str,
        attempt: impl FnOnce() -> io::Result<()>,
        instead: impl FnOnce(&mut Overlay, &dyn StorageBackend) -> io::Result<()>,
    ) -> io::Result<()> {
        let sealed = self.read_sealed();
        if sealed.is_none() {
            let Err(cause) = attempt() else { return Ok(()) };
            let reason = format!("{doing} {}: {cause}", self.name);
            self.health.fail(WriteFailure { reason, is_full: is_full(&cause) });
        }
        drop(sealed);
        let mut sealed = self.write_sealed();
        let overlay = match sealed.take() {
            Some(overlay) => overlay,
            None => Overlay::new(self.inner.len()?),
        };
        instead(sealed.insert(overlay), &*self.inner)
    }

    fn read_sealed(&self) -> RwLockReadGuard<'_, Option<Overlay>> {
        self.sealed.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_sealed(&self) -> RwLockWriteGuard<'_, Option<Overlay>> {
        self.sealed.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for Shield {
    fn len(&self) -> io::Result<u64> {
        match &*self.read_sealed() {
            Some(overlay) => Ok(overlay.len),
            None => self.inner.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.read_sealed() {
            Some(overlay) => overlay.read(&*self.inner, offset, out),
            None => self.inner.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write_or_seal(
            "resizing",
            || {
                self.inner.set_len(len)?;
                self.health.set_bytes(len);
                Ok(())
            },
            |overlay, _| {
                overlay.set_len(len);
                Ok(())
            },
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.write_or_seal("syncing", || self.inner.sync_data(), |_, _| Ok(()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_or_seal(
            "writing",
            || self.inner.write(offset, data),
            |overlay, inner| overlay.write(inner, offset, data),
        )
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

impl Overlay {
    fn new(len: u64) -> Self {
        Self { len, valid: len, blocks: BTreeMap::new() }
    }

    fn set_len(&mut self, len: u64) {
        self.valid = self.valid.min(len);
        if len < self.len {
            let last = len / BLOCK as u64;
            self.blocks.retain(|block, _| *block <= last);
            if let Some(block) = self.blocks.get_mut(&last) {
                block[(len % BLOCK as u64) as usize..].fill(0);
            }
        }
        self.len = len;
    }

    fn read(&self, inner: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check(offset, out.len())?;
        for (block, within, part) in pieces(offset, out.len()) {
            let out = &mut out[part.clone()];
            match self.blocks.get(&block) {
                Some(bytes) => out.copy_from_slice(&bytes[within..][..out.len()]),
                None => self.read_file(inner, offset + part.start as u64, out)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, inner: &dyn StorageBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len())?;
        for (block, within, part) in pieces(offset, data.len()) {
            let data = &data[part];
            if !self.blocks.contains_key(&block) {
                let mut bytes = Box::new([0; BLOCK]);
                self.read_file(inner, block * BLOCK as u64, &mut bytes[..])?;
                self.blocks.insert(block, bytes);
            }
            if let Some(bytes) = self.blocks.get_mut(&block) {
                bytes[within..][..data.len()].copy_from_slice(data);
            }
        }
        Ok(())
    }

    /// The content of the file at `offset`, with zeros after its valid length.
    fn read_file(&self, inner: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = self.valid.saturating_sub(offset).min(out.len() as u64) as usize;
        let (in_file, behind) = out.split_at_mut(there);
        behind.fill(0);
        if in_file.is_empty() { Ok(()) } else { inner.read(offset, in_file) }
    }

    fn check(&self, offset: u64, bytes: usize) -> io::Result<()> {
        let inside = offset.checked_add(bytes as u64).is_some_and(|end| end <= self.len);
        if inside { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The blocks that a range touches: the number, the start within the block, and the part of the range that lies in it.
fn pieces(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % BLOCK as u64) as usize;
        let part = done..bytes.min(done + BLOCK - within);
        done = part.end;
        (!part.is_empty()).then_some((at / BLOCK as u64, within, part))
    })
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use redb::backends::InMemoryBackend;

    use super::*;

    /// Memory whose writes fail from the n-th on.
    #[derive(Debug)]
    struct Failing {
        memory: InMemoryBackend,
        left: std::sync::atomic::AtomicUsize,
    }

    impl Failing {
        fn spend(&self) -> io::Result<()> {
            use std::sync::atomic::Ordering::Relaxed;
            let spent = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
            spent.map(|_| ()).map_err(|_| io::ErrorKind::StorageFull.into())
        }
    }

    impl StorageBackend for Failing {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.spend()?;
            self.memory.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.spend()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.spend()?;
            self.memory.write(offset, data)
        }
    }

    #[test]
    fn whoever_reads_does_not_notice_where_the_file_was_sealed() {
        for seed in 0..200 {
            let random = &mut ChaCha8Rng::seed_from_u64(seed);
            let left = random.random_range(0..30);
            let inner = Failing { memory: InMemoryBackend::new(), left: left.into() };
            let health = Health::default();
            let shield = Shield::new(Box::new(inner), "x.redb", health.clone());
            let mut expected: Vec<u8> = Vec::new();
            for step in 0..40 {
                if expected.is_empty() || random.random_bool(0.3) {
                    expected.resize(random.random_range(0..30_000), 0);
                    shield.set_len(expected.len() as u64).expect("never fails");
                } else {
                    let start = random.random_range(0..expected.len());
                    let end = random.random_range(start..expected.len().min(start + 9000));
                    expected[start..end].fill(step);
                    shield.write(start as u64, &expected[start..end]).expect("never fails");
                }
                let mut read = vec![9; expected.len()];
                shield.read(0, &mut read).expect("readable");
                assert!(read == expected, "seed {seed}, step {step}");
                assert_eq!(shield.len().expect("known"), expected.len() as u64);
            }
            let failure = health.failure().expect("every file was sealed");
            assert!(failure.is_full && failure.reason.ends_with("x.redb: no storage space"), "{failure}");
        }
    }
}
