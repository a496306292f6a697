//! Follows what other servers do with jobs: five times a second the database is asked for news of those that are watched
//! here. It tells nobody by itself: NOTIFY would queue all commits of the database on one lock. Now and then, what nobody
//! needs of former checkpoints is removed.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::job::JobId;
use super::repository::JobRepository;
use super::store::{PostgresJobs, StoreError};
use crate::metrics;

const POLL: Duration = Duration::from_millis(200);
/// Every so many polls, jobs are counted.
const POLLS_PER_CENSUS: u32 = 25;
/// How often files are removed.
const SWEEP: Duration = Duration::from_secs(60);

/// Jobs that other servers change as well, which is followed for as long as this repository lives.
pub fn followed(store: PostgresJobs) -> Arc<JobRepository> {
    let repository = Arc::new(JobRepository::shared(store.clone()));
    tokio::spawn(sweep(Arc::downgrade(&repository), store.clone()));
    tokio::spawn(follow(Arc::downgrade(&repository), store));
    repository
}

async fn sweep(repository: Weak<JobRepository>, store: PostgresJobs) {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while repository.strong_count() > 0 {
        ticks.tick().await;
        if let Err(cause) = store.sweep().await {
            tracing::debug!(%cause, "files of former checkpoints stay for now");
        }
    }
}

async fn follow(repository: Weak<JobRepository>, store: PostgresJobs) {
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut polls = 0_u32;
    loop {
        ticks.tick().await;
        // Watchers wait until it can be reached again.
        if let Err(cause) = tell_watchers(&repository, &store).await {
            tracing::debug!(%cause, "there is no news of jobs");
        }
        if polls.is_multiple_of(POLLS_PER_CENSUS)
            && let Ok(census) = store.census().await
        {
            census.into_iter().for_each(|(state, jobs)| metrics::jobs(state.text(), jobs));
        }
        polls = polls.wrapping_add(1);
        if repository.strong_count() == 0 {
            return;
        }
    }
}

async fn tell_watchers(repository: &Weak<JobRepository>, store: &PostgresJobs) -> Result<(), StoreError> {
    let watched = repository.upgrade().map(|repository| repository.watched_jobs()).unwrap_or_default();
    if watched.is_empty() {
        return Ok(());
    }
    let heads: HashMap<JobId, u64> =
        store.heads(watched.iter().map(|key| key.id).collect()).await?.into_iter().collect();
    let Some(repository) = repository.upgrade() else { return Ok(()) };
    for key in watched {
        repository.notice(&key, heads.get(&key.id).copied());
    }
    Ok(())
}
