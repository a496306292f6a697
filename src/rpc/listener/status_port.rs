//! The second port: plain HTTP, one request a connection, and few of them at a time.

use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::accept::Troubles;
use super::crowd::{Crowd, Place};

/// Connections at the same time. For one more, the oldest is closed: whoever looks after a server asks for little.
const CONNECTIONS_MAX: usize = 64;
/// From a connection's beginning to its end.
const SECONDS_MAX: Duration = Duration::from_secs(10);

/// Serves `router` for ever.
pub async fn serve(listener: TcpListener, router: Router) {
    let crowd = Crowd::new(CONNECTIONS_MAX, |_| {});
    let mut troubles = Troubles::default();
    loop {
        let (stream, peer) = troubles.accepted(|| listener.accept()).await;
        let opened = Instant::now();
        if let Some(place) = crowd.enter(Some(peer.ip()), move || Some(opened)) {
            tokio::spawn(answer(stream, router.clone(), place));
        }
    }
}

async fn answer(stream: TcpStream, router: Router, mut place: Place) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::select! {
        ended = tokio::time::timeout(SECONDS_MAX, connection) => {
            if let Ok(Err(cause)) = ended {
                tracing::debug!(%cause, "a request for a status page failed");
            }
        }
        () = place.lost() => {}
    }
}
