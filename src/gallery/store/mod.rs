//! The seam between whoever uses a gallery and whatever keeps it: a [`GalleryStore`] takes what changes, and gives out
//! one committed state after the other, each a [`GalleryReader`]. The seam of all galleries is the
//! [`catalog`](super::catalog).
//!
//! `gallery::tests::conformance` is what every store has to do; [`embedded`](super::embedded) keeps a gallery in files
//! of its own.

mod about;
mod error;
pub(super) mod opening;
mod operation;
mod reader;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use about::{About, Shadow};
pub use error::StoreError;
pub use opening::{Files, Opening};
pub use operation::{Conflict, Enrolled, Enrolment, Field, Flip, Selector, ShadowEmbedding, Update, Updated};
pub use reader::{GalleryReader, Looked, Page, Selection, VesselPage};

use super::entry::VesselId;
use super::index::RowId;
use crate::embedding::{Embedding, ModelDigest};

/// One gallery that is served, by whichever store.
pub type Gallery = Arc<dyn GalleryStore>;

/// Takes what changes a gallery. What it acknowledges is in every later [`snapshot`](Self::snapshot) and survives a
/// power failure; what is deleted never comes back.
#[async_trait]
pub trait GalleryStore: fmt::Debug + Send + Sync {
    /// What is committed now.
    fn snapshot(&self) -> Arc<dyn GalleryReader>;

    /// The time of which snapshots are that are taken after this.
    fn opening(&self) -> Opening;

    fn info(&self) -> Info;

    /// Keeps a sighting.
    ///
    /// # Errors
    /// It was refused, or the gallery takes no writes.
    async fn enrol(&self, enrolment: Enrolment) -> Result<Enrolled, StoreError>;

    /// Deletes entries with their embeddings and chips, and says how many there were. Final once this returns.
    ///
    /// # Errors
    /// The gallery takes no writes.
    async fn delete(&self, selector: Selector) -> Result<u64, StoreError>;

    /// Writes `fields` of what is known of entries, all of them or none. Embeddings, chips and content stay.
    ///
    /// # Errors
    /// It was refused, or the gallery takes no writes.
    async fn update(&self, updates: Vec<Update>, fields: Vec<Field>) -> Result<Updated, StoreError>;

    /// Gives the entries of `vessels` to one vessel, and says how many moved.
    ///
    /// # Errors
    /// It was refused, or the gallery takes no writes.
    async fn merge(&self, vessels: Vec<VesselId>, into: VesselId) -> Result<u64, StoreError>;

    /// Begins to follow another model: from now on its embeddings are taken beside those that count. What is there of
    /// that model already goes on; a shadow of yet another model is given up.
    ///
    /// # Errors
    /// The gallery is of that model, keeps no chips, or takes no writes.
    async fn begin_shadow(&self, model: ModelDigest, dimension: usize) -> Result<(), StoreError>;

    /// Follows no model any more.
    ///
    /// # Errors
    /// The gallery takes no writes.
    async fn drop_shadow(&self) -> Result<(), StoreError>;

    /// Adds embeddings to the shadow of `model`, durably, and says how many were of use.
    ///
    /// # Errors
    /// There is no such shadow, or the gallery takes no writes.
    async fn fill_shadow(
        &self,
        model: ModelDigest,
        embeddings: Vec<(RowId, Embedding)>,
    ) -> Result<u64, StoreError>;

    /// Makes the shadow of `model` count, if it has an embedding for every entry.
    ///
    /// # Errors
    /// There is no such shadow, or the gallery takes no writes.
    async fn flip(&self, model: ModelDigest) -> Result<Flip, StoreError>;

    /// Says why the gallery does not get to a model, or that it does.
    fn stall(&self, reason: Option<(ModelDigest, String)>);

    /// Bytes that its files take.
    fn file_bytes(&self) -> u64;

    /// Whether its files have grown since they took `before` bytes, and beyond what is stored in them: then readers of
    /// old snapshots hold too much of what was deleted or replaced.
    fn is_held_up(&self, before: u64) -> bool;
}

/// What is known of a gallery as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    pub about: About,
    pub entries: u64,
    pub vessels: u64,
    /// Bytes of entries, embeddings and kept chips. What they take on a disk is more.
    pub stored_bytes: u64,
    /// Why it refuses writes, if it does.
    pub read_only: Option<String>,
    pub following: Option<Following>,
}

/// How far a gallery is on its way to another model.
#[derive(Clone, Debug, PartialEq)]
pub struct Following {
    pub model: ModelDigest,
    /// Entries that have an embedding by it.
    pub embedded: u64,
    /// Why it does not go on, if it does not.
    pub stalled: Option<String>,
}
