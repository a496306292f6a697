//! An in-memory catalog.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::memory::{Bounds, MemoryGallery};
use super::model::{Kept, Model};
use super::*;
use crate::gallery::catalog::Imports;
use crate::gallery::embedded::quota::Allowance;

#[derive(Clone, Debug)]
struct MemoryCatalog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    quotas: Quotas,
    imports: Imports,
    shelves: Mutex<Shelves>,
}

#[derive(Debug, Default)]
struct Shelves {
    tenants: BTreeMap<String, Tenant>,
    is_closed: bool,
}

#[derive(Debug)]
struct Tenant {
    allowance: Arc<Allowance>,
    galleries: BTreeMap<GalleryName, Arc<MemoryGallery>>,
}

#[derive(Debug)]
struct MemoryDraft {
    catalog: MemoryCatalog,
    tenant: String,
    name: GalleryName,
    bounds: Bounds,
    about: Option<About>,
    rows: BTreeMap<RowId, Kept>,
}

impl MemoryCatalog {
    fn new(quotas: Quotas) -> Self {
        let imports = Imports::new(settings().imports);
        Self(Arc::new(Inner { quotas, imports, shelves: Mutex::default() }))
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.0.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenant, if it may add a gallery called `name`.
    fn free<'s>(
        &self,
        shelves: &'s mut Shelves,
        tenant: &str,
        name: &GalleryName,
    ) -> Result<&'s mut Tenant, CatalogError> {
        if shelves.is_closed {
            return Err(StoreError::Closed.into());
        }
        let Quotas { galleries_per_tenant: limit, bytes_per_tenant, .. } = self.0.quotas;
        let made =
            || Tenant { allowance: Arc::new(Allowance::new(bytes_per_tenant)), galleries: BTreeMap::new() };
        let tenant = shelves.tenants.entry(tenant.to_owned()).or_insert_with(made);
        if tenant.galleries.contains_key(name) {
            return Err(CatalogError::Exists(name.clone()));
        }
        if tenant.galleries.len() >= limit {
            return Err(CatalogError::GalleriesFull { limit });
        }
        Ok(tenant)
    }

    fn bounds(&self, tenant: &Tenant) -> Bounds {
        Bounds { entries_max: self.0.quotas.entries_per_gallery, allowance: Arc::clone(&tenant.allowance) }
    }
}

#[async_trait]
impl CatalogStore for MemoryCatalog {
    async fn get(&self, tenant: &str, name: &GalleryName) -> Result<Gallery, CatalogError> {
        let shelves = self.shelves();
        let found = shelves.tenants.get(tenant).and_then(|tenant| tenant.galleries.get(name));
        Ok(Arc::clone(found.ok_or_else(|| CatalogError::NotFound(name.clone()))?) as Gallery)
    }

