//! Enrolled ships: what is known of them, a durable store, and an in-memory search whose ranking is provably exact.

mod archive;
mod catalog;
mod content;
mod embedded;
mod entry;
mod filter;
mod index;
mod postgres;
mod record;
mod store;
#[cfg(test)]
pub mod tests;

pub use archive::{ArchiveError, Chips, Export, Inspected, inspect};
pub use catalog::{
    Catalog, CatalogError, CatalogStore, Census, Consistency, DraftError, DraftRow, GalleryDraft,
    GalleryName, Import, ImportBounds, ImportError, Listing, NameError, NewGallery, Place, Quotas, Read,
    Readable, Slot, Unserved, UnservedKind,
};
pub use content::Content;
pub use embedded::{EmbeddedCatalog, EmbeddedOpenError, EmbeddedSettings, QueueSettings};
pub use entry::{
    ContentHash, Entry, EntryId, Heading, LABELS_MAX, Labels, LabelsError, NumberError, Observation,
    ObservationError, Position, TEXT_BYTES_MAX, TextError, Time, VesselId, check_number, check_text,
};
pub use filter::{Area, Filter, TimeRange, TimeRangeError};
pub use index::{
    Code, DetectionHash, Group, Hit, Index, IndexQuery, IndexSelection, RowId, SceneNumber, SearchResult,
    Sighting, VesselNumber, VesselSet, VesselSummary, cosine, search_pace,
};
pub use postgres::{PostgresCatalog, PostgresSettings};
pub use store::{
    About, Conflict, Enrolled, Enrolment, Field, Flip, Following, Gallery, GalleryReader, GalleryStore, Info,
    Looked, Opening, Page, Reembedded, Selection, Selector, Shadow, ShadowEmbedding, ShadowTarget,
    StoreError, Update, Updated, VesselPage,
};
