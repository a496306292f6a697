//! The caller and the deadline of a call, carried from its headers to the device.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use http::Extensions;
use tokio::time::Instant;

use crate::keys::{DEFAULT_TENANT, Key, Role};

/// Characters of a caller's text that the audit log keeps.
const RESOURCE_MAX: usize = 256;

/// Where a call comes from; in the request's extensions from its arrival.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Unique within the process.
    pub connection: u64,
    /// Whether it is one of our proxies, which carries the calls of many callers.
    pub is_proxy: bool,
}

/// On whose behalf part of a limited resource is held.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    pub tenant: Arc<str>,
    /// Absent where a proxy carries the calls of many callers over one connection.
    pub connection: Option<u64>,
}

/// The caller; in the request's extensions from the identity layer on.
#[derive(Clone, Debug)]
pub struct Principal {
    /// Absent where no keys are configured.
    pub key_id: Option<Arc<str>>,
    pub tenant: Arc<str>,
    /// Whether the caller is an admin.
    pub is_admin: bool,
}

/// Put into the request's extensions before a handler sees the request.
#[derive(Clone, Debug)]
pub struct CallContext {
    pub tenant: Arc<str>,
    /// The unit among which threads are shared: tenants, or connections where callers have no keys.
    pub account: Holder,
    /// Whether the caller is an admin.
    pub is_admin: bool,
    /// From the caller's `grpc-timeout`, counted from the arrival of the headers.
    pub deadline: Option<Instant>,
    note: Note,
}

/// What the audit log records about a call in addition to its method and outcome. Clones refer to the same note.
#[derive(Clone, Debug, Default)]
pub struct Note(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    principal: OnceLock<Principal>,
    resource: OnceLock<String>,
    items: AtomicU64,
}

impl Principal {
    /// Any caller, where no keys are configured.
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
    /// The calling tenant and its connection.
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

    /// Names the resource that the call is about, for the audit log.
    pub fn concerns(&self, resource: impl ToString) {
        // A call is about one resource; the first name counts.
        let _ = self.note.0.resource.set(resource.to_string().chars().take(RESOURCE_MAX).collect());
    }

    /// Counts the items that the call has changed, for the audit log.
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
