//! Models of servers that share a database: imported, activated and deleted through any of them.

use std::path::Path;
use std::sync::Arc;

use shipreid::app::{KeptModels, Running, ServedModels};
use shipreid::client::Client;
use shipreid::encoder::{Health, LoadError};
use shipreid::postgres::{Cluster, Tenancy};
use shipreid::registry::{Registry, RegistryLimits};
use shipreid::wire::DeleteModelRequest;
use tonic::Code;

use super::database::Database;
use crate::models::{activate, digest, exported, import, loaded, model, request};
use crate::server::{details, page, start_serving};
use crate::tools::skipped;

/// A model that cannot run on one of the servers.
const HEAVY: u64 = 3;

/// A server that starts with the model that is active, or with seed 0, and is too small for some.
async fn serve(database: &Database, folder: &Path, is_small: bool) -> (Running, Client) {
    let cluster = Cluster::open(&database.url(), Tenancy::OneTenant).await.unwrap();
    let limits = RegistryLimits { count_max: 9, bytes_max: 1 << 20 };
    let registry = Arc::new(Registry::share(&folder.join("models"), limits, cluster).unwrap());
    let first = registry.active().map_or_else(|| model(0), |active| registry.load(active.digest).unwrap());
    let loader = move |opened| match is_small && opened == model(HEAVY) {
        true => Err(LoadError("it is too large".into())),
        false => Ok(loaded(&opened)),
    };
    let kept = KeptModels { registry, loader: Arc::new(loader), preset: None };
    let settings = [format!("store.data_dir={}", folder.display()), format!("store.url={}", database.url())];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    start_serving(&settings, ServedModels { first: loaded(&first), kept: Some(kept) }).await
}

/// Returns once a server answers by this model.
async fn answers_by(client: &Client, seed: u64) {
    while client.embed(request(), None).await.unwrap().model != digest(seed) {}
}

async fn digests(client: &Client) -> Vec<String> {
    let mut digests: Vec<String> =
        client.list_models().await.unwrap().into_iter().map(|model| model.digest).collect();
    digests.sort();
    digests
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_does_with_models_all_servers_do() {
    let Some(database) = Database::start(&[]) else {
        return skipped("tests/it/cluster/models", "no PostgreSQL (make operators)");
    };
    let folder = tempfile::tempdir().unwrap();
    let (one, first) = serve(&database, &folder.path().join("one"), false).await;
    let (two, second) = serve(&database, &folder.path().join("two"), true).await;
    for file in exported(folder.path(), &[1, 2, HEAVY]) {
        import(&first, &file).await;
    }
    // Both have one more, with which they started.
    assert_eq!(digests(&second).await, digests(&first).await);
    assert_eq!(digests(&second).await.len(), 4);

    let activated = activate(&second, digest(1)).await.unwrap();
    assert!(activated.active && activated.digest == digest(1));
    answers_by(&first, 1).await;
    let delete = |seed| DeleteModelRequest { digest: digest(seed) };
    let refused = first.models().delete_model(delete(1)).await.unwrap_err();
    assert_eq!((refused.code(), details(&refused).0.as_str()), (Code::FailedPrecondition, "MODEL_ACTIVE"));
    first.models().delete_model(delete(2)).await.unwrap();
    assert!(!digests(&second).await.contains(&digest(2)));

    // One that cannot run on a server takes it out of the balancer, until another is active.
    activate(&first, digest(HEAVY)).await.unwrap();
    while two.health() != Health::Outdated {
        tokio::task::yield_now().await;
    }
    assert!(page(two.metrics_address, "/readyz").await.contains("the active model cannot serve here"));
    assert_eq!(one.health(), Health::Serving);
    assert_eq!(second.embed(request(), None).await.unwrap().model, digest(1), "it goes on by the one before");
    activate(&first, digest(1)).await.unwrap();
    while two.health() != Health::Serving {
        tokio::task::yield_now().await;
    }
    activate(&first, digest(HEAVY)).await.unwrap();
    one.stop().await;
    let (one, first) = serve(&database, &folder.path().join("one"), false).await;
    answers_by(&first, HEAVY).await;
    for server in [one, two] {
        server.stop().await;
    }
}
