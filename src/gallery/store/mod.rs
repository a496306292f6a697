//! One gallery on disk: what is acknowledged is there after a power failure, and what is deleted is not.

pub(super) mod batch;
mod error;
pub(super) mod foundation;
pub(super) mod handle;
mod open;
mod operation;
pub(super) mod quota;
pub(super) mod record;
mod recovery;
pub(super) mod schema;
pub(super) mod sidecar;
mod shadow;
mod snapshot;
pub(super) mod writer;

pub use error::StoreError;
pub use handle::{Following, Gallery, Info, QueueSettings};
pub use open::OpenError;
pub use operation::{Conflict, Enrolled, Enrolment, Field, Selector, ShadowEmbedding, Update, Updated};
pub use quota::Quotas;
pub use schema::{About, Shadow};
pub use shadow::Flip;
pub use snapshot::{Looked, Page, Snapshot};
