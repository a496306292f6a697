//! A gallery that is built in a hidden folder and then moved to its final path as a whole.

use std::sync::Arc;

use super::EmbeddedCatalog;
use crate::cancellation::Cancellation;
use crate::durable::{Folder, PartialFolder};
use crate::gallery::catalog::{CatalogError, DraftError, DraftRow, GalleryDraft, GalleryName};
use crate::gallery::embedded::builder::{GalleryBuilder, NewRow};
use crate::gallery::embedded::quota::Allowance;
use crate::gallery::index::RowId;
use crate::gallery::store::{About, Gallery, StoreError};

#[derive(Debug)]
pub struct EmbeddedDraft {
    catalog: EmbeddedCatalog,
    tenant: String,
    name: GalleryName,
    /// `None` until it is known what the gallery is made for.
    builder: Option<GalleryBuilder>,
    entries: u64,
    taken: Taken,
    partial: PartialFolder,
}

/// Bytes of the tenant that do not belong to a gallery yet.
#[derive(Debug)]
struct Taken {
    allowance: Arc<Allowance>,
    bytes: u64,
}

impl EmbeddedDraft {
    pub fn new(catalog: EmbeddedCatalog, tenant: &str, name: GalleryName, partial: PartialFolder) -> Self {
        let taken = Taken { allowance: catalog.allowance(tenant), bytes: 0 };
        Self { catalog, tenant: tenant.to_owned(), name, builder: None, entries: 0, taken, partial }
    }
}

impl GalleryDraft for EmbeddedDraft {
    fn begin(&mut self, about: About) -> Result<(), CatalogError> {
        let volume = Folder(self.partial.path().to_owned());
        self.builder = Some(GalleryBuilder::new(&volume, about, self.catalog.0.settings.cache_bytes)?);
        Ok(())
    }

    fn check_room(&self, bytes: u64) -> Result<(), CatalogError> {
        Ok(self.taken.allowance.check(bytes)?)
    }

    fn add(&mut self, row: DraftRow) -> Result<(), DraftError> {
        let limit = self.catalog.0.settings.quotas.entries_per_gallery;
        if self.entries >= limit {
            return Err(CatalogError::from(StoreError::EntriesFull { limit }).into());
        }
        let builder = self.builder.as_mut().expect("it is begun before its rows come");
        let new = NewRow::new(row);
        self.taken.take(new.bytes())?;
        builder.add(new)?;
        self.entries += 1;
        Ok(())
    }

    fn finish(self: Box<Self>, next_row: RowId, cancellation: &Cancellation) -> Result<Gallery, DraftError> {
        let Self { catalog, tenant, name, builder, taken, partial, .. } = *self;
        builder.expect("it is begun before it is finished").finish(next_row.0)?;
        let _changing = catalog.change().map_err(CatalogError::from)?;
        catalog.check_free(&tenant, &name)?;
        cancellation.check().map_err(CatalogError::from)?;
        // From here on the gallery counts them.
        drop(taken);
        Ok(catalog.publish(&tenant, &name, partial)?)
    }
}

impl Taken {
    fn take(&mut self, bytes: u64) -> Result<(), CatalogError> {
        self.allowance.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.allowance.give_back(self.bytes);
    }
}
