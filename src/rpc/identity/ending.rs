//! A call ends when its key does: revoked, changed or expired.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::sync::watch;
use tonic::Status;

use super::rejected;
use crate::keys::{Key, KeyRing, Rejection};
use crate::metrics;

type Over = Pin<Box<dyn Future<Output = Rejection> + Send>>;

/// Answers with the result of `answer`, unless the key ends first.
pub async fn until_over(
    keys: watch::Receiver<Arc<KeyRing>>,
    key: Arc<Key>,
    answer: impl Future<Output = Response>,
) -> Response {
    let mut over: Over = Box::pin(over(keys, key));
    tokio::select! {
        biased;
        response = answer => response.map(|inner| Body::new(RevocableBody::Open { inner, over })),
        rejection = &mut over => status(rejection).into_http(),
    }
}

/// Waits until a key is removed from the ring, changed, or expired.
async fn over(mut keys: watch::Receiver<Arc<KeyRing>>, key: Arc<Key>) -> Rejection {
    let left = key.not_after.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
    let revoked = async {
        // Without a sender the server is shutting down, and no key is revoked any more.
        if keys.wait_for(|keys| !keys.holds(&key)).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let expired = async {
        match left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = revoked => Rejection::Invalid,
        () = expired => Rejection::Expired,
    }
}

fn status(rejection: Rejection) -> Status {
    let problem = rejected(rejection);
    metrics::refused(problem.reason.name());
    problem.into()
}

/// A response that is cut short when its caller's key ends.
enum RevocableBody {
    Open { inner: Body, over: Over },
    Ended,
}

impl http_body::Body for RevocableBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self::Open { inner, over } = &mut *self else { return Poll::Ready(None) };
        if let Poll::Ready(rejection) = over.as_mut().poll(context) {
            *self = Self::Ended;
            let mut trailers = HeaderMap::new();
            let told = status(rejection).add_header(&mut trailers);
            return Poll::Ready(Some(told.map(|()| Frame::trailers(trailers)).map_err(axum::Error::new)));
        }
        let frame = ready!(Pin::new(inner).poll_frame(context));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Open { inner, .. } => inner.is_end_stream(),
            Self::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Open { inner, .. } => inner.size_hint(),
            Self::Ended => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;
    use crate::keys::{NewKey, Role};

    const LIFE: Duration = Duration::from_secs(3600);

    /// A ring that holds one key.
    fn one_key(not_after: Option<SystemTime>) -> (Arc<KeyRing>, Arc<Key>) {
        let new = NewKey { id: None, tenant: "t".into(), roles: vec![Role::Embed], not_after };
        let made = new.make().expect("fit names");
        let ring = KeyRing::parse(&made.block).expect("valid");
        let key = Arc::clone(ring.find(&made.token, SystemTime::now()).expect("valid"));
        (Arc::new(ring), key)
    }

    async fn code(response: Response) -> tonic::Code {
        let headers = response.headers().clone();
        let trailers = response.into_body().collect().await.expect("a body").trailers().cloned();
        let status = Status::from_header_map(&trailers.unwrap_or(headers));
        status.map_or(tonic::Code::Ok, |status| status.code())
    }

    fn endless() -> Response {
        let frames = futures_util::stream::pending::<Result<Frame<Bytes>, axum::Error>>();
        Response::new(Body::new(http_body_util::StreamBody::new(frames)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_key_ends_a_stream_and_a_call_that_waits() {
        let (ring, key) = one_key(None);
        let (sender, keys) = watch::channel(Arc::clone(&ring));
        let stream = until_over(keys.clone(), Arc::clone(&key), async { endless() }).await;
        let waiting = until_over(keys, key, std::future::pending());
        sender.send_replace(ring);
        let revoking = async { sender.send_replace(Arc::default()) };
        let (stream, waiting, _) = tokio::join!(code(stream), waiting, revoking);
        assert_eq!(
            (stream, code(waiting).await),
            (tonic::Code::Unauthenticated, tonic::Code::Unauthenticated)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_expires_ends_its_streams() {
        let (ring, key) = one_key(Some(SystemTime::now() + LIFE));
        let (_sender, keys) = watch::channel(ring);
        let begun = tokio::time::Instant::now();
        let stream = until_over(keys, key, async { endless() }).await;
        assert_eq!(code(stream).await, tonic::Code::Unauthenticated);
        assert!(begun.elapsed() > LIFE - Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_there_is_given() {
        let (ring, key) = one_key(None);
        let (_sender, keys) = watch::channel(ring);
        let answered = until_over(keys, key, async { Response::new(Body::from("answer")) }).await;
        assert_eq!(answered.into_body().collect().await.expect("a body").to_bytes(), "answer");
    }
}
