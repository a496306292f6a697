//! The store of several servers: PostgreSQL holds the truth, and every server has a copy of each gallery in files of its
//! own, which answers all reads.
//!
//! A write locks the gallery's row in the database, takes in what other servers have committed since, and is then applied
//! to the copy as [`embedded`](super::embedded) applies it; its changes are committed to the database first. So the
//! numbers of commits are their order, and all copies agree. A copy follows by these numbers, not by a sequence, whose
//! order is not that of commits.
//!
//! Whoever asks the catalog for a gallery gets one that has seen everything acknowledged before, by any server.

mod catalog;
mod delta;
mod gallery;
mod journal;
mod load;
mod rows;
mod settings;
mod sweep;

pub use catalog::PostgresCatalog;
pub use settings::PostgresSettings;
