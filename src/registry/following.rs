//! Models that other servers import, delete and activate: this server's copies and its active model follow the database.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{ActivationError, Activator};
use crate::embedding::ModelDigest;
use crate::metrics;

/// How often the database is asked.
const POLL: Duration = Duration::from_secs(1);

/// A model that cannot serve here is tried again after this time.
const RETRY: Duration = Duration::from_secs(30);

/// Makes active here what is active in the database, until this is dropped. `tell` is told whether the active model
/// cannot serve here, whenever that changes.
pub async fn follow(activator: Activator, tell: impl Fn(bool)) {
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The model that could not serve when it was last tried.
    let mut refused: Option<(ModelDigest, Instant)> = None;
    loop {
        ticks.tick().await;
        let Some(wanted) = wanted(&activator).await else { continue };
        if refused.is_some_and(|(model, tried)| model == wanted && tried.elapsed() < RETRY) {
            continue;
        }
        let was_refused = refused.is_some();
        refused = match activator.follow(wanted).await {
            Err(ActivationError::Busy) => continue,
            Ok(()) => None,
            Err(cause) => {
                tracing::error!(model = %wanted, %cause, "the model that is active on all servers cannot serve here");
                Some((wanted, Instant::now()))
            }
        };
        if refused.is_some() != was_refused {
            metrics::model_outdated(refused.is_some());
            tell(refused.is_some());
        }
    }
}

/// The model that is active in the database, after this server's copies have followed. `None` if there is none, or the
/// database cannot be reached.
async fn wanted(activator: &Activator) -> Option<ModelDigest> {
    let registry = Arc::clone(activator.registry());
    let synced = spawn_blocking(move || {
        if let Err(cause) = registry.sync() {
            tracing::debug!(%cause, "models do not follow the database");
        }
        registry.active()
    });
    Some(synced.await.ok()??.digest)
}
