//! Who calls, and until when: what every call carries from its headers to the device.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

/// The tenant of callers without an identity.
pub const DEFAULT_TENANT: &str = "default";

/// From where a call comes; in the request's extensions from its arrival.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Put into the request's extensions before a handler sees it.
#[derive(Clone, Debug)]
pub struct CallContext {
    pub tenant: Arc<str>,
    /// From the caller's `grpc-timeout`, counted from the arrival of the headers.
    pub deadline: Option<Instant>,
}

impl CallContext {
    /// The context that the layers attached, or an anonymous one without a deadline.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request
            .extensions()
            .get()
            .cloned()
            .unwrap_or_else(|| Self { tenant: DEFAULT_TENANT.into(), deadline: None })
    }
}
