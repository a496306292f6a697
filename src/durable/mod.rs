//! Storage that survives a power failure intact.

mod database;
#[cfg(test)]
pub mod faults;
mod folder;
mod lock;
mod sealed;
mod shield;
mod tenant_folder;
mod volume;

pub use database::{Database, DatabaseError, Panicked, caught, guard};
pub use folder::{PartialFolder, discard_folder, ensure_folder, remove_partial, write_folder};
pub use lock::{DirectoryLock, LockError};
pub use sealed::{BrokenSeal, seal_text, unseal_text};
pub use shield::{Health, WriteFailure, is_full};
pub use tenant_folder::tenant_folder;
pub use volume::{Folder, Volume};
