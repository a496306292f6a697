//! The interface between users of a gallery and its storage: a [`GalleryStore`] accepts changes and publishes one
//! committed state after the other, each a [`GalleryReader`]. The interface for all galleries is the
//! [`catalog`](super::catalog).
//!
//! `gallery::tests::conformance` defines what every store must do; [`embedded`](super::embedded) keeps a gallery in
//! files of its own.

mod about;
mod error;
pub(super) mod opening;
mod operation;
mod reader;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use about::{About, Reembedded, Shadow, ShadowTarget};
pub use error::StoreError;
pub use opening::{Files, Opening};
pub use operation::{Conflict, Enrolled, Enrolment, Field, Flip, Selector, ShadowEmbedding, Update, Updated};
pub use reader::{GalleryReader, Looked, Page, Selection, VesselPage};

use super::entry::VesselId;
use super::index::RowId;
use crate::embedding::{Embedding, ModelDigest};

/// One gallery that is served, in any store.
pub type Gallery = Arc<dyn GalleryStore>;

/// Accepts changes to a gallery. What it acknowledges is in every later [`snapshot`](Self::snapshot) and survives a
/// power failure; what is deleted never comes back.
#[async_trait]
pub trait GalleryStore: fmt::Debug + Send + Sync {
    /// The committed state.
    fn snapshot(&self) -> Arc<dyn GalleryReader>;

    /// The period to which snapshots taken after this call belong.
    fn opening(&self) -> Opening;

    fn info(&self) -> Info;

    /// Stores a sighting.
    ///
    /// # Errors
    /// It was refused, or the gallery does not accept writes.
    async fn enrol(&self, enrolment: Enrolment) -> Result<Enrolled, StoreError>;

    /// Deletes entries with their embeddings and chips, and returns how many there were. Final once this returns.
    ///
    /// # Errors
    /// The gallery does not accept writes.
    async fn delete(&self, selector: Selector) -> Result<u64, StoreError>;

    /// Updates `fields` of entries, all of them or none. Embeddings, chips and content stay.
    ///
    /// # Errors
    /// It was refused, or the gallery does not accept writes.
    async fn update(&self, updates: Vec<Update>, fields: Vec<Field>) -> Result<Updated, StoreError>;

    /// Moves the entries of `vessels` to one vessel, and returns how many moved.
    ///
    /// # Errors
    /// It was refused, or the gallery does not accept writes.
    async fn merge(&self, vessels: Vec<VesselId>, into: VesselId) -> Result<u64, StoreError>;

    /// Begins to move to another model: from now on the store accepts its embeddings in a shadow. An existing shadow of
    /// that model is continued; one of another model is dropped.
    ///
    /// # Errors
    /// The gallery is of that model already, keeps no chips, or does not accept writes.
    async fn begin_shadow(&self, target: ShadowTarget) -> Result<(), StoreError>;

    /// Drops the shadow.
    ///
    /// # Errors
    /// The gallery does not accept writes.
    async fn drop_shadow(&self) -> Result<(), StoreError>;

    /// Adds embeddings to the shadow of `model`, durably, and returns how many were new.
    ///
    /// # Errors
    /// There is no such shadow, or the gallery does not accept writes.
    async fn fill_shadow(
        &self,
        model: ModelDigest,
        embeddings: Vec<(RowId, Embedding)>,
    ) -> Result<u64, StoreError>;

    /// Makes the shadow of `model` active if it has an embedding for every entry.
    ///
    /// # Errors
    /// There is no such shadow, or the gallery does not accept writes.
    async fn flip(&self, model: ModelDigest) -> Result<Flip, StoreError>;

    /// Records why the gallery cannot move to a model; `None` clears that.
    fn stall(&self, reason: Option<(ModelDigest, String)>);

    /// Bytes that its files take.
    fn file_bytes(&self) -> u64;

    /// Whether its files have outgrown what is stored in them, and have grown since they took `before` bytes: readers
    /// of old snapshots then hold too much deleted or replaced data.
    fn is_held_up(&self, before: u64) -> bool;
}

/// What is known of a gallery as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    pub about: About,
    pub entries: u64,
    pub vessels: u64,
    /// Bytes of entries, embeddings and kept chips. They take more on a disk.
    pub stored_bytes: u64,
    /// Why it refuses writes, if it does.
    pub read_only: Option<String>,
    pub following: Option<Following>,
}

/// How far a gallery has moved to another model.
#[derive(Clone, Debug, PartialEq)]
pub struct Following {
    pub model: ModelDigest,
    /// Number of entries that have an embedding by it.
    pub embedded: u64,
    /// Why it is stuck, if it is.
    pub stalled: Option<String>,
}
