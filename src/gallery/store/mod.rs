//! One gallery on disk: what is acknowledged is there after a power failure, and what is deleted is not.

mod batch;
mod error;
pub(super) mod foundation;
mod handle;
mod open;
mod operation;
pub(super) mod quota;
pub(super) mod record;
mod schema;
mod sidecar;
mod snapshot;
pub(super) mod writer;

pub use error::StoreError;
pub use handle::{Gallery, Info, QueueSettings};
pub use open::OpenError;
pub use operation::{Conflict, Enrolled, Enrolment, Field, Selector, Update, Updated};
pub use quota::Quotas;
pub use schema::About;
pub use snapshot::{Looked, Page, Snapshot};
