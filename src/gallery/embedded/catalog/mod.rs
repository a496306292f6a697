//! All galleries of a data directory, by tenant and name.

mod draft;
mod error;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

pub use error::EmbeddedOpenError;

use draft::EmbeddedDraft;

use super::builder::GalleryBuilder;
use super::handle::{EmbeddedGallery, QueueSettings};
use super::open::OpenError;
use super::quota::Allowance;
use super::writer::{Bounds, Writer};
use crate::cancellation::spawn_cancellable;
use crate::durable::{
    DirectoryLock, Folder, PartialFolder, discard_folder, ensure_folder, remove_partial, tenant_folder,
};
use crate::embedding::ModelDigest;
use crate::gallery::catalog::{
    CatalogError, CatalogStore, Census, GalleryName, Import, ImportBounds, Imports, Listing, NewGallery,
    Place, Quotas, Slot, Unserved,
};
use crate::gallery::entry::Time;
use crate::gallery::store::{About, Gallery, GalleryStore, StoreError};

/// Settings of all galleries.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedSettings {
    /// Cache size of one database file in bytes; a gallery with chips has two files.
    pub cache_bytes: usize,
    pub queue: QueueSettings,
    pub quotas: Quotas,
    pub imports: ImportBounds,
}

/// The galleries of one data directory, which nothing else may use meanwhile. Cloning it is cheap.
///
/// The inherent methods [`create`](Self::create), [`delete`](Self::delete), [`import`](Self::import) and
/// [`close`](Self::close) block on the disk, for callers with a thread of their own; those of [`CatalogStore`] do the
/// same work off the runtime's threads.
#[derive(Clone, Debug)]
pub struct EmbeddedCatalog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    settings: EmbeddedSettings,
    imports: Imports,
    /// Keyed by folder.
    tenants: RwLock<BTreeMap<String, Tenant>>,
    /// Held while a gallery is created or removed; `None` once the catalog is closed.
    changing: Mutex<Option<DirectoryLock>>,
    /// One permit for async calls that create or remove a gallery, so that waiting calls block no threads.
    turn: Arc<Semaphore>,
}

#[derive(Debug)]
struct Tenant {
    allowance: Arc<Allowance>,
    galleries: BTreeMap<GalleryName, Opened>,
}

/// A [`Slot`] with the operations that only its catalog may do.
type Opened = Result<Arc<EmbeddedGallery>, Arc<Unserved>>;

impl EmbeddedCatalog {
    /// Opens the data directory `root`, creating it if needed, and its galleries. Partly created and partly deleted
    /// galleries are removed. A gallery that cannot be opened is refused when it is asked for; the others are served.
    ///
    /// # Errors
    /// Another process uses the directory, or it cannot be used.
    pub fn open(root: &Path, settings: EmbeddedSettings) -> Result<Self, EmbeddedOpenError> {
        let failed = |cause| EmbeddedOpenError::Io { path: root.to_owned(), cause };
        fs::create_dir_all(root).map_err(failed)?;
        let lock = DirectoryLock::acquire(root)?;
        let mut tenants = BTreeMap::new();
        for (folder, path) in folders(root).map_err(failed)? {
            tenants.insert(folder, Tenant::open(&path, &settings).map_err(failed)?);
        }
        Ok(Self(Arc::new(Inner {
            root: root.to_owned(),
            settings,
            imports: Imports::new(settings.imports),
            tenants: RwLock::new(tenants),
            changing: Mutex::new(Some(lock)),
            turn: Arc::new(Semaphore::new(1)),
        })))
    }

    /// # Errors
    /// The gallery does not exist, or is not served.
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

    fn opened(&self) -> Vec<(Place, Arc<EmbeddedGallery>)> {
        let tenants = self.tenants();
        let slots = tenants.iter().flat_map(|(folder, tenant)| {
            let place = |name: &GalleryName| Place { tenant: folder.as_str().into(), name: name.clone() };
            tenant.galleries.iter().map(move |(name, slot)| (place(name), slot))
        });
        slots.filter_map(|(place, slot)| Some((place, slot.as_ref().ok()?.clone()))).collect()
    }

    /// # Errors
    /// The name is taken, the tenant has reached its number of galleries, or the disk fails.
    pub fn create(&self, tenant: &str, name: &GalleryName, new: NewGallery) -> Result<Gallery, CatalogError> {
        let _changing = self.change()?;
        self.check_free(tenant, name)?;
        let partial = self.partial(tenant, name)?;
        let about = About::new(new.model, new.dimension, new.keeps_chips, Time::now());
        let about = About { composition: new.composition, ..about };
        let volume = Folder(partial.path().to_owned());
        GalleryBuilder::new(&volume, about, self.0.settings.cache_bytes)?.finish(0)?;
        self.publish(tenant, name, partial)
    }

