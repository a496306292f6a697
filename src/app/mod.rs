//! The composition root: load, warm, wire, serve, drain.

#[cfg(feature = "torch")]
mod load;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::chip::ImageLimits;
use crate::config::{Config, Precision};
use crate::encoder::{
    Admission, EncodeQueue, EncoderEvent, Health, ModelLease, Pipeline, QueueSettings, Residency,
    ResidencySettings,
};
use crate::metrics;
use crate::rpc::{self, ShipReIdService, listener, status_page};

pub use crate::encoder::LoadedModel;
#[cfg(feature = "torch")]
pub use load::{load_model, put_on_device};

/// How often the exporter tidies its histograms; without it they grow for ever.
const UPKEEP: Duration = Duration::from_secs(5);

/// A server that answers, and the means to end it.
pub struct Running {
    /// Where gRPC answers, with the port that was free if the configuration said 0.
    pub address: SocketAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` answer.
    pub metrics_address: SocketAddr,
    health: watch::Receiver<Health>,
    shutdown: watch::Sender<bool>,
    serving: JoinHandle<()>,
    queue: EncodeQueue,
}

/// Opens both ports, warms the model, then answers gRPC; the status pages answer from the start.
///
/// # Errors
/// A model that cannot be put on its device, or a port that cannot be opened.
pub async fn start(
    config: &Config,
    model: LoadedModel,
    metrics: PrometheusHandle,
) -> anyhow::Result<Running> {
    let listener = bind(config.server.listen).await?;
    let status_listener = bind(config.server.metrics_listen).await?;
    let (address, metrics_address) = (listener.local_addr()?, status_listener.local_addr()?);

    let queue = EncodeQueue::start(
        QueueSettings { workers: model.workers, batch_max: config.encoder.batch_max },
        Arc::new(observe),
    );
    let health = queue.health();
    let (shutdown, stopping) = watch::channel(false);
    let pages =
        status_page::router(status_page::StatusPages { metrics: metrics.clone(), health: health.clone() });
    tokio::spawn(axum::serve(status_listener, pages).into_future());
    tokio::spawn(upkeep(metrics));

    let residency = Residency::new(queue.clone(), residency_settings(config));
    let active = residency.admit(model).await?;
    let pipeline = Arc::new(pipeline(config, residency, active));
    let (router, reporter) = rpc::router(ShipReIdService::new(pipeline, &config.limits), &config.limits);
    tokio::spawn(report_health(reporter, health.clone()));
    let limits = config.limits.clone();
    let drain_max = Duration::from_secs_f64(config.server.drain_seconds_max);
    let serving = tokio::spawn(async move {
        listener::serve(listener, router, &limits, stopped(stopping), drain_max).await;
    });
    tracing::info!(%address, %metrics_address, "serving");
    Ok(Running { address, metrics_address, health, shutdown, serving, queue })
}

impl Running {
    /// Refuses new calls, lets those in flight finish within the grace period, stops the device threads.
    pub async fn stop(self) {
        self.queue.announce_drain();
        self.shutdown.send_replace(true);
        if let Err(cause) = self.serving.await {
            tracing::error!(%cause, "the server task ended badly");
        }
        self.queue.close().await;
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

fn residency_settings(config: &Config) -> ResidencySettings {
    ResidencySettings {
        bytes_max: config.models.resident_bytes_max,
        precision: precision_name(config.encoder.precision),
        device: config.encoder.device.clone(),
    }
}

fn pipeline(config: &Config, residency: Residency, active: ModelLease) -> Pipeline {
    let admission = Admission::new(config.encoder.queue_items_max, config.encoder.queue_bytes_max);
    let limits = ImageLimits { bytes_max: config.chips.bytes_max, pixels_max: config.chips.pixels_max };
    let decode_threads = match config.chips.decode_threads {
        0 => cores(),
        threads => threads,
    };
    Pipeline::new(admission, limits, decode_threads, residency, active)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // A dropped sender means that the server's owner is gone, which is a reason to stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn upkeep(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

/// Keeps grpc.health.v1 equal to what the device threads say of themselves.
async fn report_health(reporter: HealthReporter, mut health: watch::Receiver<Health>) {
    loop {
        let now = *health.borrow_and_update();
        let status = match now {
            Health::Serving => ServingStatus::Serving,
            Health::Warming | Health::Draining | Health::DeviceLost => ServingStatus::NotServing,
        };
        metrics::ready(now == Health::Serving);
        for service in ["", rpc::SHIP_RE_ID] {
            reporter.set_service_status(service, status).await;
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

/// What the device threads tell becomes metrics and logs here, so that they need to know neither.
fn observe(event: EncoderEvent) {
    match event {
        EncoderEvent::BatchDone { size, forward, waits, late } => {
            metrics::batch_done(size, forward, &waits, &late);
        }
        EncoderEvent::Depth(chips) => metrics::queue_depth(chips),
        EncoderEvent::Dropped { reason } => metrics::dropped(reason),
        EncoderEvent::OutOfMemory { size } => {
            metrics::out_of_memory();
            tracing::warn!(size, "a batch did not fit into the device's memory");
        }
        EncoderEvent::Failed { size, message } => tracing::error!(size, message, "a forward pass failed"),
        EncoderEvent::Panicked { size, message } => {
            metrics::encoder_panicked();
            tracing::error!(size, message, "a forward pass panicked");
        }
        EncoderEvent::DeviceLost { message } => tracing::error!(message, "the device is lost"),
    }
}

fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
