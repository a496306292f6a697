//! All galleries of a data directory, by tenant and name.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

mod import;
mod names;

pub use import::{Import, ImportError};
pub use names::{GalleryName, NameError};

use names::tenant_folder;

use super::embedded::builder::{GalleryBuildError, GalleryBuilder};
use super::embedded::quota::Allowance;
use super::embedded::writer::{Bounds, Writer};
use super::embedded::{EmbeddedGallery, OpenError, QueueSettings, Quotas};
use super::entry::Time;
use super::store::{About, Gallery, GalleryStore, StoreError};
use crate::budget::Budget;
use crate::durable::{
    DatabaseError, DirectoryLock, Folder, LockError, PartialFolder, discard_folder, is_full, remove_partial,
};
use crate::embedding::ModelDigest;
use crate::reason::Reason;

/// How galleries are run.
#[derive(Clone, Copy, Debug)]
pub struct CatalogSettings {
    /// Memory that a database file may take for its pages; a gallery with chips has two.
    pub cache_bytes: usize,
    pub queue: QueueSettings,
    pub quotas: Quotas,
    /// Bytes of an image that a chip of an imported entry may have.
    pub image_bytes_max: usize,
    /// Memory for records of imports that have not come whole yet; a tenant's imports may take half of it.
    pub import_bytes_max: usize,
}

/// The galleries of one data directory, which nobody else may use meanwhile. Cloning it is cheap.
///
/// Every method but [`get`](Self::get), [`list`](Self::list) and [`census`](Self::census) waits for the disk, so none is for an async task.
#[derive(Clone, Debug)]
pub struct Catalog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    settings: CatalogSettings,
    /// Bytes of records, over all imports, that have not come whole yet.
    import_memory: Budget,
    /// By folder.
    tenants: RwLock<BTreeMap<String, Tenant>>,
    /// Held by whoever makes or removes a gallery.
    changing: Mutex<()>,
    /// Given back when the catalog is closed.
    lock: Mutex<Option<DirectoryLock>>,
}

#[derive(Debug)]
struct Tenant {
    allowance: Arc<Allowance>,
    /// Its part of that, half of all.
    import_memory: Budget,
    galleries: BTreeMap<GalleryName, Opened>,
}

/// Where a gallery is: the folder of its tenant, and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub tenant: Arc<str>,
    pub name: GalleryName,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

/// A gallery, or why it is not served.
pub type Slot = Result<Gallery, Arc<OpenError>>;
/// The same with what only its catalog may do to it.
type Opened = Result<Arc<EmbeddedGallery>, Arc<OpenError>>;

/// What a new gallery is made for.
#[derive(Clone, Copy, Debug)]
pub struct NewGallery {
    pub model: ModelDigest,
    pub dimension: usize,
    /// Whether source chips are kept, so that the gallery can follow a new model.
    pub keeps_chips: bool,
}

/// A part of the list of galleries.
#[derive(Clone, Debug)]
pub struct Listing {
    /// By name.
    pub galleries: Vec<(GalleryName, Slot)>,
    /// Where the next part begins, unless this is the last one.
    pub next: Option<GalleryName>,
}

/// The galleries of all tenants together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub writable: usize,
    /// Their disk failed.
    pub read_only: usize,
    /// They cannot be opened.
    pub refused: usize,
    pub entries: u64,
    /// Of entries, embeddings and kept chips.
    pub bytes: u64,
}

/// Why there is no such gallery.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("there is no gallery \"{0}\"")]
    NotFound(GalleryName),
    #[error("there is a gallery \"{0}\" already")]
    Exists(GalleryName),
    #[error("the tenant has {limit} galleries, which is the limit")]
    GalleriesFull { limit: usize },
    #[error("imports are holding {limit} bytes of records that have not come whole, which is the limit")]
    ImportsFull { limit: u64 },
    #[error("gallery \"{name}\" is not served: {cause}; {}", way_out(.cause))]
    Refused { name: GalleryName, cause: Arc<OpenError> },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the disk of the galleries has no room left")]
    DiskFull,
    #[error("the data directory cannot be used: {0}")]
    Io(Arc<io::Error>),
}

/// Why the data directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum CatalogOpenError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
}

