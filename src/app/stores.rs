//! The server's data on disk. Galleries and training jobs are opened here; the models were opened before, since one of
//! them is served.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;

use super::training;
use crate::config::{self, Config, ServerRole};
use crate::gallery::{
    Catalog, EmbeddedCatalog, EmbeddedSettings, ImportBounds, PostgresCatalog, PostgresSettings,
    QueueSettings, Quotas,
};
use crate::holding::Holding;
use crate::memory;
use crate::postgres::{Cluster, Tenancy};
use crate::registry::Registry;
use crate::rpc::JobAccess;
use crate::uploads::{UploadBounds, UploadLimits, Uploads};

/// Folder of the galleries within the data folder.
const GALLERIES: &str = "galleries";
/// Folder of the uploads, likewise.
const UPLOADS: &str = "uploads";
/// Folder of the copies of shared galleries within the data folder.
const GALLERY_COPIES: &str = "gallery-copies";
/// Limits on operations that wait for a gallery's writer.
const STORE_QUEUE: QueueSettings = QueueSettings { operations_max: 4096, bytes_max: 64 << 20 };

/// The stores of a data folder that exist.
pub struct Stores {
    catalog: Option<Catalog>,
    registry: Option<Arc<Registry>>,
    uploads: Option<KeptUploads>,
    jobs: JobAccess,
}

/// Uploads, and what removes them once they expire.
struct KeptUploads {
    uploads: Uploads,
    sweeping: JoinHandle<()>,
}

impl Stores {
    /// Opens the galleries, the uploads and the jobs; no job is run yet.
    ///
    /// # Errors
    /// A store cannot be used: the error names its path, or that it is the job store.
    pub async fn open(config: &Config, registry: Option<Arc<Registry>>) -> anyhow::Result<Self> {
        let cluster = match registry.as_ref().and_then(|registry| registry.cluster()) {
            Some(cluster) => Some(cluster.clone()),
            None => open_cluster(config).await?,
        };
        let catalog = open_catalog(config).await?;
        let uploads = open_uploads(config).await?;
        let jobs = training::open_jobs(config, cluster, catalog.clone(), registry.clone()).await?;
        Ok(Self { catalog, registry, uploads, jobs })
    }

    /// Absent without a data folder.
    pub fn catalog(&self) -> Option<Catalog> {
        self.catalog.clone()
    }

    /// Absent without a data folder.
    pub fn uploads(&self) -> Option<Uploads> {
        self.uploads.as_ref().map(|kept| kept.uploads.clone())
    }

    pub fn jobs(&self) -> JobAccess {
        self.jobs.clone()
    }

    /// Starts running the waiting jobs.
    pub fn begin_jobs(&self) {
        if let JobAccess::Open(jobs) = &self.jobs {
            jobs.begin();
        }
    }

    /// Stops the running jobs, which resume at the next start, and waits for their processes.
    pub async fn end_jobs(&self, within: Duration) {
        let JobAccess::Open(jobs) = &self.jobs else { return };
        if tokio::time::timeout(within, jobs.drain()).await.is_err() {
            tracing::warn!("training jobs did not stop in time; they go on from their last checkpoints");
        }
    }

    /// Finishes pending writes, and releases the folders.
    pub async fn close(self) {
        if let Some(catalog) = self.catalog {
            catalog.close().await;
        }
        if let Some(registry) = self.registry {
            registry.close();
        }
        if let Some(KeptUploads { uploads, sweeping }) = self.uploads {
            sweeping.abort();
            uploads.close();
        }
    }
}

/// The database that servers share, if there is one.
///
/// # Errors
/// It cannot be used.
pub async fn open_cluster(config: &Config) -> anyhow::Result<Option<Cluster>> {
    if config.store.url.is_empty() {
        return Ok(None);
    }
    let tenancy = if config.auth.keys_file.is_empty() { Tenancy::OneTenant } else { Tenancy::ByKeys };
    Ok(Some(Cluster::open(&config.store.url, tenancy).await?))
}

/// Shared galleries have connections of their own, so that writers that wait for each other's locks keep no job from being
/// held for longer.
async fn open_catalog(config: &Config) -> anyhow::Result<Option<Catalog>> {
    let store = &config.store;
    // Training jobs learn from galleries.
    let has_galleries = config.server.has(ServerRole::Match) || config.server.has(ServerRole::Train);
    if store.data_dir.is_empty() || !has_galleries {
        return Ok(None);
    }
    let data_dir = Path::new(&store.data_dir);
    let settings = EmbeddedSettings {
        cache_bytes: store.cache_bytes,
        queue: STORE_QUEUE,
        quotas: Quotas {
            galleries_per_tenant: store.galleries_max,
            entries_per_gallery: store.entries_max,
            bytes_per_tenant: store.bytes_max,
        },
        imports: ImportBounds {
            image_bytes_max: config.chips.bytes_max,
            bytes_max: config.limits.receiving_bytes_max,
        },
    };
    if let Some(cluster) = open_cluster(config).await? {
        let copies = data_dir.join(GALLERY_COPIES);
        let local_age_max = Duration::from_secs_f64(store.local_read_seconds_max);
        let holding = Holding::new(config.matching.galleries.clone());
        let resident_bytes_max = resident_bytes_max(store);
        let shared = PostgresSettings { cluster, local_age_max, holding, resident_bytes_max };
        let opened = PostgresCatalog::open(&shared, &copies, settings).await;
        return Ok(Some(Arc::new(opened.context("the galleries of store.url")?)));
    }
    let root = data_dir.join(GALLERIES);
    let opened = tokio::task::spawn_blocking(move || EmbeddedCatalog::open(&root, settings)).await?;
    Ok(Some(Arc::new(opened?)))
}

/// Memory for copies of shared galleries.
fn resident_bytes_max(store: &config::Store) -> u64 {
    match store.resident_bytes_max {
        // The rest is for the models, calls in flight and training jobs.
        0 => memory::bytes_max().map_or(u64::MAX, |bytes| bytes / 4 * 3),
        bytes => bytes,
    }
}

async fn open_uploads(config: &Config) -> anyhow::Result<Option<KeptUploads>> {
    if config.store.data_dir.is_empty() {
        return Ok(None);
    }
    let root = Path::new(&config.store.data_dir).join(UPLOADS);
    let config::Uploads { count_max, bytes_max, idle_seconds_max } = config.uploads;
    let limits = UploadLimits {
        bounds: UploadBounds { count_max, bytes_max },
        idle_max: Duration::from_secs_f64(idle_seconds_max),
    };
    let uploads = tokio::task::spawn_blocking(move || Uploads::open(&root, limits)).await??;
    let sweeping = tokio::spawn(uploads.clone().keep_sweeping());
    Ok(Some(KeptUploads { uploads, sweeping }))
}