    /// Deletes a gallery with everything in it, even one that is not served. Final once this returns.
    ///
    /// # Errors
    /// The gallery does not exist, or the disk fails.
    pub fn delete(&self, tenant: &str, name: &GalleryName) -> Result<(), CatalogError> {
        let _changing = self.change()?;
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
                tenant.galleries.insert(name.clone(), Err(Arc::new(refused.into())));
            }
            cause.into()
        })
    }

    /// Starts a new gallery from an [`Export`](crate::gallery::Export).
    ///
    /// # Errors
    /// The name is taken, the tenant has reached its number of galleries, or the disk fails.
    pub fn import(&self, tenant: &str, name: &GalleryName) -> Result<Import, CatalogError> {
        let _changing = self.change()?;
        self.check_free(tenant, name)?;
        let partial = self.partial(tenant, name)?;
        let draft = EmbeddedDraft::new(self.clone(), tenant, name.clone(), partial);
        Ok(self.0.imports.begin(tenant, Box::new(draft)))
    }

    /// Finishes pending writes, closes every gallery and releases the directory.
    pub fn close(&self) {
        let mut lock = self.lock();
        self.opened().iter().for_each(|(_, gallery)| gallery.close());
        drop(lock.take());
    }

    /// Runs work that creates or removes a gallery on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Self) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        // The semaphore is never closed.
        let turn = Arc::clone(&self.0.turn).acquire_owned().await.ok();
        let catalog = self.clone();
        let changing = spawn_cancellable(None, move |_| {
            let _turn = turn;
            change(&catalog)
        });
        changing.await.unwrap_or_else(|cause| {
            tracing::error!(%cause, "making or removing a gallery panicked");
            Err(CatalogError::Failed)
        })
    }

    /// Moves a new gallery to its final path and opens it.
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

    /// A folder for a gallery that is being built.
    fn partial(&self, tenant: &str, name: &GalleryName) -> Result<PartialFolder, CatalogError> {
        let folder = self.0.root.join(tenant_folder(tenant));
        ensure_folder(&folder)?;
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
        let quotas = self.0.settings.quotas;
        tenants.entry(tenant_folder(tenant)).or_insert_with(|| Tenant::new(quotas))
    }

    fn allowance(&self, tenant: &str) -> Arc<Allowance> {
        self.tenant(&mut self.tenants_mut(), tenant).allowance.clone()
    }

    /// Waits for the right to create or remove a gallery.
    ///
    /// # Errors
    /// The catalog is closed.
    fn change(&self) -> Result<MutexGuard<'_, Option<DirectoryLock>>, StoreError> {
        let lock = self.lock();
        if lock.is_some() { Ok(lock) } else { Err(StoreError::Closed) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<DirectoryLock>> {
        self.0.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tenants(&self) -> RwLockReadGuard<'_, BTreeMap<String, Tenant>> {
        self.0.tenants.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tenants_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Tenant>> {
        self.0.tenants.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Disk work that has started runs to its end even if its caller leaves; work that has not started by then never
/// starts.
#[async_trait]
impl CatalogStore for EmbeddedCatalog {
    async fn get(&self, tenant: &str, name: &GalleryName) -> Result<Gallery, CatalogError> {
        Self::get(self, tenant, name)
    }

    async fn list(
        &self,
        tenant: &str,
        after: Option<&GalleryName>,
        size: usize,
    ) -> Result<Listing, CatalogError> {
        Ok(Self::list(self, tenant, after, size))
    }

    async fn create(
        &self,
        tenant: &str,
        name: &GalleryName,
        new: NewGallery,
    ) -> Result<Gallery, CatalogError> {
        let (tenant, name) = (tenant.to_owned(), name.clone());
        self.run(move |catalog| catalog.create(&tenant, &name, new)).await
    }

    async fn delete(&self, tenant: &str, name: &GalleryName) -> Result<(), CatalogError> {
        let (tenant, name) = (tenant.to_owned(), name.clone());
        self.run(move |catalog| catalog.delete(&tenant, &name)).await
    }

    async fn import(&self, tenant: &str, name: &GalleryName) -> Result<Import, CatalogError> {
        let (tenant, name) = (tenant.to_owned(), name.clone());
        self.run(move |catalog| catalog.import(&tenant, &name)).await
    }

    fn served(&self) -> Vec<(Place, Gallery)> {
        self.opened().into_iter().map(|(place, gallery)| (place, gallery as Gallery)).collect()
    }

    fn census(&self) -> Census {
        let mut census = Census::default();
        for opened in self.tenants().values().flat_map(|tenant| tenant.galleries.values()) {
            match opened {
                Ok(gallery) => census.count(&gallery.info()),
                Err(_) => census.refused += 1,
            }
        }
        census
    }

    /// Nobody else has its galleries.
    async fn move_to(&self, _: ModelDigest, _: bool) -> Result<(), CatalogError> {
        Ok(())
    }

    async fn claim_moves(&self, _: ModelDigest, wanted: &[Place]) -> Result<Vec<Place>, CatalogError> {
        Ok(wanted.to_vec())
    }

    async fn close(&self) {
        let catalog = self.clone();
        if let Err(cause) = spawn_blocking(move || Self::close(&catalog)).await {
            tracing::error!(%cause, "the galleries ended badly");
        }
    }
}

impl Tenant {
    fn new(quotas: Quotas) -> Self {
        let allowance = Arc::new(Allowance::new(quotas.bytes_per_tenant));
        Self { allowance, galleries: BTreeMap::new() }
    }

    fn open(path: &Path, settings: &EmbeddedSettings) -> io::Result<Self> {
        remove_partial(path)?;
        let mut tenant = Self::new(settings.quotas);
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

fn open_gallery(path: &Path, settings: &EmbeddedSettings, allowance: &Arc<Allowance>) -> Opened {
    let bounds =
        Bounds { cache_bytes: settings.cache_bytes, quotas: settings.quotas, allowance: allowance.clone() };
    let opened = Writer::open(Arc::new(Folder(path.to_owned())), bounds, None).and_then(|writer| {
        EmbeddedGallery::start(writer, settings.queue)
            .map_err(|cause| OpenError::Io { file: "its thread", cause })
    });
    opened.map_err(|cause| {
        tracing::error!(path = %path.display(), %cause, "a gallery is not served");
        Arc::new(cause.into())
    })
}

/// The folders in `path` that are not hidden, sorted by name.
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
