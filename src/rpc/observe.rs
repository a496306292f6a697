//! Every call, once: counted, timed and logged when it ends, whoever ended it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::{Instrument, Span};

use super::method::{Method, Methods};
use super::problem::DOMAIN;
use super::trace::{self, REQUEST_ID};
use crate::metrics;

/// Counts, times, traces and logs a call, tells the layers below its [`Method`], and completes the details of errors that tonic itself gave.
pub async fn record(State(methods): State<Methods>, mut request: Request, next: Next) -> Response {
    let method = methods.find(request.uri().path());
    metrics::call_started(method.service, method.name);
    let request_id = trace::request_id(request.headers());
    let span = trace::call_span(method, &request_id, &request);
    request.extensions_mut().insert(method);
    let mut call = CallRecord { method, span: span.clone(), started: Instant::now(), ended: None };
    let mut response = next.run(request).instrument(span).await;
    call.end(response.headers());
    if let Some(status) = Status::from_header_map(response.headers())
        && status.code() != Code::Ok
        && status.details().is_empty()
    {
        response = completed(status).into_http();
    }
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.map(|inner| Body::new(RecordedBody { inner, call }))
}

/// An answer whose call ends with it. A stream of answers is made while it is polled, so that happens within the
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
        let frame = ready!(span.in_scope(|| Pin::new(&mut self.inner).poll_frame(context)));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.end(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Adds the `ErrorInfo` that every error of this API carries.
fn completed(status: Status) -> Status {
    let details = ErrorDetails::with_error_info(code_reason(status.code()), DOMAIN, []);
    Status::with_error_details(status.code(), status.message(), details)
}

/// A call under way; logs and counts itself when the last holder of its answer lets go.
#[derive(Debug)]
struct CallRecord {
    method: Method,
    span: Span,
    started: Instant,
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
        // No status means that the caller went away before the answer was complete.
        let (code, detail) = self.ended.take().unwrap_or((Code::Cancelled, "the caller left".into()));
        let (service, method, seconds) = (self.method.service, self.method.name, took.as_secs_f64());
        metrics::call_handled(service, method, code_name(code), took);
        trace::ended(&self.span, code);
        // The span names the request and the trace.
        self.span.in_scope(|| match code {
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(service, method, ?code, seconds, detail, "call failed");
            }
            Code::Unavailable | Code::ResourceExhausted => {
                tracing::warn!(service, method, ?code, seconds, detail, "call refused");
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

/// The reason of an error that tonic gave without one: the canonical name of its code.
fn code_reason(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
