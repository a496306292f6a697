//! Who calls, and until when: what every call carries from its headers to the device.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use http::Extensions;
use tokio::time::Instant;

use crate::keys::{Key, Role};

/// The tenant of callers without an identity.
pub const DEFAULT_TENANT: &str = "default";

/// Characters of a caller's text that the audit log keeps.
const RESOURCE_MAX: usize = 256;

/// From where a call comes; in the request's extensions from its arrival.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Unique within the process.
    pub connection: u64,
    /// Whether it is a proxy of ours, which carries the calls of many.
    pub is_proxy: bool,
}

/// In whose name something is held of which the server has only so much.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    pub tenant: Arc<str>,
    /// Absent where a proxy carries the calls of many over one.
    pub connection: Option<u64>,
}

/// Who calls; in the request's extensions from the identity layer on.
#[derive(Clone, Debug)]
pub struct Principal {
    /// Absent where nobody has keys.
    pub key_id: Option<Arc<str>>,
    pub tenant: Arc<str>,
    /// Whether the caller may do everything.
    pub is_admin: bool,
}

/// Put into the request's extensions before a handler sees it.
#[derive(Clone, Debug)]
pub struct CallContext {
    pub tenant: Arc<str>,
    /// Among whom threads are shared: tenants, or connections where callers have no keys.
    pub account: Holder,
    /// Whether the caller may do everything.
    pub is_admin: bool,
    /// From the caller's `grpc-timeout`, counted from the arrival of the headers.
    pub deadline: Option<Instant>,
    note: Note,
}

/// What the audit log says of a call beside its method and end. Clones are of one note.
#[derive(Clone, Debug, Default)]
pub struct Note(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    principal: OnceLock<Principal>,
    resource: OnceLock<String>,
    items: AtomicU64,
}

impl Principal {
    /// Whoever calls where nobody has keys.
    pub fn anonymous() -> Self {
        Self { key_id: None, tenant: DEFAULT_TENANT.into(), is_admin: true }
    }

    pub fn of(key: &Key) -> Self {
        let is_admin = key.roles.allow(Role::Admin);
        Self { key_id: Some(Arc::clone(&key.id)), tenant: Arc::clone(&key.tenant), is_admin }
    }

    /// The principal that the identity layer attached, or an anonymous one.
    pub fn behind(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_else(Self::anonymous)
    }
}

impl Holder {
    /// The tenant that calls, and the connection over which it does.
    pub fn behind(extensions: &Extensions) -> Self {
        let peer = extensions.get::<Peer>().filter(|peer| !peer.is_proxy);
        Self { tenant: Principal::behind(extensions).tenant, connection: peer.map(|peer| peer.connection) }
    }
}

impl CallContext {
    /// What the layers have found out, with a deadline.
    pub fn new(extensions: &Extensions, deadline: Option<Instant>) -> Self {
        let note = extensions.get().cloned().unwrap_or_default();
        let Principal { key_id, tenant, is_admin } = Principal::behind(extensions);
        let connection = Holder::behind(extensions).connection.filter(|_| key_id.is_none());
        let account = Holder { tenant: Arc::clone(&tenant), connection };
        Self { tenant, account, is_admin, deadline, note }
    }

    /// The context that the layers attached, or an anonymous one without a deadline.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_else(|| Self::new(request.extensions(), None))
    }

    /// Names what the call is about, for the audit log.
    pub fn concerns(&self, resource: impl ToString) {
        // A call is about one thing; the first name counts.
        let _ = self.note.0.resource.set(resource.to_string().chars().take(RESOURCE_MAX).collect());
    }

    /// Counts what the call has changed, for the audit log.
    pub fn changed(&self, items: u64) {
        self.note.0.items.fetch_add(items, Ordering::Relaxed);
    }
}

impl Note {
    pub fn is_of(&self, principal: Principal) {
        // A call has one caller.
        let _ = self.0.principal.set(principal);
    }

    pub fn principal(&self) -> Option<&Principal> {
        self.0.principal.get()
    }

    pub fn resource(&self) -> Option<&str> {
        self.0.resource.get().map(String::as_str)
    }

    pub fn items(&self) -> u64 {
        self.0.items.load(Ordering::Relaxed)
    }
}
