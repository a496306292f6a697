//! The store of a single server: each gallery in files of its own, all of them in one folder. What is acknowledged is
//! there after a power failure, and what is deleted is not.

pub(super) mod batch;
pub(super) mod builder;
mod catalog;
mod error;
pub(super) mod handle;
mod open;
pub(super) mod quota;
pub(super) mod record;
mod recovery;
pub(super) mod schema;
mod shadow;
pub(super) mod sidecar;
mod snapshot;
pub(super) mod writer;

pub use catalog::{EmbeddedCatalog, EmbeddedOpenError, EmbeddedSettings};
pub use handle::QueueSettings;
#[cfg(test)]
pub use snapshot::Snapshot;
