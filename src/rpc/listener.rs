//! The gRPC port: connections, their HTTP/2 limits, and how they end.
//!
//! hyper is driven directly, not through tonic's server: its grace period has no bound, its timeouts
//! answer CANCELLED, and it knows no limit on connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use crate::config::Limits;
use crate::metrics;

/// Reset streams that a peer may have pending, before it counts as an attack and is disconnected. A client
/// that cancels many calls at once is none.
const PENDING_RESETS_MAX: usize = 256;

/// Serves `router` until `shutdown` is done, then lets calls in flight finish for at most `drain_max`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    shutdown: impl Future<Output = ()>,
    drain_max: Duration,
) {
    let builder = http2_builder(limits);
    let connections = Connections { open: Arc::default(), max: limits.connections_max };
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(cause) => {
                    // Out of file descriptors, or a peer that left already: the next one may be luckier.
                    tracing::warn!(%cause, "a connection could not be accepted");
                    tokio::task::yield_now().await;
                    continue;
                }
            },
        };
        let Some(connection) = connections.try_open() else {
            metrics::refused("CONNECTIONS");
            continue;
        };
        configure(&stream);
        let service = TowerToHyperService::new(router.clone());
        let serving = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(cause) = serving.await {
                tracing::debug!(%cause, "a connection ended with an error");
            }
            drop(connection);
        });
    }
    drop(listener);
    if tokio::time::timeout(drain_max, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            seconds = drain_max.as_secs_f64(),
            "calls were still in flight when the grace period ended"
        );
    }
}

fn http2_builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let keepalive = Duration::from_secs_f64(limits.keepalive_seconds);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_concurrent_streams(limits.streams_per_connection_max)
        .max_header_list_size(limits.header_bytes_max)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .keep_alive_interval(keepalive)
        .keep_alive_timeout(keepalive);
    builder
}

fn configure(stream: &TcpStream) {
    // Nagle's algorithm would hold small answers back for a round trip.
    if let Err(cause) = stream.set_nodelay(true) {
        tracing::debug!(%cause, "TCP_NODELAY could not be set");
    }
}

struct Connections {
    open: Arc<AtomicUsize>,
    max: usize,
}

struct Connection(Arc<AtomicUsize>);

impl Connections {
    fn try_open(&self) -> Option<Connection> {
        let grow = |open: usize| (open < self.max).then_some(open + 1);
        let before = self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow).ok()?;
        metrics::connections(before + 1);
        Some(Connection(Arc::clone(&self.open)))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::connections(self.0.fetch_sub(1, Ordering::AcqRel) - 1);
    }
}
