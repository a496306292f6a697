//! How many uploads there may be, and how large: in total, and of one tenant.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::error::{Scope, UploadError};
use crate::budget::{Budget, Exceeded, Permit};
use crate::metrics;

/// Limits of all uploads together; one tenant may use half of each, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadBounds {
    pub count_max: u64,
    pub bytes_max: u64,
}

#[derive(Debug)]
pub(super) struct Room {
    of_tenant: UploadBounds,
    count: Budget,
    bytes: Budget,
    tenants: Mutex<HashMap<String, Half>>,
}

/// What one tenant may use.
#[derive(Clone, Debug)]
struct Half {
    count: Budget,
    bytes: Budget,
}

/// What one upload uses, given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    _count: [Permit; 2],
    bytes_of_tenant: Permit,
    bytes_of_all: Permit,
}

impl Room {
    pub fn new(bounds: UploadBounds) -> Self {
        let UploadBounds { count_max, bytes_max } = bounds;
        Self {
            of_tenant: UploadBounds { count_max: count_max.div_ceil(2), bytes_max: bytes_max.div_ceil(2) },
            count: Budget::with_gauge(count_max, metrics::uploads),
            bytes: Budget::with_gauge(bytes_max, metrics::upload_bytes),
            tenants: Mutex::default(),
        }
    }

    /// A place for one more upload of a tenant's folder.
    ///
    /// # Errors
    /// The tenant, or the server, has as many as it may.
    pub fn place(&self, folder: &str) -> Result<Held, UploadError> {
        let half = self.half(folder);
        let of_tenant = half.count.take(1).map_err(too_many(Scope::Tenant))?;
        let of_all = self.count.take(1).map_err(too_many(Scope::Server))?;
        Ok(Held {
            _count: [of_tenant, of_all],
            bytes_of_tenant: half.bytes.permit(),
            bytes_of_all: self.bytes.permit(),
        })
    }

    fn half(&self, folder: &str) -> Half {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let UploadBounds { count_max, bytes_max } = self.of_tenant;
        let half = || Half { count: Budget::new(count_max), bytes: Budget::new(bytes_max) };
        tenants.entry(folder.to_owned()).or_insert_with(half).clone()
    }
}

impl Held {
    /// Takes bytes, or gives them back, until `bytes` are held.
    ///
    /// # Errors
    /// The tenant, or the server, has as many as it may; what is held is then unchanged.
    pub fn resize(&mut self, bytes: u64) -> Result<(), UploadError> {
        let before = self.bytes_of_tenant.amount();
        self.bytes_of_tenant.resize(bytes).map_err(too_large(Scope::Tenant))?;
        self.bytes_of_all.resize(bytes).map_err(|exceeded| {
            // Giving back never fails.
            let _ = self.bytes_of_tenant.resize(before);
            too_large(Scope::Server)(exceeded)
        })
    }
}

fn too_many(scope: Scope) -> impl Fn(Exceeded) -> UploadError {
    move |Exceeded { limit, .. }| UploadError::TooMany { scope, limit }
}

fn too_large(scope: Scope) -> impl Fn(Exceeded) -> UploadError {
    move |Exceeded { limit, .. }| UploadError::TooLarge { scope, limit }
}