fn way_out(cause: &OpenError) -> &'static str {
    match cause {
        OpenError::Newer { .. } => "start the program that wrote it, or delete the gallery",
        OpenError::Damaged { .. } => "restore the file from a copy and start again, or delete the gallery",
        OpenError::Io { .. } => "make the file readable and start again, or delete the gallery",
    }
}

impl CatalogError {
    /// Stable and fit for programs and labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound(_) => Reason::GalleryNotFound,
            Self::Exists(_) => Reason::GalleryExists,
            Self::GalleriesFull { .. } => Reason::GalleriesQuota,
            Self::ImportsFull { .. } => Reason::ImportingTooMuch,
            Self::Refused { cause, .. } => match **cause {
                OpenError::Damaged { .. } => Reason::GalleryDamaged,
                OpenError::Newer { .. } | OpenError::Io { .. } => Reason::GalleryRefused,
            },
            Self::Store(cause) => cause.reason(),
            Self::DiskFull => Reason::DiskFull,
            Self::Io(_) => Reason::DataDirectoryUnusable,
        }
    }
}

impl From<io::Error> for CatalogError {
    fn from(cause: io::Error) -> Self {
        if is_full(&cause) { Self::DiskFull } else { Self::Io(Arc::new(cause)) }
    }
}

impl From<DatabaseError> for CatalogError {
    fn from(error: DatabaseError) -> Self {
        match error {
            full if full.is_full() => Self::DiskFull,
            DatabaseError::Io(cause) => cause.into(),
            other => io::Error::other(other.to_string()).into(),
        }
    }
}

impl From<GalleryBuildError> for CatalogError {
    fn from(error: GalleryBuildError) -> Self {
        match error {
            GalleryBuildError::Database(cause) => cause.into(),
            GalleryBuildError::Twice(_) => {
                io::Error::new(io::ErrorKind::InvalidData, error.to_string()).into()
            }
        }
    }
}

impl Catalog {
    /// Takes the data directory `root`, made if need be, and opens its galleries. What was half made or half deleted is
    /// removed. A gallery that cannot be opened is refused by name later; the others serve.
    ///
    /// # Errors
    /// Another process has the directory, or it cannot be used.
    pub fn open(root: &Path, settings: CatalogSettings) -> Result<Self, CatalogOpenError> {
        let failed = |cause| CatalogOpenError::Io { path: root.to_owned(), cause };
        fs::create_dir_all(root).map_err(failed)?;
        let lock = DirectoryLock::acquire(root)?;
        let mut tenants = BTreeMap::new();
        for (folder, path) in folders(root).map_err(failed)? {
            tenants.insert(folder, Tenant::open(&path, &settings).map_err(failed)?);
        }
        Ok(Self(Arc::new(Inner {
            root: root.to_owned(),
            settings,
            import_memory: Budget::new(settings.import_bytes_max as u64),
            tenants: RwLock::new(tenants),
            changing: Mutex::new(()),
            lock: Mutex::new(Some(lock)),
        })))
    }

    /// # Errors
    /// There is no such gallery, or it is refused.
    pub fn get(&self, tenant: &str, name: &GalleryName) -> Result<Gallery, CatalogError> {
        let tenants = self.tenants();
        let opened = tenants.get(&tenant_folder(tenant)).and_then(|tenant| tenant.galleries.get(name));
        let opened = opened.ok_or_else(|| CatalogError::NotFound(name.clone()))?;
        slot(opened).map_err(|cause| CatalogError::Refused { name: name.clone(), cause })
    }

    #[cfg(test)]
    pub(in crate::gallery) fn embedded(&self, tenant: &str, name: &GalleryName) -> Arc<EmbeddedGallery> {
        self.tenants()[&tenant_folder(tenant)].galleries[name].clone().expect("it is served")
    }

    /// The first `size` galleries with names above `after`.
    pub fn list(&self, tenant: &str, after: Option<&GalleryName>, size: usize) -> Listing {
        let tenants = self.tenants();
        let galleries = tenants.get(&tenant_folder(tenant)).map(|tenant| &tenant.galleries);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut above =
            galleries.into_iter().flat_map(|all| all.range::<GalleryName, _>((from, Bound::Unbounded)));
        let galleries: Vec<_> =
            above.by_ref().take(size).map(|(name, opened)| (name.clone(), slot(opened))).collect();
        let next = above.next().and(galleries.last()).map(|(name, _)| name.clone());
        Listing { galleries, next }
    }

