//! Galleries in PostgreSQL. Each test has a schema of its own in one database server, which these tests start.

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::holding::Holding;
use crate::postgres::trial::{Trial, server};
use crate::postgres::{Cluster, Tenancy};

mod holding;
mod moving;
mod outage;
mod pooler;
mod reading;
mod room;
mod set_up;
mod sharing;

/// One database, of which any number of servers may open catalogs, as a role of their own.
struct Shared {
    trial: Trial,
    folders: TempDir,
    servers: AtomicU32,
}

impl Deref for Shared {
    type Target = Trial;

    fn deref(&self) -> &Trial {
        &self.trial
    }
}

/// How a server takes part.
#[derive(Clone)]
struct MemberSettings {
    url: String,
    local_age_max: Duration,
    tenancy: Tenancy,
    holding: Holding,
    resident_bytes_max: u64,
}

impl MemberSettings {
    async fn open(&self, folder: &Path, settings: EmbeddedSettings) -> Result<PostgresCatalog, CatalogError> {
        let cluster = Cluster::open(&self.url, self.tenancy).await?;
        let Self { local_age_max, holding, resident_bytes_max, .. } = self.clone();
        let shared = PostgresSettings { cluster, local_age_max, holding, resident_bytes_max };
        PostgresCatalog::open(&shared, folder, settings).await
    }
}

impl Shared {
    /// `None` where PostgreSQL is not installed.
    async fn new() -> Option<Self> {
        Some(Self { trial: Trial::new().await?, folders: folder(), servers: AtomicU32::new(0) })
    }

    /// A server with an empty folder.
    async fn open(&self) -> PostgresCatalog {
        self.open_with(settings().quotas).await
    }

    /// A server with an empty folder and settings of its own.
    async fn open_as(&self, shared: MemberSettings) -> PostgresCatalog {
        let folder = self.folders.path().join(self.servers.fetch_add(1, Ordering::Relaxed).to_string());
        shared.open(&folder, settings()).await.expect("a catalog")
    }

    async fn open_with(&self, quotas: Quotas) -> PostgresCatalog {
        self.reopen(self.servers.fetch_add(1, Ordering::Relaxed), quotas).await.expect("a catalog")
    }

    /// A server that may have copies.
    async fn reopen(&self, server: u32, quotas: Quotas) -> Result<PostgresCatalog, CatalogError> {
        let folder = self.folders.path().join(server.to_string());
        self.settings().open(&folder, EmbeddedSettings { quotas, ..settings() }).await
    }

    fn settings(&self) -> MemberSettings {
        MemberSettings {
            url: self.url.clone(),
            local_age_max: LOCAL_AGE_MAX,
            tenancy: Tenancy::OneTenant,
            holding: Holding::default(),
            resident_bytes_max: u64::MAX,
        }
    }
}

/// A test's copies are never too old unless it says so.
const LOCAL_AGE_MAX: Duration = Duration::from_secs(3600);
