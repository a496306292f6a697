//! Every call, once: counted, timed and logged when it ends, whoever ended it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http_body_util::BodyExt;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::problem::DOMAIN;
use crate::metrics;

/// The methods that this server knows, so that strangers cannot invent label values.
#[derive(Clone, Debug)]
pub struct Methods(Arc<BTreeSet<(&'static str, &'static str)>>);

impl Methods {
    /// The methods in encoded descriptor sets. Call it once: the names live as long as the process.
    ///
    /// # Panics
    /// When a descriptor set, which is part of this program, does not decode.
    pub fn of(descriptor_sets: &[&[u8]]) -> Self {
        let mut methods = BTreeSet::new();
        for encoded in descriptor_sets {
            let set = FileDescriptorSet::decode(*encoded).expect("an own descriptor set decodes");
            for file in &set.file {
                for service in &file.service {
                    let full_name: &str = format!("{}.{}", file.package(), service.name()).leak();
                    let names = service.method.iter().map(|method| &*method.name().to_owned().leak());
                    methods.extend(names.map(|name| (full_name, name)));
                }
            }
        }
        Self(Arc::new(methods))
    }

    fn find(&self, path: &str) -> (&'static str, &'static str) {
        path.strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .and_then(|(service, method)| self.0.iter().find(|known| **known == (service, method)).copied())
            .unwrap_or(("unknown", "unknown"))
    }
}

/// Counts, times and logs a call, and completes the details of errors that tonic itself gave.
pub async fn record(State(methods): State<Methods>, request: Request, next: Next) -> Response {
    let (service, method) = methods.find(request.uri().path());
    metrics::call_started(service, method);
    let mut call = CallRecord { service, method, started: Instant::now(), ended: None };
    let mut response = next.run(request).await;
    call.end(response.headers());
    if let Some(status) = Status::from_header_map(response.headers())
        && status.code() != Code::Ok
        && status.details().is_empty()
    {
        response = completed(status).into_http();
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(trailers) = frame.trailers_ref() {
                // A method takes the record whole, so that it lives as long as the answer.
                call.end(trailers);
            }
            frame
        }))
    })
}

/// Adds the `ErrorInfo` that every error of this API carries.
fn completed(status: Status) -> Status {
    let details = ErrorDetails::with_error_info(code_reason(status.code()), DOMAIN, []);
    Status::with_error_details(status.code(), status.message(), details)
}

/// A call under way; logs and counts itself when the last holder of its answer lets go.
#[derive(Debug)]
struct CallRecord {
    service: &'static str,
    method: &'static str,
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
        let (code, message) = self.ended.take().unwrap_or((Code::Cancelled, "the caller left".into()));
        metrics::call_handled(self.service, self.method, code_name(code), took);
        let (service, method, seconds) = (self.service, self.method, took.as_secs_f64());
        match code {
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(service, method, ?code, seconds, message, "call failed");
            }
            Code::Unavailable | Code::ResourceExhausted => {
                tracing::warn!(service, method, ?code, seconds, message, "call refused");
            }
            _ => tracing::debug!(service, method, ?code, seconds, message, "call ended"),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_served_methods_become_labels() {
        let methods = Methods::of(&[crate::wire::FILE_DESCRIPTOR_SET]);
        assert_eq!(methods.find("/shipreid.v1.ShipReId/Embed"), ("shipreid.v1.ShipReId", "Embed"));
        for path in ["/shipreid.v1.ShipReId/Sink", "/x/y", "", "/", "//"] {
            assert_eq!(methods.find(path), ("unknown", "unknown"), "{path}");
        }
    }
}
