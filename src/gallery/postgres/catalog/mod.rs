//! All galleries of a database, by tenant and name.

mod copies;
mod draft;
mod moves;
mod reading;
mod room;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use copies::follow;
use draft::PostgresDraft;
use moves::HeldMoves;

use super::gallery::{LastCommit, PostgresGallery};
use super::settings::PostgresSettings;
use crate::durable::{DirectoryLock, remove_partial};
use crate::embedding::ModelDigest;
use crate::gallery::catalog::{
    CatalogError, CatalogStore, Census, GalleryName, Import, Imports, Listing, NewGallery, Place, Quotas,
    Read, Readable, Slot, Unserved, UnservedKind,
};
use crate::gallery::embedded::{Allowance, EmbeddedSettings, sealed_about};
use crate::gallery::entry::Time;
use crate::gallery::store::{About, Gallery, GalleryStore, StoreError};
use crate::holding::Holding;
use crate::metrics;
use crate::postgres::{Cluster, Database, Transaction, check_usable, execute, query};

/// The galleries of one database, and this server's copies of them in a folder that nothing else may use meanwhile.
/// Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct PostgresCatalog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    database: Database,
    /// Copies, by the galleries' numbers.
    folder: PathBuf,
    settings: EmbeddedSettings,
    local_age_max: Duration,
    holding: Holding,
    resident_bytes_max: u64,
    imports: Imports,
    state: Mutex<State>,
    /// Held while a copy is loaded, so that it is loaded once.
    loading: Mutex<()>,
    /// Tells this server from the others.
    server: String,
    moves: HeldMoves,
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// `None` once the catalog is closed.
    lock: Option<DirectoryLock>,
    open: BTreeMap<i64, Opened>,
    /// The numbers of those that are open.
    numbers: HashMap<Place, i64>,
    /// Those that are not served since there is no memory for a copy.
    lacking: BTreeSet<i64>,
    allowances: HashMap<String, Arc<Allowance>>,
}

#[derive(Clone, Debug)]
struct Opened {
    place: Place,
    gallery: Result<Arc<PostgresGallery>, Arc<Unserved>>,
}

/// A row of `galleries`.
struct Listed {
    id: i64,
    tenant: String,
    name: GalleryName,
    last_commit: LastCommit,
}

const LISTED: &str =
    "id, tenant, name, commit, committed_at, (select usable_from from shipreid) as usable_from";

impl PostgresCatalog {
    /// Brings this server's copies in `root` up to date.
    ///
    /// # Errors
    /// The database cannot be used, or another process uses `root`.
    pub async fn open(
        shared: &PostgresSettings,
        root: &Path,
        settings: EmbeddedSettings,
    ) -> Result<Self, CatalogError> {
        let Cluster { database, id, server } = shared.cluster.clone();
        fs::create_dir_all(root)?;
        let lock = DirectoryLock::acquire(root).map_err(std::io::Error::other)?;
        let folder = root.join(id);
        fs::create_dir_all(&folder)?;
        remove_partial(&folder)?;
        let catalog = Self(Arc::new(Inner {
            database,
            folder,
            settings,
            local_age_max: shared.local_age_max,
            holding: shared.holding.clone(),
            resident_bytes_max: shared.resident_bytes_max,
            imports: Imports::new(settings.imports),
            state: Mutex::new(State { lock: Some(lock), ..State::default() }),
            loading: Mutex::default(),
            server,
            moves: HeldMoves::default(),
            ended: CancellationToken::new(),
        }));
        let held = catalog.poll().await?;
        catalog.drop_strays(&held)?;
        metrics::database_reached(true);
        catalog.0.database.handle().spawn(follow(Arc::downgrade(&catalog.0), catalog.0.ended.clone()));
        Ok(catalog)
    }

    fn database(&self) -> &Database {
        &self.0.database
    }

    fn quotas(&self) -> &Quotas {
        &self.0.settings.quotas
    }

    /// Whether this server is to have a copy of a gallery of this name.
    fn is_chosen(&self, tenant: &str, name: &GalleryName) -> bool {
        self.0.holding.has(tenant, name.as_str())
    }

