//! Why a call failed, and whether it is worth retrying.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tonic::Code;
use tonic_types::{FieldViolation, StatusExt};

/// The key under which the server names its oldest event when it refuses an older one.
pub(super) const OLDEST_EVENT: &str = "oldest_event";

/// Why a call failed, in words for a terminal.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "{endpoint:?} is not a server address: write host:port, http://host:port, or https://host:port for TLS"
    )]
    Endpoint { endpoint: String },
    #[error(
        "{endpoint} is not encrypted, but a certificate or an authority is given: write https://host:port"
    )]
    NotEncrypted { endpoint: String },
    #[error("the API key contains invalid characters")]
    KeyMalformed,
    #[error("an API key is sent over https:// only, and {endpoint} is not encrypted")]
    Unencrypted { endpoint: String },
    #[error("cannot reach {endpoint}: {cause}")]
    Unreachable { endpoint: String, cause: String },
    #[error("{}", describe(.0))]
    Refused(Box<tonic::Status>),
    #[error("{}: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("the server's events continue with {found} instead of {expected}")]
    EventsLost { expected: u64, found: u64 },
    #[error("the server ended the stream")]
    StreamEnded,
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub description: String,
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        // tonic's channel watches the deadline as well, and reports CANCELLED when it notices first that it has passed.
        let mut causes =
            std::iter::successors(status.source(), |cause: &&(dyn Error + 'static)| (*cause).source());
        let expired = causes.any(|cause| cause.is::<tonic::TimeoutExpired>());
        let status =
            if expired { tonic::Status::deadline_exceeded("the deadline has passed") } else { status };
        Self::Refused(Box::new(status))
    }
}

impl ClientError {
    /// Every invalid field, if the server names them.
    pub fn violations(&self) -> Vec<Violation> {
        let Self::Refused(status) = self else { return Vec::new() };
        let named = status.get_details_bad_request().map(|details| details.field_violations);
        let violation =
            |named: FieldViolation| Violation { field: named.field, description: named.description };
        named.unwrap_or_default().into_iter().map(violation).collect()
    }

    /// Whether the same call may succeed later: the server is busy or gone, but did not reject the call itself.
    pub fn is_passing(&self) -> bool {
        match self {
            // This server gives its reasons, and a delay where a retry can help. Without a reason, the error comes from
            // a broken connection.
            Self::Refused(status) => match (status.code(), status.get_details_error_info()) {
                (Code::Unavailable, _) => true,
                (_, Some(_)) => self.retry_after().is_some(),
                (code, None) => [Code::Unknown, Code::Internal, Code::Cancelled].contains(&code),
            },
            Self::Unreachable { .. } | Self::StreamEnded => true,
            Self::Endpoint { .. }
            | Self::NotEncrypted { .. }
            | Self::KeyMalformed
            | Self::Unencrypted { .. }
            | Self::File { .. }
            | Self::EventsLost { .. } => false,
        }
    }

    /// How long to wait before a retry, according to the server.
    pub fn retry_after(&self) -> Option<Duration> {
        let Self::Refused(status) = self else { return None };
        status.get_details_retry_info().and_then(|info| info.retry_delay)
    }

    /// The oldest event that a job still has, if an older one was requested.
    pub(super) fn oldest_event(&self) -> Option<u64> {
        let Self::Refused(status) = self else { return None };
        let info = status.get_details_error_info().filter(|_| status.code() == Code::OutOfRange)?;
        info.metadata.get(OLDEST_EVENT)?.parse().ok()
    }
}

fn describe(status: &tonic::Status) -> String {
    let reason = status.get_details_error_info().map(|info| info.reason);
    match reason {
        Some(reason) => format!("{} ({:?}, {reason})", status.message(), status.code()),
        // The effect of a connection without TLS to a port with TLS.
        None if status.message().contains("h2 protocol error") => {
            "the server closed the connection: if it uses TLS, write https:// instead of http://".to_owned()
        }
        // The answer of an HTTP server.
        None if status.message().contains("grpc-status header missing") => {
            "the server answers HTTP but not gRPC: is this its port of metrics?".to_owned()
        }
        None => format!("{} ({:?})", status.message(), status.code()),
    }
}
