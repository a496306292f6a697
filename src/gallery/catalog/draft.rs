//! Galleries built from another gallery's rows.

use std::fmt;

use super::error::CatalogError;
use crate::cancellation::Cancellation;
use crate::chip::SourceChip;
use crate::embedding::Embedding;
use crate::gallery::entry::{Entry, EntryId};
use crate::gallery::index::RowId;
use crate::gallery::store::{About, Gallery};

/// A gallery that is being built row by row and is invisible until it is complete. Dropped before it is finished, it
/// leaves nothing behind.
///
/// Its methods compute and block, so they must not run on an async task. A store over a network blocks the calling
/// thread.
pub trait GalleryDraft: fmt::Debug + Send {
    /// Sets what the gallery is made for. Call it once, before adding rows.
    ///
    /// # Errors
    /// The store does not accept it.
    fn begin(&mut self, about: About) -> Result<(), CatalogError>;

    /// Checks that the tenant has room for `bytes` more.
    ///
    /// # Errors
    /// There is not enough room.
    fn check_room(&self, bytes: u64) -> Result<(), CatalogError>;

    /// Adds a row above all rows before.
    ///
    /// # Errors
    /// Its id is already taken, which may be reported later; a quota is reached, or the store does not accept the row.
    ///
    /// # Panics
    /// When the gallery was not begun.
    fn add(&mut self, row: DraftRow) -> Result<(), DraftError>;

    /// Creates the gallery; it survives a power failure once this returns. `next_row` is above all rows.
    ///
    /// # Errors
    /// The name was taken meanwhile, the store does not accept the gallery, or the call was cancelled before the
    /// gallery existed.
    ///
    /// # Panics
    /// When the gallery was not begun.
    fn finish(self: Box<Self>, next_row: RowId, cancellation: &Cancellation) -> Result<Gallery, DraftError>;
}

/// A row as another gallery had it.
#[derive(Clone, Debug)]
pub struct DraftRow {
    pub row: RowId,
    pub entry: Entry,
    pub embedding: Embedding,
    pub chip: Option<SourceChip>,
}

/// Why a draft does not become a gallery.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DraftError {
    #[error("the entry \"{0}\" is there twice")]
    Twice(EntryId),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}
