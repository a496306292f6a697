//! What a server reports about itself: metrics, health, and the activity of its device threads.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::threads::{decode_threads, search_threads};
use crate::config::Config;
use crate::encoder::{CanaryOutcome, EncoderEvent, Health, thread_name};
use crate::metrics;
use crate::rpc;
use crate::telemetry;

/// How often the exporter compacts its histograms; without it they grow without bound.
const UPKEEP: Duration = Duration::from_secs(5);

/// Publishes the limits of the resources that other metrics measure, and the device threads.
pub fn publish_limits(config: &Config, workers: usize) {
    for (limit, most) in [
        ("calls", config.limits.calls_max),
        ("connections", config.limits.connections_max),
        ("receiving_bytes", config.limits.receiving_bytes_max),
        ("queue_chips", config.encoder.queue_items_max),
        ("queue_bytes", config.encoder.queue_bytes_max),
        ("decode_threads", decode_threads(config)),
        ("device_threads", workers),
        ("batch_chips", config.encoder.batch_max),
        ("search_threads", search_threads(config)),
        ("jobs_running", config.training.jobs_concurrent_max),
        ("models_stored", config.models.count_max),
    ] {
        metrics::limit(limit, most as f64);
    }
    (0..workers).for_each(|worker| metrics::device_thread(thread_name(worker), false));
    metrics::limit("models_stored_bytes", config.models.bytes_max as f64);
    metrics::limit("uploads", config.uploads.count_max as f64);
    metrics::limit("upload_bytes", config.uploads.bytes_max as f64);
}

/// Compacts the exporter and checks the log, forever.
pub async fn upkeep(exporter: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        exporter.run_upkeep();
        metrics::log_lines_lost(telemetry::lost_lines());
    }
}

/// Keeps grpc.health.v1 in step with the health of the device threads, for the server (the empty name) and for each of
/// its services.
pub async fn report_health(reporter: HealthReporter, mut health: watch::Receiver<Health>) {
    loop {
        let now = *health.borrow_and_update();
        let status = match now {
            Health::Serving => ServingStatus::Serving,
            Health::Warming | Health::Failing | Health::Outdated | Health::Draining | Health::DeviceLost => {
                ServingStatus::NotServing
            }
        };
        publish_health(now);
        for service in [""].into_iter().chain(rpc::services()) {
            reporter.set_service_status(service, status).await;
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

fn publish_health(now: Health) {
    metrics::ready(now == Health::Serving);
    for state in Health::ALL {
        metrics::health(state.name(), state == now);
    }
}

/// Turns events of the device threads into metrics and logs, so that the threads depend on neither.
pub fn observe(event: EncoderEvent) {
    match event {
        EncoderEvent::BatchDone { size, forward, waits, late } => {
            metrics::batch_done(size, forward, &waits, &late);
        }
        EncoderEvent::Canary { worker, model, outcome } => {
            let thread = thread_name(worker);
            if outcome != CanaryOutcome::Passed {
                tracing::error!(thread, %model, outcome = outcome.name(), "a canary has not come through");
            }
            metrics::canary(thread, outcome.name());
        }
        EncoderEvent::Thread { worker, is_failing } => {
            metrics::device_thread(thread_name(worker), is_failing);
            if !is_failing {
                tracing::info!(thread = thread_name(worker), "chips come through again");
            }
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
