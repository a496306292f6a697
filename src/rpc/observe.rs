//! Counts, times and logs every call once when it ends, whether the server or the caller ended it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::{Instrument, Span};

use super::activity::Activity;
use super::method::Method;
use super::problem::DOMAIN;
use super::sparing::Sparing;
use super::trace::{self, BUILD, REQUEST_ID};
use crate::metrics;
use crate::reason::{self, Reason};

/// A refused caller may call again without limit, and the log must not grow with it.
static REFUSALS: Sparing = Sparing::new(20, Duration::from_secs(1));

/// Counts, times, traces and logs a call, and completes the details of errors that tonic itself returned.
pub async fn record(mut request: Request, next: Next) -> Response {
    let method = Method::of(request.uri().path());
    metrics::call_started(method.service(), method.name());
    let request_id = trace::request_id(request.headers());
    let span = trace::call_span(method, &request_id, &request);
    let activity = Activity::new();
    request.extensions_mut().insert(activity.clone());
    let mut call = CallRecord { method, span: span.clone(), started: Instant::now(), activity, ended: None };
    let mut response = next.run(request).instrument(span).await;
    if let Some(status) = completed(response.headers()) {
        response = status.into_http();
    }
    call.end(response.headers());
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.headers_mut().insert(BUILD, HeaderValue::from_static(env!("SHIPREID_BUILD")));
    response.map(|inner| Body::new(RecordedBody { inner, call }))
}

/// A response whose call ends with it. A streamed response is produced while it is polled, so that happens within the
/// call's span.
#[derive(Debug)]
struct RecordedBody {
    inner: Body,
    call: CallRecord,
}

impl http_body::Body for RecordedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let span = self.call.span.clone();
        let Some(frame) = ready!(span.in_scope(|| Pin::new(&mut self.inner).poll_frame(context))) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(frame.and_then(|frame| match frame.into_trailers() {
            Ok(trailers) => {
                let trailers = told(trailers)?;
                self.call.end(&trailers);
                Ok(Frame::trailers(trailers))
            }
            Err(data) => Ok(data),
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An error that tonic itself returned, with the `ErrorInfo` that every error of this API carries; `None` for all
/// others.
fn completed(headers: &HeaderMap) -> Option<Status> {
    let status = Status::from_header_map(headers)?;
    if status.code() == Code::Ok || !status.details().is_empty() {
        return None;
    }
    let (code, reason) = match status.code() {
        // A message that tonic cannot read is the caller's fault, not an error of this server.
        Code::Internal | Code::Unknown => (Code::InvalidArgument, Reason::MessageMalformed.name()),
        // Without a reason of ours, the name of the code is used.
        code => (code, reason::Code::of(code as i32).name()),
    };
    let details = ErrorDetails::with_error_info(reason, DOMAIN, []);
    // It may contain more than the error, for example which encodings the server accepts.
    let metadata = status.metadata().clone();
    Some(Status::with_error_details_and_metadata(code, status.message(), details, metadata))
}

/// The trailers of a response, with their error completed.
fn told(trailers: HeaderMap) -> Result<HeaderMap, axum::Error> {
    let Some(status) = completed(&trailers) else { return Ok(trailers) };
    let mut told = HeaderMap::new();
    status.add_header(&mut told).map_err(axum::Error::new)?;
    Ok(told)
}

/// A call in progress; logs and counts itself when the last holder of its response is dropped.
#[derive(Debug)]
struct CallRecord {
    method: Method,
    span: Span,
    started: Instant,
    activity: Activity,
    ended: Option<(Code, String)>,
}

impl CallRecord {
    fn end(&mut self, trailers: &HeaderMap) {
        self.ended =
            Status::from_header_map(trailers).map(|status| (status.code(), status.message().to_owned()));
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let (code, detail) = match self.ended.take() {
            _ if self.activity.has_left() => (Code::Cancelled, "the caller left".into()),
            Some(ended) => ended,
            None if std::thread::panicking() => (Code::Internal, "the handler panicked".into()),
            // The caller went away before the response was complete.
            None => (Code::Cancelled, "the caller left".into()),
        };
        let (service, method, seconds) = (self.method.service(), self.method.name(), took.as_secs_f64());
        metrics::call_handled(service, method, code_name(code), took);
        trace::ended(&self.span, code);
        // The span names the request and the trace.
        self.span.in_scope(|| match code {
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(service, method, ?code, seconds, detail, "call failed");
            }
            Code::Unavailable | Code::ResourceExhausted => {
                if let Some(untold) = REFUSALS.line() {
                    tracing::warn!(service, method, ?code, seconds, detail, untold, "call refused");
                }
            }
            _ => tracing::debug!(service, method, ?code, seconds, detail, "call ended"),
        });
    }
}

/// The names that gRPC dashboards expect.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(status: &Status) -> HeaderMap {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).expect("headers");
        headers
    }

    #[test]
    fn what_tonic_cannot_read_is_the_callers_fault_and_other_errors_keep_their_codes() {
        for (told_by_tonic, code, reason) in [
            (Status::internal("failed to decode"), Code::InvalidArgument, "MESSAGE_MALFORMED"),
            (Status::unknown("transport error"), Code::InvalidArgument, "MESSAGE_MALFORMED"),
            (Status::unimplemented(""), Code::Unimplemented, "UNIMPLEMENTED"),
        ] {
            let trailers = told(headers(&told_by_tonic)).expect("trailers");
            let status = Status::from_header_map(&trailers).expect("a status");
            let info = status.get_details_error_info().expect("a reason");
            assert_eq!((status.code(), info.reason.as_str()), (code, reason));
            assert_eq!(status.message(), told_by_tonic.message());
        }
        let mut encoded = headers(&Status::unimplemented("Content is compressed with `br`"));
        encoded.insert("grpc-accept-encoding", HeaderValue::from_static("identity,gzip"));
        assert_eq!(told(encoded).expect("trailers")["grpc-accept-encoding"], "identity,gzip");

        let details = ErrorDetails::with_error_info("FORWARD_FAILED", DOMAIN, []);
        let ours = headers(&Status::with_error_details(Code::Internal, "the forward pass failed", details));
        assert_eq!(told(ours.clone()).expect("trailers"), ours);
        let fine = headers(&Status::new(Code::Ok, ""));
        assert_eq!(told(fine.clone()).expect("trailers"), fine);
    }
}
