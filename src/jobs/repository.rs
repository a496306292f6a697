//! The store, with what is to be known of its changes: watchers and metrics are notified.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::edit::Edit;
use super::hold::{Claimed, Hold};
use super::job::{Job, JobId, JobKey, JobSpec};
use super::state::{Refused, StateName};
use super::store::{
    Active, AddError, Added, All, EmbeddedJobs, JobStore, Listing, Page, PostgresJobs, Replay, StoreError,
    UpdateError,
};
use crate::gallery::Time;
use crate::metrics;
use crate::postgres::FolderError;

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
    /// Jobs that are this server's alone. Blocking.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn new(store: EmbeddedJobs) -> Result<Self, StoreError> {
        let All { jobs, damaged } = store.all()?;
        for (key, cause) in &damaged {
            tracing::error!(tenant = &*key.tenant, job = %key.id, cause, "a job is damaged; what is left of it is kept");
        }
        let states = jobs.into_iter().map(|job| (job.key, job.state.name())).collect();
        let damaged: HashSet<JobKey> = damaged.into_iter().map(|(key, _)| key).collect();
        metrics::jobs(DAMAGED, damaged.len());
        count(&states);
        Ok(Self {
            store: JobStore::Embedded(Arc::new(store)),
            heads: Mutex::default(),
            states: Mutex::new(states),
            damaged: Mutex::new(damaged),
            closing: watch::Sender::new(false),
        })
    }

    /// Jobs that other servers change as well.
    pub(super) fn shared(store: PostgresJobs) -> Self {
        Self {
            store: JobStore::Postgres(store),
            heads: Mutex::default(),
            states: Mutex::default(),
            damaged: Mutex::default(),
            closing: watch::Sender::new(false),
        }
    }

    pub fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    pub async fn add(&self, tenant: Arc<str>, order: JobSpec) -> Result<Added, AddError> {
        let added = self.store.add(tenant, order, Time::now()).await?;
        if let Added::New(job) = &added {
            self.publish(job);
        }
        Ok(added)
    }

    pub async fn get(&self, key: &JobKey) -> Result<Option<Job>, StoreError> {
        self.store.get(key).await
    }

    pub async fn list(&self, tenant: Arc<str>, listing: Listing) -> Result<Page, StoreError> {
        self.store.list(tenant, listing).await
    }

    /// See [`JobStore::active`].
    pub async fn active(&self, after: Option<JobId>) -> Result<Active, StoreError> {
        self.store.active(after).await
    }

    /// See [`JobStore::abandoned`].
    pub async fn abandoned(&self) -> Result<Vec<Job>, StoreError> {
        self.store.abandoned().await
    }

    pub async fn events(&self, key: &JobKey, from: u64, limit: usize) -> Result<Option<Replay>, StoreError> {
        self.store.events(key, from, limit).await
    }

    /// Changes a job once; see [`JobStore::update`].
    pub async fn update<E: Send + 'static>(
        &self,
        key: &JobKey,
        work: impl FnOnce(&mut Edit) -> Result<(), E> + Send + 'static,
    ) -> Result<Job, UpdateError<E>> {
        let job = self.store.update(key, Time::now(), work).await?;
        self.publish(&job);
        Ok(job)
    }

    /// Starts a waiting job, waiting for as long as a store of this server's own cannot be used. `None` if it does not
    /// wait any more, or another server has started it.
    pub async fn claim(&self, key: &JobKey) -> Option<Claimed> {
        loop {
            let cause = match self.store.claim(key, Time::now()).await {
                Ok(claimed) => {
                    self.publish(&claimed.job);
                    return Some(claimed);
                }
                Err(UpdateError::Unknown | UpdateError::Refused(_)) => return None,
                Err(UpdateError::Store(cause)) => cause,
            };
            match cause {
                StoreError::Damaged(_) | StoreError::DamagedJob { .. } | StoreError::Newer { .. } => {
                    tracing::error!(%cause, job = %key.id, "a job is not started");
                    return None;
                }
                StoreError::Unavailable(_) | StoreError::Pending(_) | StoreError::Unreachable(_) => {}
            }
            tracing::error!(%cause, job = %key.id, "waiting for the job store");
            tokio::time::sleep(HEAL_PAUSE).await;
            match cause {
                StoreError::Pending(_) => {
                    let job = self.healed(key).await?;
                    return Some(Claimed { job, hold: Hold::alone(key.clone()) });
                }
                // Whoever looks for jobs next finds out what became of the claim.
                StoreError::Unreachable(_) => return None,
                _ => {}
            }
        }
    }

    /// Changes a job that nobody runs although it should be run; see [`JobStore::take_over`].
    pub async fn take_over(
        &self,
        key: &JobKey,
        work: impl FnOnce(&mut Edit) -> Result<(), Refused> + Send + 'static,
    ) -> Result<Job, UpdateError<Refused>> {
        let job = self.store.take_over(key, Time::now(), work).await?;
        self.publish(&job);
        Ok(job)
    }

    /// See [`JobStore::renew`].
    pub async fn renew(&self, hold: &Hold) -> Result<Option<Instant>, StoreError> {
        self.store.renew(hold).await
    }

    /// See [`JobStore::fetch_folder`].
    pub async fn fetch_folder(&self, hold: &Hold, folder: &Path) -> Result<(), FolderError> {
        self.store.fetch_folder(hold, folder).await
    }

    /// Keeps what a job's folder has to have, with the checkpoints that were `saved`, waiting for as long as the database
    /// cannot be used. Returns whether the job is still held. A folder that cannot be read keeps a job from being continued elsewhere, but not from going on.
    pub async fn keep_folder_surely(&self, hold: &Hold, folder: &Path, saved: &[u64]) -> bool {
        loop {
            match self.store.keep_folder(hold, folder, saved).await {
                Ok(is_held) => return is_held,
                Err(cause @ FolderError::Io { .. }) => {
                    tracing::error!(%cause, job = %hold.key.id, "another server could not continue this job from here");
                    return true;
                }
                Err(cause @ FolderError::Database(_)) => {
                    tracing::error!(%cause, job = %hold.key.id, "waiting for the job store");
                    tokio::time::sleep(HEAL_PAUSE).await;
                }
            }
        }
    }

    /// Changes a job that this server runs, waiting for as long as the store cannot be used. `None` if the job is gone,
    /// taken over or damaged, which waiting cannot repair, or if `work` refuses.
    pub async fn update_surely<E: Send + 'static>(
        &self,
        hold: &Hold,
        work: impl Fn(&mut Edit) -> Result<(), E> + Send + Sync + 'static,
    ) -> Option<Job> {
        let (work, write, key) = (Arc::new(work), hold.write(), &hold.key);
        loop {
            let once = Arc::clone(&work);
            let cause = match self.store.update_held(&write, Time::now(), move |edit| once(edit)).await {
                Ok(job) => {
                    self.publish(&job);
                    return Some(job);
                }
                Err(UpdateError::Unknown | UpdateError::Refused(_)) => return None,
                Err(UpdateError::Store(cause)) => cause,
            };
            match cause {
                StoreError::Damaged(_) | StoreError::DamagedJob { .. } | StoreError::Newer { .. } => {
                    tracing::error!(%cause, job = %key.id, "what happened in a job is lost");
                    return None;
                }
                StoreError::Unavailable(_) | StoreError::Pending(_) | StoreError::Unreachable(_) => {}
            }
            tracing::error!(%cause, job = %key.id, "waiting for the job store");
            tokio::time::sleep(HEAL_PAUSE).await;
            if let StoreError::Pending(_) = cause {
                return self.healed(key).await;
            }
        }
    }

    /// The job after pending changes have been applied.
    async fn healed(&self, key: &JobKey) -> Option<Job> {
        loop {
            if self.store.heal().await.is_ok()
                && let Ok(job) = self.get(key).await
            {
                job.iter().for_each(|job| self.publish(job));
                return job;
            }
            tokio::time::sleep(HEAL_PAUSE).await;
        }
    }

    pub async fn delete<E: Send + 'static>(
        &self,
        key: &JobKey,
        check: impl FnOnce(&Job) -> Result<(), E> + Send + 'static,
    ) -> Result<(), UpdateError<E>> {
        self.store.delete(key, check).await?;
        // Its watchers are woken and find that it is gone.
        lock(&self.heads).remove(key);
        if self.is_shared() {
            return Ok(());
        }
        let mut states = lock(&self.states);
        states.remove(key);
        count(&states);
        let mut damaged = lock(&self.damaged);
        damaged.remove(key);
        metrics::jobs(DAMAGED, damaged.len());
        Ok(())
    }

    /// Notes that nothing is left of a deleted job in its folder.
    pub async fn forget(&self, id: JobId) -> Result<(), StoreError> {
        self.store.forget(id).await
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
        if self.is_shared() {
            // They are counted in the database.
            return;
        }
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

    /// The jobs that are watched.
    pub(super) fn watched_jobs(&self) -> Vec<JobKey> {
        lock(&self.heads).keys().cloned().collect()
    }

    /// Notifies watchers of what others have written: the number of the job's last event, `None` if it is gone.
    pub(super) fn notice(&self, key: &JobKey, last_event: Option<u64>) {
        let heads = lock(&self.heads);
        let Some(head) = heads.get(key) else { return };
        match last_event {
            Some(last) => {
                head.send_if_modified(|known| {
                    *known < last && {
                        *known = last;
                        true
                    }
                });
            }
            // They look for themselves, and leave if it is gone.
            None => head.send_modify(|_| {}),
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
