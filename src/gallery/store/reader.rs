//! One committed state of a gallery, to be read.

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

/// One committed state of a gallery. It stays as it is while the gallery goes on; whoever holds one for long may hold
/// the space of what is deleted since.
///
/// Every method that returns an error may wait for a disk, so none is for an async task.
pub trait GalleryReader: fmt::Debug + Send + Sync {
    fn about(&self) -> &About;

    /// Commits up to here.
    fn commit(&self) -> u64;

    fn entries(&self) -> usize;

    /// Vessels that entries show; an entry without vessel id is one of its own.
    fn vessels(&self) -> usize;

    /// Bytes of entries, embeddings and kept chips. What they take on a disk is more.
    fn stored_bytes(&self) -> u64;

    /// Above the rows of all entries that ever were.
    fn next_row(&self) -> RowId;

    /// Embeddings in the shadow.
    fn shadow_rows(&self) -> u64;

    /// The first `size` rows above `after` that have no embedding in the shadow yet; none without a shadow.
    ///
    /// # Errors
    /// The gallery cannot be read.
    fn rows_to_shadow(&self, after: Option<RowId>, size: usize) -> Result<Vec<RowId>, StoreError>;

    /// # Errors
    /// The gallery cannot be read.
    fn find(&self, id: &EntryId) -> Result<Option<RowId>, StoreError>;

    /// # Errors
    /// There is no such row, or it cannot be read.
    fn entry(&self, row: RowId) -> Result<Entry, StoreError>;

    /// # Errors
    /// There is no such row, or it cannot be read.
    fn embedding(&self, row: RowId) -> Result<Embedding, StoreError>;

    /// The source chip of a row, where one was enrolled and is kept.
    ///
    /// # Errors
    /// There is no such row, or its chip should be there and cannot be read.
    fn chip(&self, row: RowId) -> Result<Option<SourceChip>, StoreError>;

    /// Whether the source chip of a row is kept, without reading it.
    ///
    /// # Errors
    /// There is no such row, or it cannot be read.
    fn keeps_chip(&self, row: RowId) -> Result<bool, StoreError>;

    /// The number of a scene; `None` where no entry is of it.
    fn scene_number(&self, scene_id: &str) -> Option<SceneNumber>;

    /// The rows that `filter` admits.
    ///
    /// # Errors
    /// The gallery cannot be read.
    fn select(&self, filter: &Filter) -> Result<Selection, StoreError>;

    /// # Panics
    /// When another state made the selection, as far as that shows.
    fn is_selected(&self, selection: &Selection, row: RowId) -> bool;

    /// The first `size` selected rows above `after`.
    ///
    /// # Panics
    /// When another state made the selection, as far as that shows.
    fn rows(&self, selection: &Selection, after: Option<RowId>, size: usize) -> Vec<RowId>;

    /// The first `size` vessels above `after`, by id, that selected entries show. Entries without vessel id count for
    /// none.
    ///
    /// # Panics
    /// When another state made the selection, as far as that shows.
    fn vessel_summaries(
        &self,
        selection: &Selection,
        after: Option<&VesselId>,
        size: usize,
    ) -> Vec<VesselSummary>;

    /// Shows the selected rows as the kinematic gate sees them, ascending.
    ///
    /// # Panics
    /// When another state made the selection, as far as that shows.
    fn for_each_sighting(&self, selection: &Selection, see: &mut dyn FnMut(Sighting));

    /// The best of a selection for every query: what brute force over their vectors gives.
    ///
    /// # Errors
    /// The gallery cannot be read, or it was cancelled.
    ///
    /// # Panics
    /// When a query has another dimension, or another state made the selection.
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
    /// What is enrolled while somebody pages through comes last; nothing that stays is passed over or comes twice.
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

    /// The first `size` vessels above `after`, by id, of which `filter` admits an entry.
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

/// Entries that were asked for by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Looked {
    /// In the order asked for.
    pub found: Vec<(RowId, Entry)>,
    pub missing: Vec<EntryId>,
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// By ascending row.
    pub entries: Vec<(RowId, Entry)>,
    /// Where the next page begins, unless this is the last one.
    pub next: Option<RowId>,
}

/// A part of a listing of vessels.
#[derive(Clone, Debug, PartialEq)]
pub struct VesselPage {
    /// By id.
    pub vessels: Vec<VesselSummary>,
    /// Where the next page begins, unless this is the last one.
    pub next: Option<VesselId>,
}

/// Rows that take part, of the reader that selected them.
#[derive(Clone, Debug)]
pub struct Selection(pub(in crate::gallery) IndexSelection);

impl Selection {
    /// Rows that take part.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
