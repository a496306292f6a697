//! The database that servers share: connections to it, statements, and its tables' versions. What the tables hold is the
//! business of the stores above: galleries, training jobs, models.

mod cluster;
mod failure;
mod fence;
mod files;
mod link;
mod schema;
mod skew;
mod statement;
mod target;
#[cfg(test)]
pub mod trial;

pub use cluster::Cluster;
pub use failure::{Unreachable, failed};
pub use fence::Fence;
pub use files::{FolderError, StoredFolder, files_in};
pub use link::{Database, READING, Transaction, WRITING};
pub use schema::{Tenancy, check_usable};
pub use skew::observe_skew;
pub(crate) use statement::{execute, query};
