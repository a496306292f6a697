//! The second port, over HTTP: metrics for Prometheus, liveness and readiness for an orchestrator.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use crate::encoder::Health;
use crate::gallery::{Catalog, Census};
use crate::metrics;

/// What Prometheus expects of its text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the pages show.
#[derive(Clone)]
pub struct StatusPages {
    pub metrics: PrometheusHandle,
    pub health: watch::Receiver<Health>,
    /// Absent in a server that only embeds.
    pub catalog: Option<Catalog>,
}

/// `/metrics`, `/healthz` (failure means restart) and `/readyz` (success means ready for calls).
pub fn router(pages: StatusPages) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .with_state(pages)
}

async fn metrics_page(State(pages): State<StatusPages>) -> Response {
    metrics::collect_process();
    if let Some(catalog) = &pages.catalog {
        count_galleries(&catalog.census());
        catalog.observe();
    }
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], metrics::page(&pages.metrics)).into_response()
}

fn count_galleries(census: &Census) {
    metrics::galleries("writable", census.writable);
    metrics::galleries("read_only", census.read_only);
    metrics::galleries("refused", census.refused);
    metrics::gallery_content(census.entries, census.bytes);
}

async fn alive(State(pages): State<StatusPages>) -> (StatusCode, &'static str) {
    match *pages.health.borrow() {
        Health::DeviceLost => (StatusCode::SERVICE_UNAVAILABLE, "the device is lost\n"),
        Health::Warming | Health::Serving | Health::Failing | Health::Outdated | Health::Draining => {
            (StatusCode::OK, "ok\n")
        }
    }
}

async fn ready(State(pages): State<StatusPages>) -> (StatusCode, &'static str) {
    match *pages.health.borrow() {
        Health::Serving => (StatusCode::OK, "ready\n"),
        Health::Warming => (StatusCode::SERVICE_UNAVAILABLE, "warming up\n"),
        Health::Failing => (StatusCode::SERVICE_UNAVAILABLE, "forward passes fail\n"),
        Health::Outdated => (StatusCode::SERVICE_UNAVAILABLE, "the active model cannot serve here\n"),
        Health::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        Health::DeviceLost => (StatusCode::SERVICE_UNAVAILABLE, "the device is lost\n"),
    }
}
