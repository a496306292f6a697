//! The gRPC port: connections, their limits, and how they end.
//!
//! hyper is driven directly, not through tonic's server: tonic's grace period has no bound, it ends connections that
//! reach their maximum age in the middle of calls, its timeouts answer CANCELLED, and it has no limit on connections.

mod accept;
mod callers;
mod connection;
mod credentials;
mod crowd;
mod lifetime;
pub mod status_port;
mod tls;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use crowd::{most as descriptors_for, places as connections_within};
pub use tls::Security;

use crate::config::{Limits, Network};
use crate::metrics;
use crate::rpc::context::Peer;
use accept::Troubles;
use connection::{Reception, http2_builder};
use crowd::Crowd;
use lifetime::{Lifetime, Traffic};

/// The gRPC port before it is served.
pub struct Port {
    pub listener: TcpListener,
    pub security: Security,
    /// Proxies in front of the server, which carry the calls of many callers.
    pub proxies: Vec<Network>,
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
    let crowd = Crowd::new(limits.connections_max, metrics::connections);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    let mut troubles = Troubles::of("grpc");
    let mut numbers = 0..;
    loop {
        let (stream, address) = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = troubles.next(&port.listener, &crowd) => accepted,
        };
        let is_proxy = port.proxies.iter().any(|network| network.contains(address.ip()));
        let peer = Peer { address, connection: numbers.next().unwrap_or(u64::MAX), is_proxy };
        if let Some(life) = admit(&reception, &crowd, stream, peer) {
            connections.spawn(life);
        }
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

/// Serves a connection to its end, if there is a slot for it.
fn admit(
    reception: &Arc<Reception>,
    crowd: &Crowd,
    stream: TcpStream,
    peer: Peer,
) -> Option<impl Future<Output = ()> + use<>> {
    let traffic = Traffic::new();
    let idle_since = {
        let traffic = traffic.clone();
        move || traffic.idle_since()
    };
    let Some(mut place) = crowd.enter(counted_address(peer), idle_since) else {
        metrics::refused("CONNECTIONS");
        return None;
    };
    let reception = Arc::clone(reception);
    Some(async move {
        // Nagle's algorithm would delay small responses by a round trip.
        if let Err(cause) = stream.set_nodelay(true) {
            tracing::debug!(%cause, "TCP_NODELAY could not be set");
        }
        reception.serve(stream, peer, traffic, &mut place).await;
    })
}

/// The address whose connections are counted together: for IPv6 the /64 network, which belongs to one customer; none
/// for a proxy.
fn counted_address(peer: Peer) -> Option<IpAddr> {
    let counted = match peer.address.ip().to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    };
    (!peer.is_proxy).then_some(counted)
}
