//! How current a gallery must be for a call that reads it.

use std::time::Duration;

use super::CatalogError;
use crate::gallery::store::Gallery;

/// What a call that reads a gallery asks of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    pub consistency: Consistency,
    /// The commit that the gallery must have reached.
    pub min_commit: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Everything that any server acknowledged before is seen.
    #[default]
    Strong,
    /// What this server has, if that is recent enough.
    Local,
}

/// A gallery that can be read as a call asked.
#[derive(Clone, Debug)]
pub struct Readable {
    pub gallery: Gallery,
    /// Every commit that is older than this is there; zero where all commits are.
    pub age: Duration,
}

impl Readable {
    /// A gallery that is up to date.
    pub fn now(gallery: Gallery) -> Self {
        Self { gallery, age: Duration::ZERO }
    }

    /// # Errors
    /// The gallery is up to date and has not reached the commit.
    pub fn at_least(self, min_commit: u64) -> Result<Self, CatalogError> {
        let commit = self.gallery.snapshot().commit();
        if commit >= min_commit { Ok(self) } else { Err(CatalogError::CommitUnknown { min_commit, commit }) }
    }
}
