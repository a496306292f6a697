//! Asynchronous access to the store: runs off the runtime's threads, and notifies watchers and metrics of changes.

use std::collections::{HashMap, HashSet};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::edit::Edit;
use super::job::{Job, JobId, JobKey, JobSpec};
use super::state::StateName;
use super::store::{AddError, Added, All, JobStore, Listing, Page, Replay, StoreError, UpdateError};
use crate::gallery::Time;
use crate::metrics;

/// Between two attempts to use a store that has failed.
const HEAL_PAUSE: Duration = Duration::from_secs(1);

/// Used in place of the name of an unknown state.
const DAMAGED: &str = "damaged";

/// The store and its watchers.
#[derive(Debug)]
pub struct JobRepository {
    store: JobStore,
    /// The last event of every watched job.
    heads: Mutex<HashMap<JobKey, watch::Sender<u64>>>,
    /// The state of every readable job.
    states: Mutex<HashMap<JobKey, StateName>>,
    /// Jobs that are not readable.
    damaged: Mutex<HashSet<JobKey>>,
    /// Whether the server shuts down.
    closing: watch::Sender<bool>,
}

impl JobRepository {
    /// # Errors
    /// The store cannot be read.
    pub fn new(store: JobStore) -> Result<Self, StoreError> {
        let All { jobs, damaged } = store.all()?;
        for (key, cause) in &damaged {
            tracing::error!(tenant = &*key.tenant, job = %key.id, cause, "a job is damaged; what is left of it is kept");
        }
        let states = jobs.into_iter().map(|job| (job.key, job.state.name())).collect();
        let damaged: HashSet<JobKey> = damaged.into_iter().map(|(key, _)| key).collect();
        metrics::jobs(DAMAGED, damaged.len());
        let repository = Self {
            store,
            heads: Mutex::default(),
            states: Mutex::new(states),
            damaged: Mutex::new(damaged),
            closing: watch::Sender::new(false),
        };
        count(&lock(&repository.states));
        Ok(repository)
    }

    pub async fn add(self: &Arc<Self>, tenant: Arc<str>, order: JobSpec) -> Result<Added, AddError> {
        let added =
            self.blocking(move |repository| repository.store.add(&tenant, order, Time::now())).await?;
        if let Added::New(job) = &added {
            self.publish(job);
        }
        Ok(added)
    }

    pub async fn get(self: &Arc<Self>, key: &JobKey) -> Result<Option<Job>, StoreError> {
        let key = key.clone();
        self.blocking(move |repository| repository.store.get(&key)).await
    }

    pub async fn list(self: &Arc<Self>, tenant: Arc<str>, listing: Listing) -> Result<Page, StoreError> {
        self.blocking(move |repository| repository.store.list(&tenant, &listing)).await
    }

    /// Every job that can be read, oldest first.
    pub async fn all(self: &Arc<Self>) -> Result<Vec<Job>, StoreError> {
        Ok(self.blocking(|repository| repository.store.all()).await?.jobs)
    }

    pub async fn events(
        self: &Arc<Self>,
        key: &JobKey,
        from: u64,
        limit: usize,
    ) -> Result<Option<Replay>, StoreError> {
        let key = key.clone();
        self.blocking(move |repository| repository.store.events(&key, from, limit)).await
    }

