//! The seam between whoever asks for galleries by name and whatever keeps them all: a [`CatalogStore`].
//!
//! `gallery::tests::catalog_conformance` is what every catalog has to do; that of [`embedded`](super::embedded) has a
//! data directory to itself.

mod draft;
mod error;
mod import;
mod name;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use draft::{DraftError, DraftRow, GalleryDraft};
pub use error::{CatalogError, Unserved, UnservedKind};
pub(super) use import::Imports;
pub use import::{Import, ImportBounds, ImportError};
pub use name::{GalleryName, NameError};

use super::store::{Gallery, Info};
use crate::embedding::ModelDigest;

/// The galleries of a server, by whichever store.
pub type Catalog = Arc<dyn CatalogStore>;

/// Galleries by tenant and name.
///
/// What may wait for a disk or a network is async, and the store sees to the threads that it takes: its callers cannot
/// know which it is. What tells only of galleries that this server has open is answered at once.
#[async_trait]
pub trait CatalogStore: fmt::Debug + Send + Sync {
    /// # Errors
    /// There is no such gallery, or it is refused.
    async fn get(&self, tenant: &str, name: &GalleryName) -> Result<Gallery, CatalogError>;

    /// The first `size` galleries with names above `after`.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn list(
        &self,
        tenant: &str,
        after: Option<&GalleryName>,
        size: usize,
    ) -> Result<Listing, CatalogError>;

    /// Makes a gallery without entries.
    ///
    /// # Errors
    /// The name is taken, the tenant has enough galleries, or the store cannot take it.
    async fn create(
        &self,
        tenant: &str,
        name: &GalleryName,
        new: NewGallery,
    ) -> Result<Gallery, CatalogError>;

    /// Deletes a gallery with everything in it, also one that is refused. Final once this returns.
    ///
    /// # Errors
    /// There is no such gallery, or the store cannot remove it.
    async fn delete(&self, tenant: &str, name: &GalleryName) -> Result<(), CatalogError>;

    /// Begins a new gallery from an [`Export`](crate::gallery::Export).
    ///
    /// # Errors
    /// The name is taken, the tenant has enough galleries, or the store cannot take it.
    async fn import(&self, tenant: &str, name: &GalleryName) -> Result<Import, CatalogError>;

    /// Every gallery that this server has open, of every tenant.
    fn served(&self) -> Vec<(Place, Gallery)>;

    /// The same in numbers, those included that cannot be opened.
    fn census(&self) -> Census;

    /// Finishes what was begun and closes every gallery; then nothing is taken any more.
    async fn close(&self);
}

impl dyn CatalogStore {
    /// Galleries whose chips are kept and whose embeddings are of `model`: they need it until they have followed another.
    pub fn need(&self, model: ModelDigest) -> Vec<Place> {
        let mut galleries = self.served();
        galleries.retain(|(_, gallery)| {
            let about = gallery.info().about;
            about.keeps_chips && about.model == model
        });
        galleries.into_iter().map(|(place, _)| place).collect()
    }
}

/// Where a gallery is: its tenant, as its store names him, and its name.
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
pub type Slot = Result<Gallery, Arc<Unserved>>;

/// What a new gallery is made for.
#[derive(Clone, Copy, Debug)]
pub struct NewGallery {
    pub model: ModelDigest,
    pub dimension: usize,
    /// Whether source chips are kept, so that the gallery can follow a new model.
    pub keeps_chips: bool,
}

/// Bounds on what is stored.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    pub galleries_per_tenant: usize,
    pub entries_per_gallery: u64,
    /// Of entries, embeddings and chips, and of files that are much larger than these.
    pub bytes_per_tenant: u64,
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

impl Census {
    /// Counts a gallery that is served.
    pub(in crate::gallery) fn count(&mut self, info: &Info) {
        *if info.read_only.is_some() { &mut self.read_only } else { &mut self.writable } += 1;
        self.entries += info.entries;
        self.bytes += info.stored_bytes;
    }
}
