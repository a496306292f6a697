//! Whether there is memory for one more copy of a gallery.

use std::sync::Arc;

use super::{PostgresCatalog, State, blocking};
use crate::durable::tenant_folder;
use crate::gallery::catalog::{CatalogError, GalleryName, Place, Unserved, UnservedKind};
use crate::gallery::postgres::delta::Head;
use crate::gallery::postgres::journal::head;
use crate::gallery::store::{GalleryStore, StoreError};

/// Memory of an entry besides its codes, of which there is a byte for each number: 116 to 161 were measured, with the tables of
/// ids, vessels and places.
const ENTRY_BYTES: u64 = 192;

impl PostgresCatalog {
    /// Why there is no memory for a copy of a gallery as it is in the database; `None` if there is enough. Blocks.
    ///
    /// # Errors
    /// The gallery is deleted, or the database cannot be reached.
    pub(super) fn lacks_room(&self, id: i64) -> Result<Option<Arc<Unserved>>, StoreError> {
        let database = self.database();
        let Head { about, state, entries, .. } = database.wait(async {
            let connection = database.connection().await?;
            head(&connection, id, "").await
        })?;
        let needed = self.copy_bytes(about.dimension, entries, state.bytes);
        let limit = self.0.resident_bytes_max;
        let left = limit.saturating_sub(self.resident_bytes());
        let mut state = self.state();
        if needed <= left {
            state.lacking.remove(&id);
            return Ok(None);
        }
        let cause = format!(
            "a copy of its {entries} entries takes about {needed} bytes of memory, and {left} of the {limit} bytes of \
             store.resident_bytes_max are left"
        );
        let way_out = "give this server more memory, or have it hold fewer galleries (matching.galleries)";
        if state.lacking.insert(id) {
            tracing::error!(gallery = id, cause, way_out, "a gallery is not served");
        }
        Ok(Some(Arc::new(Unserved { kind: UnservedKind::TooLarge, cause, way_out })))
    }

    /// Galleries may have become smaller, or fewer: those for which there is memory now are loaded when they are next asked
    /// for, or followed.
    ///
    /// # Errors
    /// The work panicked.
    pub(in crate::gallery) async fn try_lacking_again(&self) -> Result<(), CatalogError> {
        let lacking = self.state().lacking.clone();
        if lacking.is_empty() {
            return Ok(());
        }
        let catalog = self.clone();
        blocking(self.database(), move || {
            for id in lacking {
                // One that is deleted, or cannot be read, stays as it is.
                if let Ok(None) = catalog.lacks_room(id) {
                    catalog.state().remove(id);
                }
            }
            Ok(())
        })
        .await
    }

    /// Memory that the copies of this server take.
    fn resident_bytes(&self) -> u64 {
        let state = self.state();
        let galleries = state.open.values().filter_map(|opened| opened.gallery.as_ref().ok());
        let bytes = galleries.map(|gallery| {
            let info = gallery.info();
            self.copy_bytes(info.about.dimension, info.entries, info.stored_bytes)
        });
        bytes.sum()
    }

    /// Memory of a copy: its index, and as much of its file as is cached.
    fn copy_bytes(&self, dimension: usize, entries: u64, stored_bytes: u64) -> u64 {
        let index = entries.saturating_mul(dimension as u64 + ENTRY_BYTES);
        index.saturating_add(stored_bytes.min(self.0.settings.cache_bytes as u64))
    }
}

impl State {
    /// Whether there is no memory for a gallery.
    pub(super) fn is_lacking(&self, tenant: &str, name: &GalleryName) -> bool {
        let place = Place { tenant: tenant_folder(tenant).into(), name: name.clone() };
        self.numbers.get(&place).is_some_and(|id| self.lacking.contains(id))
    }
}