    /// # Errors
    /// Other servers are to serve it.
    fn check_held(&self, tenant: &str, name: &GalleryName) -> Result<(), CatalogError> {
        if self.is_chosen(tenant, name) {
            return Ok(());
        }
        Err(CatalogError::Refused { name: name.clone(), cause: not_held() })
    }

    /// What a tenant's copies on this server may take together.
    fn allowance(&self, tenant: &str) -> Arc<Allowance> {
        let limit = self.quotas().bytes_per_tenant;
        let allowance = || Arc::new(Allowance::new(limit));
        self.state().allowances.entry(tenant.to_owned()).or_insert_with(allowance).clone()
    }

    /// Names a draft, with its next row, bytes and entries. Blocks.
    fn name_draft(
        &self,
        tenant: &str,
        name: &GalleryName,
        id: i64,
        [next_row, bytes, entries]: [u64; 3],
    ) -> Result<(), CatalogError> {
        let [next_row, bytes, entries] = [next_row, bytes, entries].map(|number| number as i64);
        let limit = self.quotas().galleries_per_tenant;
        self.opened(id)?;
        let outcome = self.0.database.wait(async {
            let transaction = Transaction::begin(&self.0.database, "begin").await?;
            let room = room(&transaction, tenant, name, limit).await?;
            if room.is_err() {
                return Ok(room);
            }
            let sql =
                "update galleries set name = $2, expires_at = null, next_row = $3, bytes = $4, entries = $5
                where id = $1 and name is null";
            let named = execute!(transaction, sql, id => INT8, name.as_str() => TEXT, next_row => INT8,
                bytes => INT8, entries => INT8)?;
            if named == 0 {
                return Err(StoreError::Closed);
            }
            transaction.commit().await?;
            Ok(Ok(()))
        });
        outcome?
    }

    /// Opens a gallery that was just named. Blocks.
    fn open_named(&self, tenant: &str, name: &GalleryName, id: i64) -> Result<Gallery, CatalogError> {
        let opened = self.open_or_load(tenant, name, id)?;
        served(&opened)
    }

