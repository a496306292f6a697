//! A model that is being received, in a temporary file of its own.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{RegistryError, at};
use crate::budget::{Budget, Permit};

/// The folder's name in the registry's folder.
pub(super) const FOLDER: &str = "incoming";
/// Models that may be received at once.
const INCOMING_MAX: u64 = 4;

/// A growing file, limited by what the registry's limit leaves.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: RemovedFile,
    _place: Permit,
    bytes: Permit,
    bytes_max: u64,
    stored: u64,
}

/// The total of what all calls are receiving.
#[derive(Debug)]
pub(super) struct Receiving {
    models: Budget,
    /// In addition to what is stored.
    bytes: Budget,
    bytes_max: u64,
}

/// A file that is removed when this is dropped.
#[derive(Debug)]
struct RemovedFile(PathBuf);

/// Removes what was being received when an earlier process ended.
pub(super) fn clear(folder: &Path) -> Result<(), RegistryError> {
    let folder = folder.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(at(&folder))?;
    }
    fs::create_dir(&folder).map_err(at(&folder))
}

impl Receiving {
    /// `bytes_max` applies to stored and received models together.
    pub fn new(bytes_max: u64) -> Self {
        Self { models: Budget::new(INCOMING_MAX), bytes: Budget::new(bytes_max), bytes_max }
    }

    /// Creates a file in `folder` for one more model, next to `stored` bytes of others.
    ///
    /// # Errors
    /// Too many are being received already, or the file cannot be created.
    pub fn begin(&self, folder: &Path, stored: u64) -> Result<Incoming, RegistryError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let too_many = |_| RegistryError::TooManyIncoming { limit: INCOMING_MAX as usize };
        let place = self.models.take(1).map_err(too_many)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(FOLDER).join(number.to_string());
        let file = File::create_new(&path).map_err(at(&path))?;
        Ok(Incoming {
            file,
            path: RemovedFile(path),
            _place: place,
            bytes: self.bytes.permit(),
            bytes_max: self.bytes_max,
            stored,
        })
    }
}

impl Incoming {
    /// Appends the next piece.
    ///
    /// # Errors
    /// All that is stored and received would exceed the limit, or the disk is full.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), RegistryError> {
        let (bytes, stored, limit) = (piece.len() as u64, self.stored, self.bytes_max);
        self.bytes.grow_within(bytes, limit.saturating_sub(stored)).map_err(|full| {
            let used = stored.saturating_add(full.held);
            RegistryError::TooLarge { bytes, used, limit }
        })?;
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
