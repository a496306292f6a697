//! Reading one committed state of a gallery.

use std::fmt;

use super::about::About;
use super::error::StoreError;
use crate::cancellation::Cancellation;
use crate::chip::SourceChip;
use crate::embedding::Embedding;
use crate::gallery::entry::{ContentHash, Entry, EntryId, VesselId};
use crate::gallery::filter::Filter;
use crate::gallery::index::{
    Group, IndexQuery, IndexSelection, RowId, SceneNumber, SearchResult, Sighting, VesselSummary,
};

/// One committed state of a gallery, unaffected by later writes. Holding one for long can keep the space of deleted
/// data in use.
///
/// Every method that returns an error may block on a disk, so none must run on an async task.
pub trait GalleryReader: fmt::Debug + Send + Sync {
    fn about(&self) -> &About;

    /// Number of commits up to this state.
    fn commit(&self) -> u64;

    fn entries(&self) -> usize;

    /// Number of vessels that entries show; an entry without vessel id is a vessel of its own.
    fn vessels(&self) -> usize;

    /// Bytes of entries, embeddings and kept chips. They take more on a disk.
    fn stored_bytes(&self) -> u64;

    /// Above the rows of all entries that ever existed.
    fn next_row(&self) -> RowId;

    /// Number of embeddings in the shadow.
    fn shadow_rows(&self) -> u64;

    /// The first `size` rows above `after` that have no embedding in the shadow yet; empty without a shadow.
    ///
    /// # Errors
    /// The gallery cannot be read.
    fn rows_to_shadow(&self, after: Option<RowId>, size: usize) -> Result<Vec<RowId>, StoreError>;

    /// # Errors
    /// The gallery cannot be read.
    fn find(&self, id: &EntryId) -> Result<Option<RowId>, StoreError>;

    /// # Errors
    /// The row does not exist, or it cannot be read.
    fn entry(&self, row: RowId) -> Result<Entry, StoreError>;

    /// # Errors
    /// The row does not exist, or it cannot be read.
    fn embedding(&self, row: RowId) -> Result<Embedding, StoreError>;

    /// The source chip of a row, if one was enrolled and is kept.
    ///
    /// # Errors
    /// The row does not exist, or its chip should exist and cannot be read.
    fn chip(&self, row: RowId) -> Result<Option<SourceChip>, StoreError>;

    /// Whether the source chip of a row is kept, without reading it.
    ///
    /// # Errors
    /// The row does not exist, or it cannot be read.
    fn keeps_chip(&self, row: RowId) -> Result<bool, StoreError>;

    /// The number of a scene; `None` if no entry is of it.
    fn scene_number(&self, scene_id: &str) -> Option<SceneNumber>;

    /// The rows that `filter` admits.
    ///
    /// # Errors
    /// The gallery cannot be read.
    fn select(&self, filter: &Filter) -> Result<Selection, StoreError>;

    /// # Panics
    /// Another state made the selection, where that can be detected.
    fn is_selected(&self, selection: &Selection, row: RowId) -> bool;

    /// The first `size` selected rows above `after`.
    ///
    /// # Panics
    /// Another state made the selection, where that can be detected.
    fn rows(&self, selection: &Selection, after: Option<RowId>, size: usize) -> Vec<RowId>;

    /// The first `size` vessels above `after`, by id, that selected entries show. Entries without vessel id are
    /// skipped.
    ///
    /// # Panics
    /// Another state made the selection, where that can be detected.
    fn vessel_summaries(
        &self,
        selection: &Selection,
        after: Option<&VesselId>,
        size: usize,
    ) -> Vec<VesselSummary>;

    /// Passes on the selected rows with what the kinematic gate needs, ascending.
    ///
    /// # Panics
    /// Another state made the selection, where that can be detected.
    fn for_each_sighting(&self, selection: &Selection, see: &mut dyn FnMut(Sighting));

    /// The best of a selection for every query, with the same result as brute force over the vectors.
    ///
    /// # Errors
    /// The gallery cannot be read, or it was cancelled.
    ///
    /// # Panics
    /// A query has another dimension, or another state made the selection.
    fn search(
        &self,
        queries: &[IndexQuery<'_>],
        selection: &Selection,
        group: Group,
        cancellation: &Cancellation,
    ) -> Result<Vec<SearchResult>, StoreError>;

    /// Whether this content is enrolled under this id, so that enrolling it again would change nothing.
    ///
    /// # Errors
    /// The gallery cannot be read.
    fn is_enrolled(&self, id: &EntryId, content: &ContentHash) -> Result<bool, StoreError> {
        let Some(row) = self.find(id)? else { return Ok(false) };
        Ok(self.entry(row)?.content == *content)
    }

    /// # Errors
    /// The gallery cannot be read, or it was cancelled.
    fn get(&self, ids: &[EntryId], cancellation: &Cancellation) -> Result<Looked, StoreError> {
        let mut looked = Looked::default();
        for id in ids {
            cancellation.check()?;
            match self.find(id)? {
                Some(row) => looked.found.push((row, self.entry(row)?)),
                None => looked.missing.push(id.clone()),
            }
        }
        Ok(looked)
    }

    /// The first `size` entries that `filter` admits in rows above `after`.
    ///
    /// Entries enrolled during paging come last; entries that remain are neither skipped nor repeated.
    ///
    /// # Errors
    /// The gallery cannot be read, or it was cancelled.
    fn list(
        &self,
        filter: &Filter,
        after: Option<RowId>,
        size: usize,
        cancellation: &Cancellation,
    ) -> Result<Page, StoreError> {
        let selection = self.select(filter)?;
        let mut rows = self.rows(&selection, after, size.saturating_add(1));
        let goes_on = rows.len() > size;
        rows.truncate(size);
        let next = rows.last().copied().filter(|_| goes_on);
        let entries = rows.into_iter().map(|row| {
            cancellation.check()?;
            Ok((row, self.entry(row)?))
        });
        Ok(Page { entries: entries.collect::<Result<_, StoreError>>()?, next })
    }

    /// The first `size` vessels above `after`, by id, with an entry that `filter` admits.
    ///
    /// # Errors
    /// The gallery cannot be read, or it was cancelled.
    fn list_vessels(
        &self,
        filter: &Filter,
        after: Option<&VesselId>,
        size: usize,
        cancellation: &Cancellation,
    ) -> Result<VesselPage, StoreError> {
        let selection = self.select(filter)?;
        cancellation.check()?;
        let mut vessels = self.vessel_summaries(&selection, after, size.saturating_add(1));
        let goes_on = vessels.len() > size;
        vessels.truncate(size);
        let next = vessels.last().map(|vessel| vessel.id.clone()).filter(|_| goes_on);
        Ok(VesselPage { vessels, next })
    }
}

/// Entries that were requested by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Looked {
    /// In the requested order.
    pub found: Vec<(RowId, Entry)>,
    pub missing: Vec<EntryId>,
}

/// A page of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// By ascending row.
    pub entries: Vec<(RowId, Entry)>,
    /// Where the next page begins, `None` on the last one.
    pub next: Option<RowId>,
}

/// A page of a listing of vessels.
#[derive(Clone, Debug, PartialEq)]
pub struct VesselPage {
    /// By id.
    pub vessels: Vec<VesselSummary>,
    /// Where the next page begins, `None` on the last one.
    pub next: Option<VesselId>,
}

/// The rows that take part. Valid only for the reader that selected them.
#[derive(Clone, Debug)]
pub struct Selection(pub(in crate::gallery) IndexSelection);

impl Selection {
    /// Number of rows that take part.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
