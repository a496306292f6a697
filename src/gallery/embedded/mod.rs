//! The store of a single server: one gallery in files of its own. What is acknowledged is there after a power failure,
//! and what is deleted is not.

pub(super) mod batch;
mod error;
pub(super) mod builder;
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

pub use handle::{EmbeddedGallery, QueueSettings};
pub use open::OpenError;
pub use quota::Quotas;
#[cfg(test)]
pub use snapshot::Snapshot;
