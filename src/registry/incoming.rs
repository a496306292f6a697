//! A model that is being received: a file of its own that is gone when it is not wanted any more.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Receiving, RegistryError, at};

/// The folder's name in the registry's folder.
pub(super) const FOLDER: &str = "incoming";
/// Models that may be received at once.
const INCOMING_MAX: u64 = 4;

/// A file that grows, within what the registry's limit leaves.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: RemovedFile,
    share: Share,
    bytes_max: u64,
    stored: u64,
}

/// A file that is removed with this.
#[derive(Debug)]
struct RemovedFile(PathBuf);

/// What one call has of all that is received.
#[derive(Debug)]
struct Share {
    of: Arc<Receiving>,
    bytes: u64,
}

/// Removes what was being received when an earlier process ended.
pub(super) fn clear(folder: &Path) -> Result<(), RegistryError> {
    let folder = folder.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(at(&folder))?;
    }
    fs::create_dir(&folder).map_err(at(&folder))
}

impl Incoming {
    pub(super) fn begin(
        folder: &Path,
        of: &Arc<Receiving>,
        bytes_max: u64,
        stored: u64,
    ) -> Result<Self, RegistryError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let share = Share::take(of)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(FOLDER).join(number.to_string());
        let file = File::create_new(&path).map_err(at(&path))?;
        Ok(Self { file, path: RemovedFile(path), share, bytes_max, stored })
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// All that is stored and received would exceed the limit, or the disk is full.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), RegistryError> {
        self.share.grow(piece.len() as u64, self.stored, self.bytes_max)?;
        self.file.write_all(piece).map_err(at(&self.path.0))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path.0
    }
}

impl Drop for RemovedFile {
    fn drop(&mut self) {
        // What cannot be removed now is removed at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

impl Share {
    fn take(of: &Arc<Receiving>) -> Result<Self, RegistryError> {
        let grow = |count: u64| (count < INCOMING_MAX).then_some(count + 1);
        match of.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow) {
            Ok(_) => Ok(Self { of: Arc::clone(of), bytes: 0 }),
            Err(_) => Err(RegistryError::TooManyIncoming { limit: INCOMING_MAX as usize }),
        }
    }

    fn grow(&mut self, bytes: u64, stored: u64, limit: u64) -> Result<(), RegistryError> {
        let grow = |all: u64| all.checked_add(bytes).filter(|all| stored.saturating_add(*all) <= limit);
        match self.of.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow) {
            Ok(_) => {
                self.bytes += bytes;
                Ok(())
            }
            Err(others) => Err(RegistryError::TooLarge { bytes, used: stored.saturating_add(others), limit }),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.count.fetch_sub(1, Ordering::AcqRel);
        self.of.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
