//! Galleries for calls that read them: up to date, or this server's copies as they are if they are recent enough.

use std::sync::Arc;

use tokio::time::timeout;

use super::{PostgresCatalog, State};
use crate::durable::tenant_folder;
use crate::gallery::catalog::{CatalogError, CatalogStore, Consistency, GalleryName, Place, Read, Readable};
use crate::gallery::postgres::gallery::PostgresGallery;
use crate::gallery::store::{Gallery, StoreError};

impl PostgresCatalog {
    pub(super) async fn readable(
        &self,
        tenant: &str,
        name: &GalleryName,
        read: Read,
    ) -> Result<Readable, CatalogError> {
        let gallery = match read.consistency {
            Consistency::Strong => self.get(tenant, name).await?,
            Consistency::Local => {
                if let Some(recent) = self.recent(tenant, name, read.min_commit)? {
                    return Ok(recent);
                }
                self.soon(tenant, name).await?
            }
        };
        Readable::now(gallery).at_least(read.min_commit)
    }

    /// This server's copy, if it is recent enough and has the commit.
    fn recent(
        &self,
        tenant: &str,
        name: &GalleryName,
        min_commit: u64,
    ) -> Result<Option<Readable>, CatalogError> {
        let Some(gallery) = self.state().copy(tenant, name)? else { return Ok(None) };
        let Some(age) = gallery.known_age().filter(|age| *age <= self.0.local_age_max) else {
            return Ok(None);
        };
        Ok(Readable { gallery, age }.at_least(min_commit).ok())
    }

    /// The gallery up to date, if that takes no longer than a copy may be old.
    async fn soon(&self, tenant: &str, name: &GalleryName) -> Result<Gallery, CatalogError> {
        let limit = self.0.local_age_max;
        match timeout(limit, self.get(tenant, name)).await {
            Ok(Err(CatalogError::Store(cause @ (StoreError::Unreachable(_) | StoreError::Outdated)))) => {
                Err(CatalogError::Stale { limit, cause: Some(cause) })
            }
            Ok(got) => got,
            Err(_) => Err(CatalogError::Stale { limit, cause: None }),
        }
    }
}

impl State {
    /// The gallery that is open under a name and served.
    fn copy(&self, tenant: &str, name: &GalleryName) -> Result<Option<Arc<PostgresGallery>>, StoreError> {
        if self.lock.is_none() {
            return Err(StoreError::Closed);
        }
        let place = Place { tenant: tenant_folder(tenant).into(), name: name.clone() };
        let opened = self.numbers.get(&place).and_then(|id| self.open.get(id));
        Ok(opened.and_then(|opened| opened.gallery.as_ref().ok().cloned()))
    }
}
