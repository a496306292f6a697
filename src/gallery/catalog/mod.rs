//! The interface between callers that ask for galleries by name and the stores that keep them: [`CatalogStore`].
//!
//! `gallery::tests::catalog_conformance` defines what every catalog must do. The catalog of
//! [`embedded`](super::embedded) owns a data directory.

mod draft;
mod error;
mod import;
mod name;
mod read;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use draft::{DraftError, DraftRow, GalleryDraft};
pub use error::{CatalogError, Unserved, UnservedKind};
pub(super) use import::Imports;
pub use import::{Import, ImportBounds, ImportError};
pub use name::{GalleryName, NameError};
pub use read::{Consistency, Read, Readable};

use super::store::{Gallery, Info};
use crate::embedding::{Composition, ModelDigest};

/// The galleries of a server, in any store.
pub type Catalog = Arc<dyn CatalogStore>;

/// Galleries by tenant and name.
///
/// Methods that may wait for a disk or a network are async. The store provides the threads for such work, since callers
/// do not know which store it is. Methods on galleries that this server has open return at once.
#[async_trait]
pub trait CatalogStore: fmt::Debug + Send + Sync {
    /// # Errors
    /// The gallery does not exist, or is not served.
    async fn get(&self, tenant: &str, name: &GalleryName) -> Result<Gallery, CatalogError>;

    /// The gallery, as current as `read` asks. A store that no other server writes is always up to date.
    ///
    /// # Errors
    /// Those of [`get`](Self::get); the gallery has not reached the commit, or this server's copy of it is too old.
    async fn get_for(&self, tenant: &str, name: &GalleryName, read: Read) -> Result<Readable, CatalogError> {
        Readable::now(self.get(tenant, name).await?).at_least(read.min_commit)
    }

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

    /// Creates a gallery without entries.
    ///
    /// # Errors
    /// The name is taken, the tenant has reached its number of galleries, or the store does not accept it.
    async fn create(
        &self,
        tenant: &str,
        name: &GalleryName,
        new: NewGallery,
    ) -> Result<Gallery, CatalogError>;

    /// Deletes a gallery with everything in it, even one that is not served. Final once this returns.
    ///
    /// # Errors
    /// The gallery does not exist, or the store cannot remove it.
    async fn delete(&self, tenant: &str, name: &GalleryName) -> Result<(), CatalogError>;

    /// Starts a new gallery from an [`Export`](crate::gallery::Export).
    ///
    /// # Errors
    /// The name is taken, the tenant has reached its number of galleries, or the store does not accept it.
    async fn import(&self, tenant: &str, name: &GalleryName) -> Result<Import, CatalogError>;

    /// Whether a gallery of this name is served here if there is one. A server that has its galleries alone holds all.
    fn holds(&self, _tenant: &str, _name: &GalleryName) -> bool {
        true
    }

    /// All galleries of all tenants that this server has open.
    fn served(&self) -> Vec<(Place, Gallery)>;

    /// Counts of all galleries, including those that cannot be opened.
    fn census(&self) -> Census;

    /// Records as metrics what changes without calls, before they are read.
    fn observe(&self) {}

    /// Galleries move to `model` from now on, whichever server embeds their chips. `is_new` tells a model that was just
    /// activated from the one that a server has when it starts, which changes nothing where there is another.
    ///
    /// # Errors
    /// The store cannot be reached.
    async fn move_to(&self, model: ModelDigest, is_new: bool) -> Result<(), CatalogError>;

    /// Galleries among `wanted` whose chips this server is to embed, if galleries move to `model`: those that no other server
    /// embeds, at least the first of each tenant. It holds them for some seconds, and claims them again meanwhile.
    ///
    /// # Errors
    /// The store cannot be reached.
    async fn claim_moves(&self, model: ModelDigest, wanted: &[Place]) -> Result<Vec<Place>, CatalogError>;

    /// Finishes pending work and closes every gallery; later calls are refused.
    async fn close(&self);
}

impl dyn CatalogStore {
    /// Galleries that keep their chips and whose embeddings are of `model`: they need it until they have moved to
    /// another.
    pub fn need(&self, model: ModelDigest) -> Vec<Place> {
        let mut galleries = self.served();
        galleries.retain(|(_, gallery)| {
            let about = gallery.info().about;
            about.keeps_chips && about.model == model
        });
        galleries.into_iter().map(|(place, _)| place).collect()
    }
}

/// The location of a gallery: its tenant, as the store names it, and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// If the model is an ensemble.
    pub composition: Option<Composition>,
    /// Whether source chips are kept, so that the gallery can move to a new model.
    pub keeps_chips: bool,
}

/// Limits on what is stored.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    pub galleries_per_tenant: usize,
    pub entries_per_gallery: u64,
    /// Counts entries, embeddings and chips, and the excess of files that are much larger than these.
    pub bytes_per_tenant: u64,
}

/// A page of the list of galleries.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Sorted by name.
    pub galleries: Vec<(GalleryName, Slot)>,
    /// Where the next page begins, `None` on the last one.
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
    /// Counts entries, embeddings and kept chips.
    pub bytes: u64,
}

impl Census {
    /// Adds a gallery that is served.
    pub(in crate::gallery) fn count(&mut self, info: &Info) {
        *if info.read_only.is_some() { &mut self.read_only } else { &mut self.writable } += 1;
        self.entries += info.entries;
        self.bytes += info.stored_bytes;
    }
}
