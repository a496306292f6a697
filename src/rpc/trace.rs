//! A call as a span: its name and attributes follow OpenTelemetry, and its parent is the caller's span, if any.

use axum::extract::Request;
use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Status as SpanStatus, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::Code;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::method::Method;

/// Carries the caller's id of its request; returned in the metadata.
pub const REQUEST_ID: &str = "x-request-id";

/// Carries the build of this program.
pub const BUILD: &str = "x-shipreid-build";

/// Characters of a request id that is accepted from a caller.
const REQUEST_ID_MAX: usize = 128;

/// The request id of a call: the caller's, if it is safe in a log line, or a generated one.
pub fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    match sent.filter(|id| is_sane(id)) {
        Some(id) => id.to_owned(),
        None => format!("{:032x}", rand::random::<u128>()),
    }
}

fn is_sane(id: &str) -> bool {
    (1..=REQUEST_ID_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte))
}

/// The span of a call, in which all its work happens. It has the level of errors, so that every log line within it
/// carries its ids.
pub fn call_span(method: Method, request_id: &str, request: &Request) -> Span {
    let (service, name) = (method.service(), method.name());
    let span = tracing::error_span!(
        "call",
        otel.name = %format_args!("{service}/{name}"),
        otel.kind = "server",
        request_id,
        trace_id = tracing::field::Empty,
    );
    let caller = TraceContextPropagator::new().extract(&Headers(request.headers()));
    let sent = trace_id(&caller);
    // Fails where tracing is disabled.
    let _ = span.set_parent(caller);
    span.set_attribute("rpc.system", "grpc");
    span.set_attribute("rpc.service", service);
    span.set_attribute("rpc.method", name);
    if let Some(id) = trace_id(&span.context()).or(sent) {
        span.record("trace_id", id);
    }
    span
}

/// The trace that a span belongs to.
fn trace_id(context: &Context) -> Option<String> {
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| context.trace_id().to_string())
}

/// Completes a call's span.
pub fn ended(span: &Span, code: Code) {
    span.set_attribute("rpc.grpc.status_code", i64::from(code as i32));
    let servers_fault = match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unauthenticated => false,
    };
    if servers_fault {
        span.set_status(SpanStatus::error(code.description()));
    }
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_the_callers_if_it_can_stand_in_a_log_line() {
        let of = |id: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, http::HeaderValue::from_bytes(id).expect("a header value"));
            request_id(&headers)
        };
        assert_eq!(of(b"pass-17/chip_3"), "pass-17/chip_3");
        for id in [&b""[..], b"a b", b"\"quoted\"", b"\xff", &[b'x'; 129]] {
            let made = of(id);
            assert!(made.len() == 32 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{made}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