    /// Every gallery that is served, of every tenant.
    pub fn served(&self) -> Vec<(Place, Gallery)> {
        self.opened().into_iter().map(|(place, gallery)| (place, gallery as Gallery)).collect()
    }

    fn opened(&self) -> Vec<(Place, Arc<EmbeddedGallery>)> {
        let tenants = self.tenants();
        let slots = tenants.iter().flat_map(|(folder, tenant)| {
            let place = |name: &GalleryName| Place { tenant: folder.as_str().into(), name: name.clone() };
            tenant.galleries.iter().map(move |(name, slot)| (place(name), slot))
        });
        slots.filter_map(|(place, slot)| Some((place, slot.as_ref().ok()?.clone()))).collect()
    }

    /// Galleries whose chips are kept and whose embeddings are of `model`: they need it until they have followed another.
    pub fn need(&self, model: ModelDigest) -> Vec<Place> {
        let mut galleries = self.served();
        galleries.retain(|(_, gallery)| {
            let about = gallery.info().about;
            about.keeps_chips && about.model == model
        });
        galleries.into_iter().map(|(place, _)| place).collect()
    }

    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for slot in self.tenants().values().flat_map(|tenant| tenant.galleries.values()) {
            let Ok(gallery) = slot else {
                census.refused += 1;
                continue;
            };
            let info = gallery.info();
            *if info.read_only.is_some() { &mut census.read_only } else { &mut census.writable } += 1;
            census.entries += info.entries;
            census.bytes += info.stored_bytes;
        }
        census
    }

    /// # Errors
    /// The name is taken, the tenant has enough galleries, or the disk fails.
    pub fn create(&self, tenant: &str, name: &GalleryName, new: NewGallery) -> Result<Gallery, CatalogError> {
        let _changing = self.change();
        self.check_free(tenant, name)?;
        let partial = self.partial(tenant, name)?;
        let about = About::new(new.model, new.dimension, new.keeps_chips, Time::now());
        let volume = Folder(partial.path().to_owned());
        GalleryBuilder::new(&volume, about, self.0.settings.cache_bytes)?.finish(0)?;
        self.publish(tenant, name, partial)
    }

    /// Deletes a gallery with everything in it, also one that is refused. Final once this returns.
    ///
    /// # Errors
    /// There is no such gallery, or the disk fails.
    pub fn delete(&self, tenant: &str, name: &GalleryName) -> Result<(), CatalogError> {
        let _changing = self.change();
        let folder = tenant_folder(tenant);
        let path = self.0.root.join(&folder).join(name.as_str());
        let slot = self.tenants_mut().get_mut(&folder).and_then(|tenant| tenant.galleries.remove(name));
        if let Ok(gallery) = slot.ok_or_else(|| CatalogError::NotFound(name.clone()))? {
            gallery.abandon();
        }
        discard_folder(&path).map_err(|cause| {
            // It is still there, but closed.
            let refused = OpenError::Io { file: "the folder", cause: io::Error::other(cause.to_string()) };
            if let Some(tenant) = self.tenants_mut().get_mut(&folder) {
                tenant.galleries.insert(name.clone(), Err(Arc::new(refused)));
            }
            cause.into()
        })
    }

    /// Begins a new gallery from an [`Export`](super::Export).
    ///
    /// # Errors
    /// The name is taken, the tenant has enough galleries, or the disk fails.
    pub fn import(&self, tenant: &str, name: &GalleryName) -> Result<Import, CatalogError> {
        let _changing = self.change();
        self.check_free(tenant, name)?;
        let partial = self.partial(tenant, name)?;
        Ok(Import::new(self.clone(), tenant, name.clone(), partial))
    }

    /// Finishes what waits for the disk, closes every gallery and gives the directory back.
    pub fn close(&self) {
        let _changing = self.change();
        self.opened().iter().for_each(|(_, gallery)| gallery.close());
        drop(self.0.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Puts a new gallery in its place and opens it.
    fn publish(
        &self,
        tenant: &str,
        name: &GalleryName,
        partial: PartialFolder,
    ) -> Result<Gallery, CatalogError> {
        let path = self.0.root.join(tenant_folder(tenant)).join(name.as_str());
        partial.publish()?;
        let opened = open_gallery(&path, &self.0.settings, &self.allowance(tenant));
        self.tenant(&mut self.tenants_mut(), tenant).galleries.insert(name.clone(), opened.clone());
        slot(&opened).map_err(|cause| CatalogError::Refused { name: name.clone(), cause })
    }

    /// A folder for a gallery that is being made.
    fn partial(&self, tenant: &str, name: &GalleryName) -> Result<PartialFolder, CatalogError> {
        let folder = self.0.root.join(tenant_folder(tenant));
        if !folder.exists() {
            fs::create_dir(&folder)?;
            fs::File::open(&self.0.root)?.sync_all()?;
        }
        Ok(PartialFolder::new(&folder.join(name.as_str()))?)
    }

    fn check_free(&self, tenant: &str, name: &GalleryName) -> Result<(), CatalogError> {
        let tenants = self.tenants();
        let Some(tenant) = tenants.get(&tenant_folder(tenant)) else { return Ok(()) };
        let limit = self.0.settings.quotas.galleries_per_tenant;
        if tenant.galleries.contains_key(name) {
            Err(CatalogError::Exists(name.clone()))
        } else if tenant.galleries.len() >= limit {
            Err(CatalogError::GalleriesFull { limit })
        } else {
            Ok(())
        }
    }

    fn tenant<'t>(&self, tenants: &'t mut BTreeMap<String, Tenant>, tenant: &str) -> &'t mut Tenant {
        tenants.entry(tenant_folder(tenant)).or_insert_with(|| Tenant::new(&self.0.settings))
    }

    fn allowance(&self, tenant: &str) -> Arc<Allowance> {
        self.tenant(&mut self.tenants_mut(), tenant).allowance.clone()
    }

    fn import_memory(&self, tenant: &str) -> Budget {
        self.tenant(&mut self.tenants_mut(), tenant).import_memory.clone()
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.0.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tenants(&self) -> RwLockReadGuard<'_, BTreeMap<String, Tenant>> {
        self.0.tenants.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tenants_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Tenant>> {
        self.0.tenants.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tenant {
    fn new(settings: &CatalogSettings) -> Self {
        let allowance = Arc::new(Allowance::new(settings.quotas.bytes_per_tenant));
        let import_memory = Budget::new(settings.import_bytes_max as u64 / 2);
        Self { allowance, import_memory, galleries: BTreeMap::new() }
    }

    fn open(path: &Path, settings: &CatalogSettings) -> io::Result<Self> {
        remove_partial(path)?;
        let mut tenant = Self::new(settings);
        for (folder, path) in folders(path)? {
            let Ok(name) = GalleryName::new(&folder) else {
                tracing::warn!(path = %path.display(), "a folder that is no gallery is passed over");
                continue;
            };
            let slot = open_gallery(&path, settings, &tenant.allowance);
            tenant.galleries.insert(name, slot);
        }
        Ok(tenant)
    }
}

fn slot(opened: &Opened) -> Slot {
    opened.clone().map(|gallery| gallery as Gallery)
}

fn open_gallery(path: &Path, settings: &CatalogSettings, allowance: &Arc<Allowance>) -> Opened {
    let bounds =
        Bounds { cache_bytes: settings.cache_bytes, quotas: settings.quotas, allowance: allowance.clone() };
    let opened = Writer::open(Arc::new(Folder(path.to_owned())), bounds).and_then(|writer| {
        EmbeddedGallery::start(writer, settings.queue)
            .map_err(|cause| OpenError::Io { file: "its thread", cause })
    });
    opened.map_err(|cause| {
        tracing::error!(path = %path.display(), %cause, "a gallery is not served");
        Arc::new(cause)
    })
}

/// The folders in `path` that are not hidden, by name.
fn folders(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() && !name.starts_with('.') {
            folders.push((name, entry.path()));
        }
    }
    folders.sort();
    Ok(folders)
}
