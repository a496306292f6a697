//! One connection, from its handshake to its end.

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use futures_util::FutureExt;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::rustls;

use super::crowd::Place;
use super::lifetime::{CloseReason, Lifetime, Traffic};
use super::tls::{Encrypted, Security};
use crate::config::Limits;
use crate::metrics;
use crate::rpc::context::Peer;
use crate::rpc::held::until_answered;

/// What all connections of a port share.
#[derive(Clone)]
pub struct Reception {
    pub router: Router,
    pub security: Security,
    pub http2: http2::Builder<TokioExecutor>,
    pub lifetime: Lifetime,
    /// Becomes true when the server shuts down.
    pub leaving: watch::Receiver<bool>,
}

impl Reception {
    /// Serves a peer until it leaves, the connection has lasted long enough, or another one has its slot.
    pub async fn serve(&self, stream: TcpStream, peer: Peer, traffic: Traffic, place: &mut Place) {
        match &self.security {
            Security::Plain => self.converse(stream, peer, traffic, place, pending()).await,
            Security::Tls(tls) => {
                let encrypted = tokio::select! {
                    encrypted = tls.accept(stream, peer) => encrypted,
                    () = place.lost() => {
                        metrics::connection_ended(CloseReason::Displaced.name());
                        None
                    }
                    () = self.shutdown() => None,
                };
                if let Some(Encrypted { stream, standing }) = encrypted {
                    self.converse(stream, peer, traffic, place, standing.lost()).await;
                }
            }
        }
    }

    async fn converse(
        &self,
        io: impl AsyncRead + AsyncWrite + Send + Unpin,
        peer: Peer,
        traffic: Traffic,
        place: &mut Place,
        distrusted: impl Future<Output = rustls::Error> + Send,
    ) {
        let mut distrusted = pin!(distrusted.fuse());
        let lifetime = self.lifetime.spread();
        let service = answering(self.router.clone(), traffic.clone(), peer);
        let mut connection = pin!(self.http2.serve_connection(TokioIo::new(io), service));
        let ending = tokio::select! {
            ended = &mut connection => return tell(ended, peer),
            ending = lifetime.over(&traffic) => ending,
            () = place.lost() => CloseReason::Displaced,
            () = self.shutdown() => CloseReason::Shutdown,
            cause = &mut distrusted => distrust(&cause, peer),
        };
        metrics::connection_ended(ending.name());
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = &mut connection => tell(ended, peer),
            () = place.cut_short(), if ending == CloseReason::Displaced => {}
            cause = &mut distrusted => { distrust(&cause, peer); }
            () = lifetime.farewell(&traffic, ending) => {
                tracing::debug!(peer = %peer.address, ending = ending.name(), "a connection was cut off");
            }
        }
    }

    async fn shutdown(&self) {
        // A dropped sender means that the port is gone, which is a reason to leave as well.
        let _ = self.leaving.clone().wait_for(|leaving| *leaving).await;
    }
}

/// HTTP/2 within the configured limits.
pub fn http2_builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let keepalive = Duration::from_secs_f64(limits.keepalive_seconds);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_concurrent_streams(limits.streams_per_connection_max)
        .max_header_list_size(limits.header_bytes_max)
        .max_pending_accept_reset_streams(limits.pending_resets_max)
        .keep_alive_interval(keepalive)
        .keep_alive_timeout(keepalive);
    builder
}

/// The router for one peer, whose calls are counted.
fn answering(
    router: Router,
    traffic: Traffic,
    peer: Peer,
) -> impl Service<
    Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future = impl Future<Output = Result<Response, Infallible>> + Send + 'static,
> {
    let router = TowerToHyperService::new(router);
    service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let call = traffic.begin();
        let answer = router.call(request);
        async move { Ok(until_answered(answer.await?, call)) }
    })
}

fn distrust(cause: &rustls::Error, peer: Peer) -> CloseReason {
    tracing::info!(%cause, peer = %peer.address, "the certificate of a caller is not accepted any more");
    CloseReason::Distrusted
}

fn tell(ended: hyper::Result<()>, peer: Peer) {
    if let Err(cause) = ended {
        tracing::debug!(%cause, peer = %peer.address, "a connection ended with an error");
    }
}
