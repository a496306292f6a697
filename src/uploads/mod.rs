//! Files that callers send in chunks, kept on disk until they are imported, deleted or expired.
//!
//! The folder contains a folder for each tenant, with one for each of its uploads. This code blocks on the disk, except
//! where a method says otherwise.

mod error;
mod id;
mod room;
mod staged;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

pub use error::{Scope, UploadError};
pub use id::UploadId;
pub use room::UploadBounds;
pub use staged::Contents;

use crate::durable::{DirectoryLock, discard_folder, ensure_folder, remove_partial, tenant_folder};
use crate::metrics;
use error::at;
use room::{Held, Room};
use staged::Staged;

/// The longest that an expired upload keeps its place.
const SWEEP_PAUSE: Duration = Duration::from_secs(60);

/// Limits of all uploads of a server.
#[derive(Clone, Copy, Debug)]
pub struct UploadLimits {
    pub bounds: UploadBounds,
    /// An upload to which nothing is appended for this long expires.
    pub idle_max: Duration,
}

/// The uploads of one folder, which no other process uses meanwhile. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Uploads(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// `None` once the uploads are closed.
    lock: Mutex<Option<DirectoryLock>>,
    idle_max: Duration,
    room: Room,
    uploads: Mutex<BTreeMap<Key, Upload>>,
}

/// The tenant's folder and the upload's id.
type Key = (Arc<str>, UploadId);

#[derive(Debug)]
struct Upload {
    /// As of its last change, for those who do not wait for one.
    size: u64,
    expires: Instant,
    content: Arc<tokio::sync::Mutex<Content>>,
}

#[derive(Debug)]
struct Content {
    staged: Staged,
    held: Held,
}

/// An upload as callers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadInfo {
    pub id: UploadId,
    /// Bytes that are stored.
    pub size: u64,
    pub expires_at: SystemTime,
}

/// A page of the list of uploads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadListing {
    /// Oldest first.
    pub uploads: Vec<UploadInfo>,
    /// Where the next page begins, `None` on the last one.
    pub next: Option<UploadId>,
}

/// An upload that nobody else changes, imports or deletes meanwhile.
#[derive(Debug)]
pub struct UploadLease {
    uploads: Uploads,
    key: Key,
    content: OwnedMutexGuard<Content>,
}

/// Why an upload is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadEnd {
    Imported,
    Deleted,
    Expired,
}

impl UploadEnd {
    /// The label in metrics.
    fn label(self) -> &'static str {
        match self {
            Self::Imported => "imported",
            Self::Deleted => "deleted",
            Self::Expired => "expired",
        }
    }
}

impl Uploads {
    /// Opens the folder `root`, creating it if needed, with the uploads that an earlier process has left. One that
    /// cannot be read is kept, and not served.
    ///
    /// # Errors
    /// Another process uses the folder, or it cannot be used.
    pub fn open(root: &Path, limits: UploadLimits) -> Result<Self, UploadError> {
        fs::create_dir_all(root).map_err(at(root))?;
        let lock = DirectoryLock::acquire(root)?;
        let left = left_behind(root).map_err(at(root))?;
        let room = Room::new(raised(limits.bounds, &left));
        let mut uploads = BTreeMap::new();
        for ((folder, id), staged) in left {
            let mut held = room.place(&folder)?;
            held.resize(staged.disk_bytes_with(0))?;
            let idle = SystemTime::now().duration_since(staged.modified()?).unwrap_or_default();
            let expires = Instant::now() + limits.idle_max.saturating_sub(idle);
            let (size, content) = (staged.size(), Arc::new(Content { staged, held }.into()));
            uploads.insert((folder, id), Upload { size, expires, content });
        }
        Ok(Self(Arc::new(Inner {
            root: root.to_owned(),
            lock: Mutex::new(Some(lock)),
            idle_max: limits.idle_max,
            room,
            uploads: Mutex::new(uploads),
        })))
    }

