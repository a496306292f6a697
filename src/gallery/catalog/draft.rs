//! Galleries that are made of rows that another gallery had.

use std::fmt;

use super::error::CatalogError;
use crate::cancellation::Cancellation;
use crate::chip::SourceChip;
use crate::embedding::Embedding;
use crate::gallery::entry::{Entry, EntryId};
use crate::gallery::index::RowId;
use crate::gallery::store::{About, Gallery};

/// A gallery that is being made row by row, and that nobody sees before it is whole. Dropped before it is finished, it
/// leaves nothing behind.
///
/// What its methods do is to compute as much as to wait, so none is for an async task. A store over a network waits on
/// the thread that it is called on.
pub trait GalleryDraft: fmt::Debug + Send {
    /// Says what the gallery is made for; once, before all rows.
    ///
    /// # Errors
    /// The store cannot take it.
    fn begin(&mut self, about: About) -> Result<(), CatalogError>;

    /// Whether the tenant has room for this many bytes more.
    ///
    /// # Errors
    /// He has not.
    fn check_room(&self, bytes: u64) -> Result<(), CatalogError>;

    /// Adds a row above all rows before.
    ///
    /// # Errors
    /// Its id was there before, which may show later; a quota is reached, or the store cannot take it.
    ///
    /// # Panics
    /// When the gallery was not begun.
    fn add(&mut self, row: DraftRow) -> Result<(), DraftError>;

    /// Makes the gallery, which survives a power failure from then on. `next_row` is above all rows.
    ///
    /// # Errors
    /// The name was taken meanwhile, the store cannot take it, or it was cancelled before the gallery is there.
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

/// Why a draft becomes no gallery.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DraftError {
    #[error("the entry \"{0}\" is there twice")]
    Twice(EntryId),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}