    /// Leaves a draft to the sweeper.
    fn discard(&self, id: i64) {
        let database = self.0.database.clone();
        self.0.database.handle().spawn(async move {
            let discarded = database
                .run(move |connection| async move {
                    let sql = "update galleries set expires_at = now() where id = $1 and name is null";
                    execute!(connection, sql, id => INT8)
                })
                .await;
            if let Err(cause) = discarded {
                tracing::debug!(%cause, "an import that came to nothing is swept later");
            }
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self, id: i64) -> Result<Option<Opened>, StoreError> {
        let state = self.state();
        if state.lock.is_none() {
            return Err(StoreError::Closed);
        }
        Ok(state.open.get(&id).cloned())
    }
}

impl State {
    fn remove(&mut self, id: i64) -> Option<Opened> {
        let removed = self.open.remove(&id)?;
        // Another may have its name already.
        if self.numbers.get(&removed.place) == Some(&id) {
            self.numbers.remove(&removed.place);
        }
        Some(removed)
    }
}

impl Listed {
    fn of(row: &tokio_postgres::Row, asked_at: Instant) -> Result<Self, StoreError> {
        check_usable(row.get("usable_from"))?;
        let name: String = row.get("name");
        let name = GalleryName::new(&name).map_err(|cause| StoreError::Unreadable(cause.to_string()))?;
        Ok(Self {
            id: row.get("id"),
            tenant: row.get("tenant"),
            name,
            last_commit: LastCommit {
                commit: row.get::<_, i64>("commit") as u64,
                committed_at: row.get("committed_at"),
                asked_at,
            },
        })
    }
}

/// Whether a tenant may have one more gallery, of this name. Others wait until the transaction ends.
async fn room(
    transaction: &Transaction,
    tenant: &str,
    name: &GalleryName,
    limit: usize,
) -> Result<Result<(), CatalogError>, StoreError> {
    query!(transaction, "select pg_advisory_xact_lock(hashtextextended($1, 0))", tenant => TEXT)?;
    let sql = "select count(*), count(*) filter (where name = $2) from galleries
        where tenant = $1 and name is not null";
    let rows = query!(transaction, sql, tenant => TEXT, name.as_str() => TEXT)?;
    let [count, taken] = [0, 1].map(|column| rows[0].get::<_, i64>(column));
    Ok(if taken > 0 {
        Err(CatalogError::Exists(name.clone()))
    } else if count as usize >= limit {
        Err(CatalogError::GalleriesFull { limit })
    } else {
        Ok(())
    })
}

fn not_held() -> Arc<Unserved> {
    Arc::new(Unserved {
        kind: UnservedKind::NotHeld,
        cause: "this server does not hold it (matching.galleries)".into(),
        way_out: "send the call to a server that does",
    })
}

fn served(opened: &Opened) -> Result<Gallery, CatalogError> {
    let gallery = opened.gallery.clone();
    let refused = |cause| CatalogError::Refused { name: opened.place.name.clone(), cause };
    Ok(gallery.map_err(refused)?)
}

/// Runs work that blocks, to its end.
async fn blocking<T: Send + 'static>(
    database: &Database,
    work: impl FnOnce() -> Result<T, CatalogError> + Send + 'static,
) -> Result<T, CatalogError> {
    database.handle().spawn_blocking(work).await.unwrap_or_else(|cause| {
        tracing::error!(%cause, "work on a shared gallery panicked");
        Err(CatalogError::Failed)
    })
}

#[async_trait]
impl CatalogStore for PostgresCatalog {
    /// The gallery has seen everything that any server acknowledged before.
    async fn get(&self, tenant: &str, name: &GalleryName) -> Result<Gallery, CatalogError> {
        self.check_held(tenant, name)?;
        let (of, called) = (tenant.to_owned(), name.as_str().to_owned());
        let asked_at = Instant::now();
        let rows = self.0.database.run(move |connection| async move {
            let sql = format!("select {LISTED} from galleries where tenant = $1 and name = $2");
            query!(connection, &sql, of => TEXT, called => TEXT)
        });
        let rows = rows.await?;
        let row = rows.first().ok_or_else(|| CatalogError::NotFound(name.clone()))?;
        served(&self.up_to_date(&Listed::of(row, asked_at)?).await?)
    }

    async fn get_for(&self, tenant: &str, name: &GalleryName, read: Read) -> Result<Readable, CatalogError> {
        self.readable(tenant, name, read).await
    }

    async fn list(
        &self,
        tenant: &str,
        after: Option<&GalleryName>,
        size: usize,
    ) -> Result<Listing, CatalogError> {
        let (of, after) =
            (tenant.to_owned(), after.map_or_else(String::new, |name| name.as_str().to_owned()));
        let limit = i64::try_from(size).unwrap_or(i64::MAX).saturating_add(1);
        let rows = self.0.database.run(move |connection| async move {
            let sql = format!(
                "select {LISTED} from galleries where tenant = $1 and name > $2 order by name limit $3"
            );
            query!(connection, &sql, of => TEXT, after => TEXT, limit => INT8)
        });
        let asked_at = Instant::now();
        let rows = rows.await?;
        let mut galleries: Vec<(GalleryName, Slot)> = Vec::new();
        for row in rows.iter().take(size) {
            let listed = Listed::of(row, asked_at)?;
            let slot = if self.is_chosen(tenant, &listed.name) {
                let opened = self.open_async(tenant, &listed.name, listed.id).await?;
                opened.gallery.map(|gallery| gallery as Gallery)
            } else {
                Err(not_held())
            };
            galleries.push((listed.name, slot));
        }
        let next = galleries.last().map(|(name, _)| name.clone()).filter(|_| rows.len() > size);
        Ok(Listing { galleries, next })
    }

