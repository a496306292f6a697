//! This server's copies of the galleries: loaded, brought up to date, and removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{Inner, LISTED, Listed, Opened, PostgresCatalog, blocking};
use crate::durable::{discard_folder, tenant_folder};
use crate::gallery::catalog::{CatalogError, GalleryName, Place, Unserved, UnservedKind};
use crate::gallery::embedded::Bounds;
use crate::gallery::postgres::gallery::PostgresGallery;
use crate::gallery::postgres::load::{load_copy, open_copy};
use crate::gallery::postgres::sweep::sweep;
use crate::gallery::store::StoreError;
use crate::metrics;
use crate::postgres::{observe_skew, query};

/// How often the copies follow the database without being asked for.
const POLL: Duration = Duration::from_millis(200);
/// Copies that follow at once.
const FOLLOWING_MAX: usize = 4;
/// Every so many polls, what nobody wants any more is removed and clocks are compared.
const POLLS_PER_SWEEP: u32 = 25;

impl PostgresCatalog {
    fn copy_folder(&self, id: i64) -> PathBuf {
        self.0.folder.join(id.to_string())
    }

    fn bounds(&self, tenant: &str) -> Bounds {
        let settings = &self.0.settings;
        let allowance = self.allowance(tenant);
        Bounds { cache_bytes: settings.cache_bytes, quotas: settings.quotas, allowance }
    }

    /// The gallery with this server's copy, which is loaded if there is none, or why there can be none. Blocks.
    pub(super) fn open_or_load(
        &self,
        tenant: &str,
        name: &GalleryName,
        id: i64,
    ) -> Result<Opened, CatalogError> {
        let _loading = self.0.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = self.opened(id)? {
            return Ok(opened);
        }
        let gallery = match self.lacks_room(id)? {
            None => self.loaded(tenant, id)?,
            Some(unserved) => Err(unserved),
        };
        let place = Place { tenant: tenant_folder(tenant).into(), name: name.clone() };
        let opened = Opened { place, gallery };
        let mut state = self.state();
        state.numbers.insert(opened.place.clone(), id);
        state.open.insert(id, opened.clone());
        Ok(opened)
    }

    /// The copy in the folder, or one that is loaded from the database.
    fn loaded(
        &self,
        tenant: &str,
        id: i64,
    ) -> Result<Result<Arc<PostgresGallery>, Arc<Unserved>>, CatalogError> {
        let Inner { database, settings, .. } = &*self.0;
        let folder = self.copy_folder(id);
        let open = || open_copy(&folder, database, id, self.bounds(tenant), settings);
        let copy = match open() {
            Ok(copy) => Ok(copy),
            Err(cause) => {
                tracing::info!(gallery = id, %cause, "a gallery is loaded from the database");
                metrics::copy_loaded(if folder.exists() { "unusable" } else { "new" });
                load_copy(&folder, database, id, settings.cache_bytes)?;
                open()
            }
        };
        Ok(copy.map(|copy| Arc::new(PostgresGallery::new(copy))).map_err(|cause| {
            tracing::error!(gallery = id, %cause, "a gallery is not served");
            Arc::new(Unserved {
                kind: UnservedKind::Unreadable,
                cause: cause.to_string(),
                way_out: "look at this server's disk and start it again",
            })
        }))
    }

    pub(super) async fn open_async(
        &self,
        tenant: &str,
        name: &GalleryName,
        id: i64,
    ) -> Result<Opened, CatalogError> {
        if let Some(opened) = self.opened(id)? {
            return Ok(opened);
        }
        let (catalog, tenant, name) = (self.clone(), tenant.to_owned(), name.clone());
        blocking(self.database(), move || catalog.open_or_load(&tenant, &name, id)).await
    }

    /// The gallery with a copy that has at least what `listed` says.
    pub(super) async fn up_to_date(&self, listed: &Listed) -> Result<Opened, CatalogError> {
        let opened = self.open_async(&listed.tenant, &listed.name, listed.id).await?;
        if let Ok(gallery) = &opened.gallery {
            match gallery.follow(listed.last_commit).await {
                Err(StoreError::Outdated) => self.reload(&listed.tenant, listed.id, gallery).await?,
                followed => followed?,
            }
            gallery.is_current(listed.last_commit.asked_at);
        }
        Ok(opened)
    }

