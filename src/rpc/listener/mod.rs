//! The gRPC port: connections, their limits, and how they end.
//!
//! hyper is driven directly, not through tonic's server: its grace period has no bound, it ends connections of age in the
//! middle of their calls, its timeouts answer CANCELLED, and it knows no limit on connections.

mod connection;
mod lifetime;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use tls::Security;

use crate::config::Limits;
use crate::metrics;
use connection::{Reception, http2_builder};
use lifetime::Lifetime;

/// The gRPC port before it is served.
pub struct Port {
    pub listener: TcpListener,
    pub security: Security,
}

/// Serves `router` until `shutdown` is done, then lets calls in flight finish for at most `drain_max`.
pub async fn serve(
    port: Port,
    router: Router,
    limits: &Limits,
    shutdown: impl Future<Output = ()>,
    drain_max: Duration,
) {
    let (leave, leaving) = watch::channel(false);
    let reception = Arc::new(Reception {
        router,
        security: port.security,
        http2: http2_builder(limits),
        lifetime: Lifetime::new(limits),
        leaving,
    });
    let places = Places { taken: Arc::default(), max: limits.connections_max };
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = port.listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(cause) => {
                    // Out of file descriptors, or a peer that left already: the next one may be luckier.
                    tracing::warn!(%cause, "a connection could not be accepted");
                    tokio::task::yield_now().await;
                    continue;
                }
            },
        };
        let Some(place) = places.try_take() else {
            metrics::refused("CONNECTIONS");
            continue;
        };
        connections.spawn(attend(Arc::clone(&reception), stream, peer, place));
    }
    drop(port.listener);
    leave.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain_max, all_ended).await.is_err() {
        tracing::warn!(
            seconds = drain_max.as_secs_f64(),
            "calls were still in flight when the grace period ended; they are cut off"
        );
    }
}

async fn attend(reception: Arc<Reception>, stream: TcpStream, peer: SocketAddr, _place: Place) {
    // Nagle's algorithm would hold small answers back for a round trip.
    if let Err(cause) = stream.set_nodelay(true) {
        tracing::debug!(%cause, "TCP_NODELAY could not be set");
    }
    reception.serve(stream, peer).await;
}

struct Places {
    taken: Arc<AtomicUsize>,
    max: usize,
}

/// A connection's place, given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Places {
    fn try_take(&self) -> Option<Place> {
        let grow = |taken: usize| (taken < self.max).then_some(taken + 1);
        let before = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow).ok()?;
        metrics::connections(before + 1);
        Some(Place(Arc::clone(&self.taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::connections(self.0.fetch_sub(1, Ordering::AcqRel) - 1);
    }
}
