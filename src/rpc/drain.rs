//! Shutdown: new calls are refused, and streams end after what is in flight.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::watch;
use tonic::Status;

use super::method::{Kind, Method};
use super::problem::Problem;
use crate::metrics;
use crate::reason::Reason;

/// Whether the server accepts new calls. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<bool>);

impl Drain {
    /// The server shuts down once `stopping` becomes true or its sender is dropped.
    pub fn new(stopping: watch::Receiver<bool>) -> Self {
        Self(stopping)
    }

    pub fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the server shuts down.
    pub async fn begun(mut self) {
        // A dropped sender means that the server's owner is gone, which is a reason to stop as well.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// What a caller sends until the server shuts down; then, as the last item, the error for draining.
    pub fn cut<T: Send, S: Stream<Item = Result<T, Status>> + Send>(
        &self,
        items: S,
    ) -> impl Stream<Item = Result<T, Status>> + Send + use<T, S> {
        let begun = Box::pin(self.clone().begun());
        stream::unfold(Some((Box::pin(items), begun)), async |going| {
            let (mut items, mut begun) = going?;
            tokio::select! {
                biased;
                () = &mut begun => Some((Err(draining().into()), None)),
                item = items.next() => Some((item?, Some((items, begun)))),
            }
        })
    }
}

/// The response to callers that arrive while the server shuts down.
pub fn draining() -> Problem {
    Problem::new(Reason::Draining, "the server is shutting down")
}

/// Refuses new calls while the server shuts down, and ends those that only watch its health.
pub async fn gate(State(drain): State<Drain>, request: Request, next: Next) -> Response {
    if Method::of(request.uri().path()).kind == Kind::Health {
        let begun = drain.begun().boxed();
        return next.run(request).await.map(|inner| Body::new(WatchBody { inner, begun: Some(begun) }));
    }
    if drain.has_begun() {
        metrics::refused("DRAINING");
        return Status::from(draining()).into_http();
    }
    next.run(request).await
}

/// A response that ends when the server shuts down, since it would otherwise never end.
struct WatchBody {
    inner: Body,
    /// Absent once it has ended.
    begun: Option<BoxFuture<'static, ()>>,
}

impl fmt::Debug for WatchBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl http_body::Body for WatchBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(begun) = &mut this.begun else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) {
            return Poll::Ready(frame);
        }
        futures_util::ready!(begun.as_mut().poll(context));
        this.begun = None;
        let mut trailers = HeaderMap::new();
        let told = Status::from(draining()).add_header(&mut trailers);
        Poll::Ready(told.is_ok().then(|| Ok(Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use axum::routing::post;
    use http_body_util::BodyExt;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use tonic_types::StatusExt;

    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_stream_ends_after_what_is_in_flight_when_the_server_goes_down() {
        let (stop, stopping) = watch::channel(false);
        let drain = Drain::new(stopping);
        let (sender, items) = tokio::sync::mpsc::channel(8);
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let finished = finished.shared();
        let items = tokio_stream::wrappers::ReceiverStream::new(items);
        let answers = drain.cut(items).map(|item: Result<i32, Status>| {
            let finished = finished.clone();
            async move {
                let item = item?;
                finished.await.map_err(|_| Status::internal("the test left"))?;
                Ok::<_, Status>(item)
            }
        });
        let mut answers = Box::pin(answers.buffered(8));
        sender.send(Ok(1)).await.expect("room");
        assert!(futures_util::poll!(answers.next()).is_pending(), "one is in flight");
        stop.send_replace(true);
        sender.send(Ok(2)).await.expect("room");
        assert!(futures_util::poll!(answers.next()).is_pending(), "what is in flight is not given up");
        finish.send(()).expect("it waits");
        let answers: Vec<_> = answers.collect().await;
        let [Ok(1), Err(last)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(last.code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn a_stream_that_ends_by_itself_knows_nothing_of_drain() {
        let (_stop, stopping) = watch::channel(false);
        let items = Drain::new(stopping).cut(stream::iter([Ok(1), Ok(2)]));
        assert_eq!(items.map(|item| item.expect("no drain")).collect::<Vec<_>>().await, [1, 2]);
    }

    /// A router whose health is watched indefinitely.
    fn router(drain: &Drain) -> TowerToHyperService<Router> {
        let watched = || async { Body::from_stream(stream::pending::<Result<Bytes, axum::Error>>()) };
        let router = Router::new()
            .route("/shipreid.v1.ShipReId/Embed", post(|| async { "embedded" }))
            .route("/grpc.health.v1.Health/Watch", post(watched))
            .layer(from_fn_with_state(drain.clone(), gate));
        TowerToHyperService::new(router)
    }

    fn call(path: &str) -> Request {
        Request::post(path).body(Body::empty()).expect("a request")
    }

    #[tokio::test]
    async fn new_calls_are_refused_and_health_is_no_longer_watched() {
        let (stop, stopping) = watch::channel(false);
        let router = router(&Drain::new(stopping));
        let embed = async || router.call(call("/shipreid.v1.ShipReId/Embed")).await.expect("infallible");
        let watched = router.call(call("/grpc.health.v1.Health/Watch")).await.expect("infallible");
        assert!(Status::from_header_map(embed().await.headers()).is_none());

        stop.send_replace(true);
        let refused = Status::from_header_map(embed().await.headers()).expect("a status");
        let details = refused.get_error_details();
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(details.error_info().expect("a reason").reason, "DRAINING");
        assert!(details.retry_info().is_some());
        let watched = watched.into_body().collect().await.expect("it ends");
        let status = Status::from_header_map(watched.trailers().expect("trailers"));
        assert_eq!(status.expect("a status").code(), Code::Unavailable);
    }
}