    /// # Errors
    /// The tenant or the server has as many uploads as it may, or the disk fails.
    pub fn create(&self, tenant: &str) -> Result<UploadInfo, UploadError> {
        let (folder, id) = (tenant_folder(tenant), UploadId::generate());
        let held = self.0.room.place(&folder)?;
        let path = self.0.root.join(&folder);
        ensure_folder(&path).map_err(at(&path))?;
        let staged = Staged::create(&path.join(id.to_string()))?;
        let content = Arc::new(Content { staged, held }.into());
        let upload = Upload { size: 0, expires: Instant::now() + self.0.idle_max, content };
        let info = upload.info(id);
        self.uploads().insert((folder.into(), id), upload);
        Ok(info)
    }

    /// Returns at once.
    ///
    /// # Errors
    /// The tenant has no such upload.
    pub fn get(&self, tenant: &str, id: UploadId) -> Result<UploadInfo, UploadError> {
        let uploads = self.uploads();
        let upload = uploads.get(&key(tenant, id)).filter(|upload| !upload.is_expired());
        upload.map(|upload| upload.info(id)).ok_or(UploadError::NotFound(id))
    }

    /// The tenant's first `size` uploads after `after`. Returns at once.
    pub fn list(&self, tenant: &str, after: Option<UploadId>, size: usize) -> UploadListing {
        let uploads = self.uploads();
        let (first, last) = (key(tenant, UploadId::MIN), key(tenant, UploadId::MAX));
        let from = after.map_or(Bound::Included(first), |after| Bound::Excluded(key(tenant, after)));
        let mut live =
            uploads.range((from, Bound::Included(last))).filter(|(_, upload)| !upload.is_expired());
        let page: Vec<_> = live.by_ref().take(size).map(|((_, id), upload)| upload.info(*id)).collect();
        let next = live.next().and(page.last()).map(|upload| upload.id);
        UploadListing { uploads: page, next }
    }

    /// Takes an upload for oneself. Returns at once.
    ///
    /// # Errors
    /// The tenant has no such upload, or another call has it.
    pub fn lease(&self, tenant: &str, id: UploadId) -> Result<UploadLease, UploadError> {
        let key = key(tenant, id);
        let uploads = self.uploads();
        let upload = uploads.get(&key).filter(|upload| !upload.is_expired());
        let content = Arc::clone(&upload.ok_or(UploadError::NotFound(id))?.content);
        // While `uploads` is locked, so that it is not discarded in between.
        let content = content.try_lock_owned().map_err(|_| UploadError::Busy(id))?;
        drop(uploads);
        Ok(UploadLease { uploads: self.clone(), key, content })
    }

    /// Removes what has expired, again and again.
    pub async fn keep_sweeping(self) {
        loop {
            tokio::time::sleep(SWEEP_PAUSE.min(self.0.idle_max)).await;
            let uploads = self.clone();
            if let Err(cause) = tokio::task::spawn_blocking(move || uploads.sweep()).await {
                tracing::error!(%cause, "removing expired uploads panicked");
            }
        }
    }

    fn sweep(&self) {
        for lease in self.expired() {
            let id = lease.key.1;
            match lease.discard(UploadEnd::Expired) {
                Ok(()) => tracing::info!(upload = %id, "an upload has expired"),
                Err(cause) => tracing::warn!(upload = %id, %cause, "an expired upload cannot be removed now"),
            }
        }
    }

    /// Leases of those that have expired and that no call uses.
    fn expired(&self) -> Vec<UploadLease> {
        let uploads = self.uploads();
        let expired = uploads.iter().filter(|(_, upload)| upload.is_expired());
        let leases = expired.filter_map(|(key, upload)| {
            let content = Arc::clone(&upload.content).try_lock_owned().ok()?;
            Some(UploadLease { uploads: self.clone(), key: key.clone(), content })
        });
        leases.collect()
    }

