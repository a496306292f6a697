//! Enrolled ships: what is known of them, and a search in memory that proves its ranking exact.

mod content;
mod entry;
mod filter;
mod index;

pub use content::Content;
pub use entry::{
    ContentHash, Entry, EntryId, Heading, LABELS_MAX, Labels, LabelsError, NumberError, Observation,
    Position, TEXT_BYTES_MAX, TextError, Time, VesselId, check_number, check_text,
};
pub use filter::{Area, Filter, TimeRange, TimeRangeError};
pub use index::{
    Code, CodeRef, DetectionHash, Found, Group, Hit, Index, IndexQuery, RowId, SceneNumber, Selection,
    Sighting, VesselNumber, VesselSet, cosine,
};