    /// Replaces a copy by the gallery as it is now.
    async fn reload(
        &self,
        tenant: &str,
        id: i64,
        gallery: &Arc<PostgresGallery>,
    ) -> Result<(), CatalogError> {
        let (catalog, tenant, gallery) = (self.clone(), tenant.to_owned(), Arc::clone(gallery));
        blocking(self.database(), move || {
            let _loading = catalog.0.loading.lock().unwrap_or_else(PoisonError::into_inner);
            let Inner { database, settings, .. } = &*catalog.0;
            tracing::info!(gallery = id, "a copy is too old and is loaded anew");
            let folder = catalog.copy_folder(id);
            let former = gallery.copy();
            metrics::copy_loaded("outdated");
            load_copy(&folder, database, id, settings.cache_bytes)?;
            let copy = open_copy(&folder, database, id, catalog.bounds(&tenant), settings)?;
            gallery.replace(copy);
            former.abandon();
            Ok(())
        })
        .await
    }

    /// Closes a gallery that is deleted, and removes its copy.
    pub(super) async fn forget(&self, id: i64) -> Result<(), CatalogError> {
        self.state().lacking.remove(&id);
        let Some(Opened { gallery, .. }) = self.state().remove(id) else { return Ok(()) };
        let folder = self.copy_folder(id);
        blocking(self.database(), move || {
            if let Ok(gallery) = gallery {
                gallery.copy().abandon();
            }
            Ok(discard_folder(&folder)?)
        })
        .await
    }

    /// Brings the copies of all galleries that this server holds up to date, those of new and deleted galleries included.
    /// Returns the numbers of these galleries.
    pub(super) async fn poll(&self) -> Result<BTreeSet<i64>, CatalogError> {
        let sql = format!("select {LISTED} from galleries where name is not null");
        let asked_at = Instant::now();
        let rows = self.0.database.run(move |connection| async move { query!(connection, &sql) }).await?;
        let listed = rows.iter().map(|row| Listed::of(row, asked_at)).collect::<Result<Vec<_>, _>>()?;
        metrics::copy_lag(self.lag(&listed));
        let held: Vec<&Listed> =
            listed.iter().filter(|gallery| self.is_chosen(&gallery.tenant, &gallery.name)).collect();
        // One that takes long, since it is loaded, holds up no other.
        let following =
            stream::iter(held.iter().copied()).for_each_concurrent(FOLLOWING_MAX, async |gallery| {
                if let Err(cause) = self.up_to_date(gallery).await {
                    tracing::warn!(gallery = gallery.id, %cause, "a copy of a gallery does not follow");
                }
            });
        following.await;
        let known: Vec<i64> = self.state().open.keys().copied().collect();
        for id in known.into_iter().filter(|id| listed.iter().all(|gallery| gallery.id != *id)) {
            // A gallery that was made since is not among those that were listed.
            if !self.is_named(id).await? {
                self.forget(id).await?;
            }
        }
        Ok(held.iter().map(|gallery| gallery.id).collect())
    }

    /// How many commits the copy furthest behind lacks.
    fn lag(&self, listed: &[Listed]) -> u64 {
        let state = self.state();
        let lag = |listed: &Listed| {
            let gallery = state.open.get(&listed.id)?.gallery.as_ref().ok()?;
            Some(listed.last_commit.commit.saturating_sub(gallery.copy().published().state().commit))
        };
        listed.iter().filter_map(lag).max().unwrap_or_default()
    }

    async fn is_named(&self, id: i64) -> Result<bool, StoreError> {
        let named = self.0.database.run(move |connection| async move {
            query!(connection, "select from galleries where id = $1 and name is not null", id => INT8)
        });
        Ok(!named.await?.is_empty())
    }

    /// Removes copies of other galleries than `held`: they were deleted while the server was down, or it does not hold them any
    /// more.
    pub(super) fn drop_strays(&self, held: &BTreeSet<i64>) -> Result<(), CatalogError> {
        for entry in fs::read_dir(&self.0.folder)? {
            let entry = entry?;
            let id = entry.file_name().to_string_lossy().parse::<i64>();
            if id.is_ok_and(|id| !held.contains(&id)) {
                discard_folder(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// What is done now and then.
async fn look_after(catalog: &PostgresCatalog) -> Result<(), CatalogError> {
    catalog.try_lacking_again().await?;
    observe_skew(catalog.database()).await?;
    Ok(sweep(catalog.database()).await?)
}

/// Follows the database until the catalog is closed.
pub async fn follow(catalog: Weak<Inner>, ended: CancellationToken) {
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut polls, mut is_reached) = (0_u32, true);
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(catalog) = catalog.upgrade().map(PostgresCatalog) else { return };
        let mut polled = catalog.poll().await.map(drop);
        polls += 1;
        if polled.is_ok() && polls % POLLS_PER_SWEEP == 0 {
            polled = look_after(&catalog).await;
        }
        match &polled {
            Ok(()) if !is_reached => tracing::info!("the database of the galleries is reached again"),
            Err(cause) if is_reached => tracing::warn!(%cause, "the galleries do not follow their database"),
            _ => {}
        }
        is_reached = polled.is_ok();
        metrics::database_reached(is_reached);
    }
}