    /// Changes a job once; see [`JobStore::update`].
    pub async fn update<E: Send + 'static>(
        self: &Arc<Self>,
        key: &JobKey,
        work: impl FnOnce(&mut Edit) -> Result<(), E> + Send + 'static,
    ) -> Result<Job, UpdateError<E>> {
        let place = key.clone();
        let job = self.blocking(move |repository| repository.store.update(&place, Time::now(), work)).await?;
        self.publish(&job);
        Ok(job)
    }

    /// Changes a job, waiting for as long as the store cannot be used. `None` if the job is gone or damaged, which
    /// waiting cannot repair, or if `work` refuses.
    pub async fn update_surely<E: Send + 'static>(
        self: &Arc<Self>,
        key: &JobKey,
        work: impl Fn(&mut Edit) -> Result<(), E> + Send + Sync + 'static,
    ) -> Option<Job> {
        let work = Arc::new(work);
        loop {
            let once = Arc::clone(&work);
            let cause = match self.update(key, move |edit| once(edit)).await {
                Ok(job) => return Some(job),
                Err(UpdateError::Unknown | UpdateError::Refused(_)) => return None,
                Err(UpdateError::Store(cause)) => cause,
            };
            match cause {
                StoreError::Damaged(_) | StoreError::DamagedJob { .. } | StoreError::Newer { .. } => {
                    tracing::error!(%cause, job = %key.id, "what happened in a job is lost");
                    return None;
                }
                StoreError::Unavailable(_) | StoreError::Pending(_) => {}
            }
            tracing::error!(%cause, job = %key.id, "waiting for the job store");
            tokio::time::sleep(HEAL_PAUSE).await;
            if let StoreError::Pending(_) = cause {
                return self.healed(key).await;
            }
        }
    }

    /// The job after pending changes have been applied.
    async fn healed(self: &Arc<Self>, key: &JobKey) -> Option<Job> {
        loop {
            if self.blocking(|repository| repository.store.heal()).await.is_ok()
                && let Ok(job) = self.get(key).await
            {
                job.iter().for_each(|job| self.publish(job));
                return job;
            }
            tokio::time::sleep(HEAL_PAUSE).await;
        }
    }

    pub async fn delete<E: Send + 'static>(
        self: &Arc<Self>,
        key: &JobKey,
        check: impl FnOnce(&Job) -> Result<(), E> + Send + 'static,
    ) -> Result<(), UpdateError<E>> {
        let place = key.clone();
        self.blocking(move |repository| repository.store.delete(&place, check)).await?;
        // Its watchers are woken and find that it is gone.
        lock(&self.heads).remove(key);
        let mut states = lock(&self.states);
        states.remove(key);
        count(&states);
        let mut damaged = lock(&self.damaged);
        damaged.remove(key);
        metrics::jobs(DAMAGED, damaged.len());
        Ok(())
    }

    /// Notes that nothing is left of a deleted job in its folder.
    pub async fn forget(self: &Arc<Self>, id: JobId) -> Result<(), StoreError> {
        self.blocking(move |repository| repository.store.forget(id)).await
    }

    /// Notifies of new events; subscribe first, then read.
    pub fn subscribe(self: &Arc<Self>, key: &JobKey) -> Subscription {
        let head = lock(&self.heads).entry(key.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe();
        Subscription { repository: Arc::clone(self), key: key.clone(), head }
    }

    /// Number of jobs that are being watched.
    #[cfg(test)]
    pub fn watched(&self) -> usize {
        lock(&self.heads).len()
    }

    /// Becomes true when no more events follow, since the server shuts down.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Notifies watchers, and counts the job's state.
    fn publish(&self, job: &Job) {
        self.tell(job);
        let mut states = lock(&self.states);
        let name = job.state.name();
        if states.insert(job.key.clone(), name) != Some(name) {
            count(&states);
        }
    }

    fn tell(&self, job: &Job) {
        if let Some(head) = lock(&self.heads).get(&job.key) {
            head.send_replace(job.last_event);
        }
    }

    /// Runs work that may block on the disk on a blocking thread.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let repository = Arc::clone(self);
        match spawn_blocking(move || work(&repository)).await {
            Ok(done) => done,
            Err(cause) if cause.is_panic() => resume_unwind(cause.into_panic()),
            // The runtime is being shut down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// A watcher of a job, which may not exist. The last one removes the job from the list.
#[derive(Debug)]
pub struct Subscription {
    repository: Arc<JobRepository>,
    key: JobKey,
    pub head: watch::Receiver<u64>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut heads = lock(&self.repository.heads);
        if heads.get(&self.key).is_some_and(|head| head.receiver_count() <= 1) {
            heads.remove(&self.key);
        }
    }
}

fn count(states: &HashMap<JobKey, StateName>) {
    for name in StateName::EVERY {
        metrics::jobs(name.text(), states.values().filter(|state| **state == name).count());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
