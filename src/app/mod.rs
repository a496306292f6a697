//! The composition root: load, warm, wire, serve, drain.

mod descriptors;
#[cfg(feature = "torch")]
mod load;
mod observability;
mod training;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::chip::ImageLimits;
use crate::config::{Config, Matching};
use crate::encoder::{
    Admission, EncodeQueue, Health, ModelLease, Pipeline, QueueSettings, Residency, ResidencySettings,
    keep_canaries,
};
use crate::gallery::{
    Catalog, EmbeddedCatalog, EmbeddedSettings, ImportBounds, QueueSettings as StoreQueue, Quotas,
    search_pace,
};
use crate::matching::Calibrator;
use crate::registry::{Activator, ModelLoader, Preset, ReEmbedder, Registry};
use crate::rpc::{
    self, AuditLog, Calibrators, Drain, GalleriesService, GalleryAccess, Gate, Identity, JobAccess, Matcher,
    ModelsService, Services, ShipReIdService, TrainingJobsService,
    listener::{self, Port, Security},
    status_page,
};

use descriptors::Fitted;
use observability::{observe, publish_limits, report_health, upkeep};

pub use crate::encoder::LoadedModel;
#[cfg(feature = "torch")]
pub use load::{choose_kernels, likely_architecture, load_model, open_models, put_on_device};

/// What calls in flight may take of the time to shut down; the rest is for stores.
const CALLS_SHARE: f64 = 0.8;
/// Folder of the galleries within the data folder.
const GALLERIES: &str = "galleries";
/// What may wait for a gallery's writer.
const STORE_QUEUE: StoreQueue = StoreQueue { operations_max: 4096, bytes_max: 64 << 20 };

/// The model that a server starts with, and where it finds others.
pub struct ServedModels {
    pub first: LoadedModel,
    /// Absent: the first one serves for life.
    pub kept: Option<KeptModels>,
}

/// Models on disk, and how they are put on a device.
pub struct KeptModels {
    pub registry: Arc<Registry>,
    pub loader: ModelLoader,
    /// Kept by the configuration alone, if by anything.
    pub preset: Option<Preset>,
}

impl From<LoadedModel> for ServedModels {
    fn from(first: LoadedModel) -> Self {
        Self { first, kept: None }
    }
}