    async fn list(
        &self,
        tenant: &str,
        after: Option<&GalleryName>,
        size: usize,
    ) -> Result<Listing, CatalogError> {
        let shelves = self.shelves();
        let Some(tenant) = shelves.tenants.get(tenant) else {
            return Ok(Listing { galleries: vec![], next: None });
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let above: Vec<_> = tenant.galleries.range::<GalleryName, _>((from, Bound::Unbounded)).collect();
        let slot = |(name, gallery): &(&GalleryName, &Arc<MemoryGallery>)| {
            ((*name).clone(), Ok(Arc::clone(gallery) as Gallery))
        };
        let galleries: Vec<(GalleryName, Slot)> = above.iter().take(size).map(slot).collect();
        let next = galleries.last().filter(|_| above.len() > size).map(|(name, _)| name.clone());
        Ok(Listing { galleries, next })
    }

    async fn create(
        &self,
        tenant: &str,
        name: &GalleryName,
        new: NewGallery,
    ) -> Result<Gallery, CatalogError> {
        let mut shelves = self.shelves();
        let tenant = self.free(&mut shelves, tenant, name)?;
        let about = About::new(new.model, new.dimension, new.keeps_chips, Time::from_nanos(0));
        let made = Arc::new(MemoryGallery::new(about, self.bounds(tenant)));
        tenant.galleries.insert(name.clone(), Arc::clone(&made));
        Ok(made)
    }

    async fn delete(&self, tenant: &str, name: &GalleryName) -> Result<(), CatalogError> {
        let mut shelves = self.shelves();
        if shelves.is_closed {
            return Err(StoreError::Closed.into());
        }
        let galleries = shelves.tenants.get_mut(tenant).map(|tenant| &mut tenant.galleries);
        let removed = galleries.and_then(|galleries| galleries.remove(name));
        removed.ok_or_else(|| CatalogError::NotFound(name.clone()))?.remove();
        Ok(())
    }

    async fn import(&self, tenant: &str, name: &GalleryName) -> Result<Import, CatalogError> {
        let bounds = self.bounds(self.free(&mut self.shelves(), tenant, name)?);
        let draft = MemoryDraft {
            catalog: self.clone(),
            tenant: tenant.to_owned(),
            name: name.clone(),
            bounds,
            about: None,
            rows: BTreeMap::new(),
        };
        Ok(self.0.imports.begin(tenant, Box::new(draft)))
    }

    fn served(&self) -> Vec<(Place, Gallery)> {
        let shelves = self.shelves();
        let galleries = shelves.tenants.iter().flat_map(|(tenant, Tenant { galleries, .. })| {
            galleries.iter().map(move |(name, gallery)| {
                let place = Place { tenant: tenant.as_str().into(), name: name.clone() };
                (place, Arc::clone(gallery) as Gallery)
            })
        });
        galleries.collect()
    }

    fn census(&self) -> Census {
        let mut census = Census::default();
        self.served().iter().for_each(|(_, gallery)| census.count(&gallery.info()));
        census
    }

    async fn move_to(&self, _: ModelDigest, _: bool) -> Result<(), CatalogError> {
        Ok(())
    }

    async fn claim_moves(&self, _: ModelDigest, wanted: &[Place]) -> Result<Vec<Place>, CatalogError> {
        Ok(wanted.to_vec())
    }

    async fn close(&self) {
        let mut shelves = self.shelves();
        shelves.is_closed = true;
        let galleries = shelves.tenants.values().flat_map(|tenant| tenant.galleries.values());
        galleries.for_each(|gallery| gallery.close());
    }
}

impl GalleryDraft for MemoryDraft {
    fn begin(&mut self, about: About) -> Result<(), CatalogError> {
        self.about = Some(about);
        Ok(())
    }

    fn check_room(&self, bytes: u64) -> Result<(), CatalogError> {
        Ok(self.bounds.allowance.check(bytes)?)
    }

    fn add(&mut self, row: DraftRow) -> Result<(), DraftError> {
        let DraftRow { row, entry, embedding, chip } = row;
        let limit = self.bounds.entries_max;
        if self.rows.len() as u64 >= limit {
            return Err(CatalogError::from(StoreError::EntriesFull { limit }).into());
        }
        if self.rows.values().any(|kept| kept.entry.id == entry.id) {
            return Err(DraftError::Twice(entry.id));
        }
        self.rows.insert(row, Kept { entry, embedding, shadow: None, chip });
        Ok(())
    }

    fn finish(self: Box<Self>, next_row: RowId, cancellation: &Cancellation) -> Result<Gallery, DraftError> {
        let Self { catalog, tenant, name, bounds, about, rows } = *self;
        let about = about.expect("begun");
        let mut shelves = catalog.shelves();
        let tenant = catalog.free(&mut shelves, &tenant, &name)?;
        cancellation.check().map_err(CatalogError::from)?;
        let model = Model { rows, next_row: next_row.0, of: about.model, shadow: None };
        let made = MemoryGallery::with(about, model, bounds).map_err(CatalogError::from)?;
        let made = Arc::new(made);
        tenant.galleries.insert(name, Arc::clone(&made));
        Ok(made)
    }
}

#[tokio::test]
async fn a_catalog_in_memory_does_what_every_catalog_has_to_do() {
    catalog_conformance::check(|quotas| Arc::new(MemoryCatalog::new(quotas))).await;
}
