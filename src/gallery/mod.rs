//! Enrolled ships: what is known of them, a store that loses none, and a search in memory that proves its ranking
//! exact.

mod archive;
mod content;
mod embedded;
mod entry;
mod filter;
mod index;
mod catalog;
mod store;
#[cfg(test)]
pub mod tests;

pub use archive::{ArchiveError, Chips, Export, Inspected, inspect};
pub use catalog::{
    Catalog, CatalogError, CatalogOpenError, CatalogSettings, Census, GalleryName, Import, ImportError,
    Listing, NameError, NewGallery, Place, Slot,
};
pub use content::Content;
pub use embedded::{OpenError, QueueSettings, Quotas};
pub use entry::{
    ContentHash, Entry, EntryId, Heading, LABELS_MAX, Labels, LabelsError, NumberError, Observation,
    ObservationError, Position, TEXT_BYTES_MAX, TextError, Time, VesselId, check_number, check_text,
};
pub use filter::{Area, Filter, TimeRange, TimeRangeError};
pub use index::{
    Code, CodeRef, DetectionHash, Found, Group, Hit, Index, IndexQuery, RowId, SceneNumber, Selection,
    Sighting, VesselNumber, VesselSet, VesselSummary, cosine, search_pace,
};
pub use store::{
    About, Conflict, Enrolled, Enrolment, Field, Flip, Following, Gallery, GalleryReader, GalleryStore, Info,
    Looked, Opening, Page, Selector, Shadow, ShadowEmbedding, StoreError, Update, Updated, VesselPage,
};
