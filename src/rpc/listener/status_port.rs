//! The second port: HTTP/1 with one request per connection, HTTP/2 for load balancers that use it with their servers,
//! and few connections at a time.

use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::accept::Troubles;
use super::crowd::{Crowd, Place};

/// Maximum simultaneous connections where descriptors suffice.
pub const CONNECTIONS_MAX: usize = 64;
/// Maximum duration of a connection.
const SECONDS_MAX: Duration = Duration::from_secs(10);

/// Serves `router` forever, on at most this many connections. For one more, the oldest is closed: monitoring asks for
/// little.
pub async fn serve(listener: TcpListener, router: Router, connections_max: usize) {
    let crowd = Crowd::new(connections_max, |_| {});
    let mut troubles = Troubles::of("status");
    loop {
        let (stream, peer) = troubles.next(&listener, &crowd).await;
        let opened = Instant::now();
        if let Some(place) = crowd.enter(Some(peer.ip()), move || Some(opened)) {
            tokio::spawn(answer(stream, router.clone(), place));
        }
    }
}

async fn answer(stream: TcpStream, router: Router, mut place: Place) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).keep_alive(false);
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::select! {
        ended = tokio::time::timeout(SECONDS_MAX, connection) => {
            if let Ok(Err(cause)) = ended {
                tracing::debug!(%cause, "a request for a status page failed");
            }
        }
        () = place.lost() => {}
    }
}
