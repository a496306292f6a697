//! The store of a single server: each gallery has its own files, all in one folder. Acknowledged writes and deletions
//! survive a power failure.

pub(super) mod batch;
pub(super) mod builder;
mod catalog;
mod error;
pub(super) mod handle;
mod open;
pub(super) mod quota;
pub(super) mod record;
mod recovery;
mod scan;
pub(super) mod schema;
mod shadow;
pub(super) mod sidecar;
mod snapshot;
pub(super) mod writer;

pub use catalog::{EmbeddedCatalog, EmbeddedOpenError, EmbeddedSettings};
pub use handle::QueueSettings;
#[cfg(test)]
pub use snapshot::Snapshot;
