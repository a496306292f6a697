//! The store of a single server: each gallery has its own files, all in one folder. Acknowledged writes and deletions
//! survive a power failure.

pub(super) mod batch;
pub(super) mod builder;
mod catalog;
mod error;
mod follow;
mod gathering;
pub(super) mod handle;
pub(super) mod journal;
mod open;
pub(super) mod prepared;
pub(super) mod quota;
pub(super) mod record;
mod recovery;
mod scan;
pub(super) mod schema;
mod shadow;
pub(super) mod sidecar;
mod snapshot;
pub(super) mod writer;

pub(super) use builder::{GalleryBuilder, NewRow, SealedRow};
pub use catalog::{EmbeddedCatalog, EmbeddedOpenError, EmbeddedSettings};
pub(super) use handle::EmbeddedGallery;
pub use handle::QueueSettings;
pub(super) use journal::{Delta, Effects, Inserted, Journal, Known};
pub(super) use quota::Allowance;
pub(super) use record::{RowRecord, StateRecord};
pub(super) use schema::{SchemaError, about_of, sealed_about};
pub(super) use snapshot::Snapshot;
pub(super) use writer::{Bounds, Writer};