    /// Releases the folder for other processes; the uploads must not be used afterwards.
    pub fn close(&self) {
        drop(self.0.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn uploads(&self) -> MutexGuard<'_, BTreeMap<Key, Upload>> {
        self.0.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload {
    fn is_expired(&self) -> bool {
        self.expires <= Instant::now()
    }

    fn info(&self, id: UploadId) -> UploadInfo {
        let left = self.expires.saturating_duration_since(Instant::now());
        UploadInfo { id, size: self.size, expires_at: SystemTime::now() + left }
    }
}

impl UploadLease {
    /// Appends a chunk at `offset`, durably. Bytes that are stored already may be repeated.
    ///
    /// # Errors
    /// The chunk is empty, does not begin within the upload or at its end, or differs from stored bytes; the tenant or
    /// the server stores as much as it may, or the disk fails. The upload is then as before.
    pub fn append(&mut self, offset: u64, chunk: &[u8]) -> Result<UploadInfo, UploadError> {
        let Content { staged, held } = &mut *self.content;
        let fresh = staged.fresh(offset, chunk)?;
        if !fresh.is_empty() {
            held.resize(staged.disk_bytes_with(fresh.len()))?;
            let appended = staged.append(fresh);
            // Giving back what was not appended never fails.
            let _ = held.resize(staged.disk_bytes_with(0));
            appended?;
        }
        Ok(self.touch())
    }

    /// Opens the upload for reading from its beginning. If `sha256` is given, the end is reached only if it is that of
    /// all bytes.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn contents(&self, sha256: Option<[u8; 32]>) -> Result<Contents, UploadError> {
        self.touch();
        self.content.staged.contents(sha256)
    }

    /// Removes the upload. It does not return after a power failure.
    ///
    /// # Errors
    /// It cannot be removed; it is then as before.
    pub fn discard(self, end: UploadEnd) -> Result<(), UploadError> {
        let folder = self.content.staged.folder();
        discard_folder(folder).map_err(at(folder))?;
        self.uploads.uploads().remove(&self.key);
        metrics::upload_ended(end.label());
        Ok(())
    }

    /// Postpones its expiry.
    fn touch(&self) -> UploadInfo {
        let mut uploads = self.uploads.uploads();
        let upload = uploads.get_mut(&self.key).expect("whoever has its lease removes it");
        upload.size = self.content.staged.size();
        upload.expires = Instant::now() + self.uploads.0.idle_max;
        upload.info(self.key.1)
    }
}

fn key(tenant: &str, id: UploadId) -> Key {
    (tenant_folder(tenant).into(), id)
}

/// The uploads of an earlier process; what it had created or deleted in part is removed.
fn left_behind(root: &Path) -> io::Result<Vec<(Key, Staged)>> {
    let mut left = Vec::new();
    for tenant in folders(root)? {
        remove_partial(&tenant)?;
        let folder: Arc<str> = tenant.file_name().unwrap_or_default().to_string_lossy().into();
        for path in folders(&tenant)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Ok(id) = name.parse() else { continue };
            match Staged::open(&path) {
                Ok(staged) => left.push(((Arc::clone(&folder), id), staged)),
                Err(cause) => tracing::error!(upload = %id, %cause, "an upload cannot be read; it is kept"),
            }
        }
    }
    Ok(left)
}

fn folders(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(parent)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
}

/// `bounds`, or as much as is there already if that is more: the next start then lowers them.
fn raised(bounds: UploadBounds, left: &[(Key, Staged)]) -> UploadBounds {
    let mut all = UploadBounds { count_max: 0, bytes_max: 0 };
    let mut tenants: BTreeMap<&str, UploadBounds> = BTreeMap::new();
    for ((folder, _), staged) in left {
        let tenant = tenants.entry(folder).or_insert(UploadBounds { count_max: 0, bytes_max: 0 });
        for sum in [&mut all, tenant] {
            sum.count_max += 1;
            sum.bytes_max += staged.disk_bytes_with(0);
        }
    }
    let largest = |of: fn(&UploadBounds) -> u64| {
        let tenant = tenants.values().map(of).max().unwrap_or(0);
        of(&all).max(2 * tenant).max(of(&bounds))
    };
    UploadBounds { count_max: largest(|sum| sum.count_max), bytes_max: largest(|sum| sum.bytes_max) }
}