/// A server that answers, and the means to end it.
pub struct Running {
    /// Where gRPC answers, with the port that was free if the configuration said 0.
    pub address: SocketAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` answer.
    pub metrics_address: SocketAddr,
    health: watch::Receiver<Health>,
    drain_notice: Duration,
    drain_max: Duration,
    shutdown: watch::Sender<bool>,
    serving: JoinHandle<()>,
    queue: EncodeQueue,
    catalog: Option<Catalog>,
    registry: Option<Arc<Registry>>,
    /// Looks whether an idle device still works.
    canaries: Option<JoinHandle<()>>,
    /// Leads galleries to the active model.
    following: Option<JoinHandle<()>>,
    jobs: JobAccess,
}

/// Opens both ports, warms the model, then answers gRPC; the status pages answer from the start.
///
/// # Errors
/// A model that cannot be put on its device, or a port that cannot be opened.
pub async fn start(
    config: &Config,
    models: impl Into<ServedModels>,
    metrics: PrometheusHandle,
) -> anyhow::Result<Running> {
    let Fitted { config, status_connections } = &descriptors::fitted(config);
    let ServedModels { first, kept } = models.into();
    let (shutdown, stopping) = watch::channel(false);
    let drain = Drain::new(stopping);
    let security = Security::open(&config.tls).await?;
    let gate = gate(config, drain.clone()).await?;
    let listener = bind(config.server.listen).await?;
    let status_listener = bind(config.server.metrics_listen).await?;
    let (address, metrics_address) = (listener.local_addr()?, status_listener.local_addr()?);
    let port = Port { listener, security, proxies: config.server.trusted_proxies.clone() };

    let catalog = open_catalog(config).await?;
    let matching = config.matching.clone();
    let calibrators = tokio::task::spawn_blocking(move || read_calibrators(&matching)).await??;
    let registry = kept.as_ref().map(|kept| Arc::clone(&kept.registry));
    let jobs = training::open_jobs(config, catalog.clone(), registry.clone()).await?;

    let queue = EncodeQueue::start(
        QueueSettings { workers: first.workers, batch_max: config.encoder.batch_max },
        Arc::new(observe),
    );
    let health = queue.health();
    publish_limits(config, queue.workers());
    let pages = status_page::router(status_page::StatusPages {
        metrics: metrics.clone(),
        health: health.clone(),
        catalog: catalog.clone(),
    });
    tokio::spawn(listener::status_port::serve(status_listener, pages, *status_connections));
    tokio::spawn(upkeep(metrics));

    let residency = Residency::new(queue.clone(), residency_settings(config));
    let active = residency.admit(first).await?;
    let pipeline = Arc::new(pipeline(config, residency, active));
    let (activator, changes) = kept
        .map(|kept| Activator::new(kept.registry, Arc::clone(&pipeline), kept.loader, kept.preset))
        .unzip();
    let reembedder = catalog.clone().zip(activator.clone());
    let reembedder =
        reembedder.map(|(catalog, activator)| ReEmbedder::new(catalog, Arc::clone(&pipeline), activator));
    let following =
        reembedder.zip(changes).map(|(reembedder, changes)| tokio::spawn(reembedder.run(changes)));
    let canaries = try_when_idle(config, &pipeline);
    let wired = Wired { pipeline, catalog: catalog.clone(), calibrators, activator, jobs: jobs.clone() };
    let (router, reporter) = rpc::router(services(config, wired, &drain), gate, &config.limits);
    tokio::spawn(report_health(reporter, health.clone()));
    let limits = config.limits.clone();
    let drain_max = Duration::from_secs_f64(config.server.drain_seconds_max);
    let calls_max = calls_max(drain_max);
    let serving = tokio::spawn(async move {
        listener::serve(port, router, &limits, drain.begun(), calls_max).await;
    });
    // Last, since nothing after it can fail or be interrupted: a start that comes to nothing costs no job an attempt.
    if let JobAccess::Open(jobs) = &jobs {
        jobs.begin();
    }
    tracing::info!(%address, %metrics_address, "serving");
    Ok(Running {
        address,
        metrics_address,
        health,
        drain_notice: Duration::from_secs_f64(config.server.drain_notice_seconds),
        drain_max,
        shutdown,
        serving,
        queue,
        catalog,
        registry,
        canaries,
        following,
        jobs,
    })
}

/// How a server shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    InOrder,
    /// Something did not end in time; it may still run.
    CutShort,
}

impl Running {
    /// Says that the server is not ready, serves on for as long as load balancers need to look away, then
    /// [stops](Self::stop).
    pub async fn drain(self) -> Drained {
        self.queue.announce_drain();
        tokio::time::sleep(self.drain_notice).await;
        self.stop().await
    }

    /// Refuses new calls, lets those in flight and training jobs finish, stops the device threads, closes the stores:
    /// within the configured time, whatever hangs.
    pub async fn stop(self) -> Drained {
        self.queue.announce_drain();
        self.shutdown.send_replace(true);
        let drain_max = self.drain_max;
        match tokio::time::timeout(drain_max, self.finish()).await {
            Ok(()) => Drained::InOrder,
            Err(_) => {
                tracing::error!(seconds = drain_max.as_secs_f64(), "the server did not shut down in time");
                Drained::CutShort
            }
        }
    }

    async fn finish(self) {
        if let JobAccess::Open(jobs) = self.jobs {
            // Those who watch a job see how it ends here; only then they are sent away.
            if tokio::time::timeout(calls_max(self.drain_max), jobs.drain()).await.is_err() {
                tracing::warn!("training jobs did not stop in time; they go on from their last checkpoints");
            }
        }
        if let Err(cause) = self.serving.await {
            tracing::error!(%cause, "the server task ended badly");
        }
        for background in [self.canaries, self.following].into_iter().flatten() {
            background.abort();
            // What it was doing goes on at the next start.
            let _ = background.await;
        }
        self.queue.close().await;
        if let Some(catalog) = self.catalog {
            catalog.close().await;
        }
        if let Some(registry) = self.registry {
            registry.close();
        }
    }

    /// The state of the device threads, as health and readiness report it.
    pub fn health(&self) -> Health {
        *self.health.borrow()
    }
}

/// Device threads for a configuration that leaves them to us.
pub fn worker_count(config: &Config) -> usize {
    match (config.encoder.workers, config.encoder.device.as_str()) {
        (0, "cpu") => cores(),
        (0, _) => 1,
        (workers, _) => workers,
    }
}

/// Threads inside one forward pass, likewise.
pub fn threads_per_worker(config: &Config) -> usize {
    match config.encoder.threads_per_worker {
        0 => (cores() / worker_count(config)).max(1),
        threads => threads,
    }
}

/// Reads the keys of callers and opens the audit log.
async fn gate(config: &Config, drain: Drain) -> anyhow::Result<Gate> {
    let identity = Identity::open(&config.auth).await?;
    let path = config.telemetry.audit_file.clone();
    let open = move || AuditLog::open(&path).with_context(|| format!("telemetry.audit_file {path}"));
    let audit = tokio::task::spawn_blocking(open).await??;
    Ok(Gate { identity, audit, drain })
}

/// Opens the galleries under the data folder, if there is one.
async fn open_catalog(config: &Config) -> anyhow::Result<Option<Catalog>> {
    let store = &config.store;
    if store.data_dir.is_empty() {
        return Ok(None);
    }
    let root = Path::new(&store.data_dir).join(GALLERIES);
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
    let opened = tokio::task::spawn_blocking(move || EmbeddedCatalog::open(&root, settings)).await?;
    Ok(Some(Arc::new(opened?)))
}

/// Reads the configured calibrator, or those of a folder.
fn read_calibrators(matching: &Matching) -> anyhow::Result<Calibrators> {
    let place = Path::new(&matching.calibrators);
    if matching.calibrators.is_empty() {
        return Ok(Calibrators::new());
    }
    let mut files = vec![place.to_owned()];
    if place.is_dir() {
        let entries = fs::read_dir(place)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        files = entries.into_iter().filter(|file| file.extension() == Some("toml".as_ref())).collect();
        files.sort();
    }
    let mut calibrators = Calibrators::new();
    for file in files {
        let named = || file.display().to_string();
        let text = fs::read_to_string(&file).with_context(named)?;
        let calibrator = Calibrator::parse(&text).with_context(named)?;
        let model = calibrator.model();
        if calibrators.insert(model, Arc::new(calibrator)).is_some() {
            bail!("{}: another calibrator holds for model {model} already", named());
        }
    }
    Ok(calibrators)
}

/// What services are made of.
struct Wired {
    pipeline: Arc<Pipeline>,
    catalog: Option<Catalog>,
    calibrators: Calibrators,
    activator: Option<Activator>,
    jobs: JobAccess,
}

fn services(config: &Config, wired: Wired, drain: &Drain) -> Services {
    let Wired { pipeline, catalog, calibrators, activator, jobs } = wired;
    let Config { limits, matching, .. } = config;
    let access = GalleryAccess::new(catalog, search_threads(config), search_pace());
    let matcher = Matcher::new(access.clone(), Arc::clone(&pipeline), calibrators, matching, limits);
    Services {
        ship_re_id: ShipReIdService::new(Arc::clone(&pipeline), matcher, jobs.clone(), limits, drain.clone()),
        galleries: GalleriesService::new(access, Arc::clone(&pipeline), limits, drain.clone()),
        models: ModelsService::new(pipeline, activator),
        training_jobs: TrainingJobsService::new(jobs),
    }
}

fn residency_settings(config: &Config) -> ResidencySettings {
    ResidencySettings {
        bytes_max: config.models.resident_bytes_max,
        precision: config.encoder.precision.name(),
        device: config.encoder.device.clone(),
    }
}

fn pipeline(config: &Config, residency: Residency, active: ModelLease) -> Pipeline {
    let admission = Admission::new(config.encoder.queue_items_max, config.encoder.queue_bytes_max);
    let limits = ImageLimits { bytes_max: config.chips.bytes_max, pixels_max: config.chips.pixels_max };
    Pipeline::new(admission, limits, decode_threads(config), residency, active)
}

fn search_threads(config: &Config) -> usize {
    match config.matching.search_threads {
        0 => cores(),
        threads => threads,
    }
}

fn decode_threads(config: &Config) -> usize {
    match config.chips.decode_threads {
        0 => cores(),
        threads => threads,
    }
}

/// Sees to canaries, where the configuration wants any.
fn try_when_idle(config: &Config, pipeline: &Arc<Pipeline>) -> Option<JoinHandle<()>> {
    let period = Duration::from_secs_f64(config.encoder.canary_seconds);
    (!period.is_zero()).then(|| tokio::spawn(keep_canaries(Arc::clone(pipeline), period)))
}

/// Of the time to shut down, what calls in flight and training jobs get.
fn calls_max(drain_max: Duration) -> Duration {
    drain_max.mul_f64(CALLS_SHARE)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
