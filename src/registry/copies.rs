//! This server's copies of the models that servers share.

use std::path::Path;

use super::shared::{Shared, SharedModels};
use super::stored::inspect;
use super::{Registry, RegistryError, RegistryLimits, at};
use crate::durable::discard_folder;
use crate::embedding::ModelDigest;
use crate::postgres::Cluster;

impl Registry {
    /// Opens copies in `folder` of the models that servers share, and brings them up to date.
    ///
    /// # Errors
    /// The folder or the database cannot be used.
    pub fn share(folder: &Path, limits: RegistryLimits, cluster: Cluster) -> Result<Self, RegistryError> {
        let folder = folder.join(&cluster.id);
        let registry = Self { shared: Some(SharedModels::new(cluster)), ..Self::open(&folder, limits)? };
        registry.sync()?;
        Ok(registry)
    }

    /// The database that servers share, if they do.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.shared.as_ref().map(SharedModels::cluster)
    }

    /// Takes in what other servers have added, deleted and activated; nothing where models are this server's own.
    ///
    /// # Errors
    /// The database cannot be reached, or a copy cannot be written; the others are up to date then.
    pub fn sync(&self) -> Result<(), RegistryError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        // While a model is being added, which may take minutes, nobody waits who has missed nothing.
        if self.is_up_to_date(&shared.list()?) {
            return Ok(());
        }
        let _writing = self.writing();
        self.sync_alone()
    }

    fn is_up_to_date(&self, Shared { models, active }: &Shared) -> bool {
        let catalog = self.catalog();
        let has = |digest: &ModelDigest| catalog.models.contains_key(digest);
        catalog.active == *active && catalog.models.len() == models.len() && models.iter().all(has)
    }

    /// The same for callers that hold the `writing` lock.
    pub(super) fn sync_alone(&self) -> Result<(), RegistryError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let Shared { models, active } = shared.list()?;
        self.change(|catalog| catalog.active = active);
        let known: Vec<ModelDigest> = self.catalog().models.keys().copied().collect();
        let mut outcome = Ok(());
        for digest in known.iter().copied().filter(|digest| !models.contains(digest)) {
            outcome = outcome.and(self.discard(digest));
        }
        for digest in models.into_iter().filter(|digest| !known.contains(digest)) {
            outcome = outcome.and(self.fetch(shared, digest));
        }
        outcome
    }

    /// Copies a model from the database.
    pub(super) fn fetch(&self, shared: &SharedModels, digest: ModelDigest) -> Result<(), RegistryError> {
        shared.fetch(digest, &self.place(digest))?;
        let stored = inspect(&self.folder, digest);
        self.change(|catalog| catalog.models.insert(digest, stored));
        Ok(())
    }

    /// Removes a model from the disk.
    pub(super) fn discard(&self, digest: ModelDigest) -> Result<(), RegistryError> {
        let place = self.place(digest);
        discard_folder(&place).map_err(at(&place))?;
        self.change(|catalog| catalog.models.remove(&digest));
        Ok(())
    }
}