    async fn create(
        &self,
        tenant: &str,
        name: &GalleryName,
        new: NewGallery,
    ) -> Result<Gallery, CatalogError> {
        self.opened(0)?;
        self.check_held(tenant, name)?;
        let about = About::new(new.model, new.dimension, new.keeps_chips, Time::now());
        let about = About { composition: new.composition, ..about };
        let (catalog, of, called) = (self.clone(), tenant.to_owned(), name.clone());
        let made = self.0.database.run(move |_| async move {
            let transaction = Transaction::begin(&catalog.0.database, "begin").await?;
            let limit = catalog.quotas().galleries_per_tenant;
            if let Err(refused) = room(&transaction, &of, &called, limit).await? {
                return Ok(Err(refused));
            }
            let sql =
                "insert into galleries (tenant, name, about, commit, committed_at, next_row, bytes, entries)
                values ($1, $2, $3, 1, $4, 0, 0, 0) returning id";
            let (sealed, now) = (sealed_about(&about), Time::now().nanos());
            let rows =
                query!(transaction, sql, of => TEXT, called.as_str() => TEXT, sealed => BYTEA, now => INT8)?;
            transaction.commit().await?;
            Ok::<_, StoreError>(Ok(rows[0].get::<_, i64>(0)))
        });
        let id = made.await??;
        served(&self.open_async(tenant, name, id).await?)
    }

    async fn delete(&self, tenant: &str, name: &GalleryName) -> Result<(), CatalogError> {
        self.opened(0)?;
        let (of, called) = (tenant.to_owned(), name.as_str().to_owned());
        let rows = self.0.database.run(move |connection| async move {
            let sql = "update galleries set name = null, expires_at = now() where tenant = $1 and name = $2
                returning id";
            query!(connection, sql, of => TEXT, called => TEXT)
        });
        let rows = rows.await?;
        let row = rows.first().ok_or_else(|| CatalogError::NotFound(name.clone()))?;
        self.forget(row.get(0)).await
    }

    async fn import(&self, tenant: &str, name: &GalleryName) -> Result<Import, CatalogError> {
        self.opened(0)?;
        self.check_held(tenant, name)?;
        let (of, called) = (tenant.to_owned(), name.clone());
        let catalog = self.clone();
        let checked = self.0.database.run(move |_| async move {
            let transaction = Transaction::begin(&catalog.0.database, "begin").await?;
            let room = room(&transaction, &of, &called, catalog.quotas().galleries_per_tenant).await?;
            transaction.roll_back().await?;
            Ok::<_, StoreError>(room)
        });
        checked.await??;
        let draft = PostgresDraft::new(self.clone(), tenant, name.clone());
        Ok(self.0.imports.begin(tenant, Box::new(draft)))
    }

    fn holds(&self, tenant: &str, name: &GalleryName) -> bool {
        self.is_chosen(tenant, name) && !self.state().is_lacking(tenant, name)
    }

    fn served(&self) -> Vec<(Place, Gallery)> {
        let state = self.state();
        let open = state.open.values();
        open.filter_map(|opened| Some((opened.place.clone(), opened.gallery.clone().ok()? as Gallery)))
            .collect()
    }

    fn census(&self) -> Census {
        let mut census = Census::default();
        for opened in self.state().open.values() {
            match &opened.gallery {
                Ok(gallery) => census.count(&gallery.info()),
                Err(_) => census.refused += 1,
            }
        }
        census
    }

    async fn move_to(&self, model: ModelDigest, is_new: bool) -> Result<(), CatalogError> {
        Ok(self.turn_moves(model, is_new).await?)
    }

    async fn claim_moves(&self, model: ModelDigest, wanted: &[Place]) -> Result<Vec<Place>, CatalogError> {
        Ok(self.held_moves(model, wanted).await?)
    }

    fn observe(&self) {
        self.0.database.observe();
        let state = self.state();
        let galleries = state.open.values().filter_map(|opened| opened.gallery.as_ref().ok());
        metrics::copy_age(galleries.map(|gallery| gallery.age()).max().unwrap_or_default());
    }

    async fn close(&self) {
        self.0.ended.cancel();
        let (lock, open) = {
            let mut state = self.state();
            state.numbers.clear();
            (state.lock.take(), std::mem::take(&mut state.open))
        };
        let closed = blocking(self.database(), move || {
            let galleries = open.into_values().filter_map(|opened| opened.gallery.ok());
            galleries.for_each(|gallery| gallery.copy().close());
            drop(lock);
            Ok(())
        });
        if let Err(cause) = closed.await {
            tracing::error!(%cause, "the galleries ended badly");
        }
    }
}
