//! The composition root. A server starts in phases, one file each: `ports`, `stores`, `serving_model`, `services`; the
//! jobs start last. `shutdown` ends them.

mod descriptors;
#[cfg(feature = "torch")]
mod load;
mod observability;
mod ports;
mod services;
mod serving_model;
mod shutdown;
mod stores;
mod threads;
mod training;

use std::net::SocketAddr;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;

use crate::config::Config;
use crate::encoder::Health;
use crate::registry::{ModelLoader, Preset, Registry};
use crate::rpc::status_page::StatusPages;

use descriptors::Fitted;
use observability::publish_limits;
use ports::Ports;
use services::{Calibration, Serving, Wired};
use serving_model::ServingModel;
use shutdown::Shutdown;
use stores::Stores;

pub use crate::encoder::LoadedModel;
#[cfg(feature = "torch")]
pub use load::{choose_kernels, likely_network, load_model, open_model, open_models, put_on_device};
pub use shutdown::Drained;
pub use stores::open_cluster;
pub use threads::{cores, threads_per_worker, worker_count};

/// The model that a server starts with, and the source of others.
pub struct ServedModels {
    pub first: LoadedModel,
    /// Absent if the first model serves for the server's lifetime.
    pub kept: Option<KeptModels>,
}

/// Models on disk, and how they are put on a device.
pub struct KeptModels {
    pub registry: Arc<Registry>,
    pub loader: ModelLoader,
    /// A preset that only the configuration defines, if any.
    pub preset: Option<Preset>,
}

impl From<LoadedModel> for ServedModels {
    fn from(first: LoadedModel) -> Self {
        Self { first, kept: None }
    }
}

/// A running server, and the means to stop it.
pub struct Running {
    /// The gRPC address, with the port that was chosen if the configuration said 0.
    pub address: SocketAddr,
    /// The address of `/metrics`, `/healthz` and `/readyz`.
    pub metrics_address: SocketAddr,
    shutdown: Shutdown,
    stores: Stores,
    model: ServingModel,
    serving: Serving,
}

/// Binds both ports, opens the stores, warms the model, then serves gRPC; the status pages are served before the model
/// is warm.
///
/// # Errors
/// One line that names what failed: a file of keys or certificates, a port, a store, a calibrator, or the model.
pub async fn start(
    config: &Config,
    models: impl Into<ServedModels>,
    exporter: PrometheusHandle,
) -> anyhow::Result<Running> {
    let Fitted { config, status_connections } = &descriptors::fitted(config);
    let models = models.into();
    let shutdown = Shutdown::new(&config.server);
    let gate = services::gate(config, shutdown.drain()).await?;
    let Ports { grpc, status } = Ports::open(config).await?;
    let (address, metrics_address) = (grpc.listener.local_addr()?, status.local_addr()?);

    let stores = Stores::open(config, models.registry()).await?;
    let calibration = Calibration::read(&config.matching).await?;

    let queue = serving_model::device_threads(config, models.first.workers);
    publish_limits(config, queue.workers());
    let pages = StatusPages { metrics: exporter, health: queue.health(), catalog: stores.catalog() };
    ports::serve_status(status, pages, *status_connections);
    let model = ServingModel::start(config, queue, models, stores.catalog()).await?;

    let wired = Wired { config, model: &model, stores: &stores, calibration, shutdown: &shutdown };
    let serving = services::serve(wired, gate, grpc);
    // Last, since nothing after it can fail or be interrupted: a failed start uses up no attempt of a job.
    stores.begin_jobs();
    tracing::info!(%address, %metrics_address, "serving");
    Ok(Running { address, metrics_address, shutdown, stores, model, serving })
}

impl ServedModels {
    fn registry(&self) -> Option<Arc<Registry>> {
        self.kept.as_ref().map(|kept| Arc::clone(&kept.registry))
    }
}

impl Running {
    /// The state of the device threads, as reported by health and readiness.
    pub fn health(&self) -> Health {
        self.model.health()
    }
}
