//! Jobs and their events: in a file of this server, or in a database that servers share.
//!
//! A job runs under a [`Hold`]. In a file there is one server, and it holds whatever it starts. In a database a server
//! claims a job for a while and renews that; whoever has lost a hold can no longer write anything under it.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::spawn_blocking;

use super::edit::Edit;
use super::event::JobEvent;
use super::hold::{Claimed, Hold, Write};
use super::job::{Job, JobId, JobKey, JobSpec};
use super::state::{Change, Refused, StateName};
use crate::gallery::Time;
use crate::postgres::FolderError;

pub use embedded::{EmbeddedJobs, FILE};
pub use error::{AddError, StoreError, UpdateError};
pub use postgres::{PostgresJobs, PostgresSettings};

#[cfg(test)]
mod conformance;
mod embedded;
mod error;
mod postgres;

/// A page of jobs ends when their configurations reach this many bytes.
const PAGE_BYTES: usize = 4 << 20;
/// A read of a job's events ends when they reach this many bytes.
const REPLAY_BYTES: usize = 4 << 20;

/// Bounds on what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Jobs of one tenant, in any state.
    pub jobs_max: usize,
    /// Events of one job; older ones are removed.
    pub events_retained_max: u64,
}

/// Where jobs are kept. Cloning it is cheap.
#[derive(Clone, Debug)]
pub enum JobStore {
    Embedded(Arc<EmbeddedJobs>),
    Postgres(PostgresJobs),
}

/// A job that was submitted, or that the same request started before.
#[derive(Clone, Debug, PartialEq)]
pub enum Added {
    New(Job),
    Known(Job),
}

/// Some jobs, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    pub jobs: Vec<Job>,
    /// Jobs in this page's range whose records cannot be read, whatever their state was.
    pub damaged: Vec<JobId>,
    /// Whether there are more, older than the last of these.
    pub more: bool,
}

/// Every job in the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct All {
    /// Oldest first.
    pub jobs: Vec<Job>,
    /// Those whose records cannot be read, and why.
    pub damaged: Vec<(JobKey, String)>,
}

/// Jobs that a server may start now and those that it runs, the oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Active {
    pub jobs: Vec<Job>,
    /// The last waiting job that was looked at, if there may be others after it.
    pub last: Option<JobId>,
}

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Empty: every state.
    pub states: Vec<StateName>,
    /// Only jobs older than this one.
    pub before: Option<JobId>,
    pub limit: usize,
}

/// The available events from a number on.
#[derive(Clone, Debug, PartialEq)]
pub enum Replay {
    Events {
        events: Vec<JobEvent>,
        /// The job has ended, and its last event is among these or before them.
        complete: bool,
    },
    /// The number is no longer retained.
    Gone { oldest: u64 },
    /// The number is later than that of the next event.
    Future { next: u64 },
}

impl JobStore {
    /// Stores a new waiting job, unless its request id is known.
    ///
    /// # Errors
    /// See [`AddError`].
    pub async fn add(&self, tenant: Arc<str>, order: JobSpec, now: Time) -> Result<Added, AddError> {
        match self {
            Self::Embedded(store) => blocking(store, move |store| store.add(&tenant, order, now)).await,
            Self::Postgres(store) => store.add(tenant, order, now).await,
        }
    }

    /// Changes a job and stores its events in one transaction.
    ///
    /// # Errors
    /// The job does not exist, or `work` fails; then nothing has changed. See [`StoreError`] for the rest.
    pub async fn update<E: Send + 'static>(
        &self,
        key: &JobKey,
        now: Time,
        work: impl FnOnce(&mut Edit) -> Result<(), E> + Send + 'static,
    ) -> Result<Job, UpdateError<E>> {
        let key = key.clone();
        match self {
            Self::Embedded(store) => blocking(store, move |store| store.update(&key, now, work)).await,
            Self::Postgres(store) => store.update(key, now, work).await,
        }
    }

    /// The same as the holder of the job. A write that is repeated, since it is not known what became of it, happens
    /// once.
    ///
    /// # Errors
    /// The job is no longer held, which counts as unknown; and those of [`Self::update`].
    pub async fn update_held<E: Send + 'static>(
        &self,
        write: &Write,
        now: Time,
        work: impl FnOnce(&mut Edit) -> Result<(), E> + Send + 'static,
    ) -> Result<Job, UpdateError<E>> {
        match self {
            Self::Embedded(_) => self.update(&write.hold.key, now, work).await,
            Self::Postgres(store) => store.update_held(write.clone(), now, work).await,
        }
    }

    /// Starts a waiting job that no other server starts meanwhile.
    ///
    /// # Errors
    /// The job does not wait or does not exist. See [`StoreError`] for the rest.
    pub async fn claim(&self, key: &JobKey, now: Time) -> Result<Claimed, UpdateError<Refused>> {
        match self {
            Self::Embedded(_) => {
                let job = self.update(key, now, |edit| edit.change(Change::Start)).await?;
                Ok(Claimed { job, hold: Hold::alone(key.clone()) })
            }
            Self::Postgres(store) => store.claim(key.clone(), now).await,
        }
    }

    /// Jobs that nobody runs although they should be run: in a file, all that were running when it was opened.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn abandoned(&self) -> Result<Vec<Job>, StoreError> {
        match self {
            Self::Embedded(store) => {
                let all = blocking(store, |store| store.all()).await?;
                Ok(all.jobs.into_iter().filter(|job| job.state.has_been_run()).collect())
            }
            Self::Postgres(store) => store.abandoned().await,
        }
    }

    /// Changes an abandoned job, unless another server did.
    ///
    /// # Errors
    /// It is not abandoned any more, which counts as unknown; and those of [`Self::update`].
    pub async fn take_over(
        &self,
        key: &JobKey,
        now: Time,
        work: impl FnOnce(&mut Edit) -> Result<(), Refused> + Send + 'static,
    ) -> Result<Job, UpdateError<Refused>> {
        match self {
            Self::Embedded(_) => self.update(key, now, work).await,
            Self::Postgres(store) => store.take_over(key.clone(), now, work).await,
        }
    }

    /// Jobs that may be started now and those that this server runs. Where there are many, only some of those that wait,
    /// from the first after `after` on.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn active(&self, after: Option<JobId>) -> Result<Active, StoreError> {
        match self {
            Self::Embedded(store) => {
                let all = blocking(store, |store| store.all()).await?;
                let jobs = all.jobs.into_iter().filter(|job| !job.state.is_ended()).collect();
                Ok(Active { jobs, last: None })
            }
            Self::Postgres(store) => store.active(after).await,
        }
    }

    /// Holds the job for longer; the time until which it is held then. `None` if it is no longer held.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn renew(&self, hold: &Hold) -> Result<Option<Instant>, StoreError> {
        match self {
            Self::Embedded(_) => Ok(None),
            Self::Postgres(store) => store.renew(hold.clone()).await,
        }
    }

    /// Keeps what a job's folder has to have for it to be continued anywhere: its chips and checkpoints. Those that were just
    /// `saved`, by their steps, replace what earlier attempts have left of them, which may be damaged. Returns whether the
    /// job is still held. A file is on the same disk as the folder.
    ///
    /// # Errors
    /// The folder or the database cannot be used.
    pub async fn keep_folder(&self, hold: &Hold, folder: &Path, saved: &[u64]) -> Result<bool, FolderError> {
        match self {
            Self::Embedded(_) => Ok(true),
            Self::Postgres(store) => store.keep_folder(hold.clone(), folder.to_owned(), saved.to_vec()).await,
        }
    }

    /// Makes a job's folder hold what was kept of it, and no other chips and checkpoints.
    ///
    /// # Errors
    /// The folder or the database cannot be used.
    pub async fn fetch_folder(&self, hold: &Hold, folder: &Path) -> Result<(), FolderError> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Postgres(store) => store.fetch_folder(hold.clone(), folder.to_owned()).await,
        }
    }

    /// Completes writes that are pending since the disk was full or failed.
    ///
    /// # Errors
    /// It still cannot be used.
    pub async fn heal(&self) -> Result<(), StoreError> {
        match self {
            Self::Embedded(store) => blocking(store, |store| store.heal()).await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// # Errors
    /// See [`StoreError`].
    pub async fn get(&self, key: &JobKey) -> Result<Option<Job>, StoreError> {
        let key = key.clone();
        match self {
            Self::Embedded(store) => blocking(store, move |store| store.get(&key)).await,
            Self::Postgres(store) => store.get(key).await,
        }
    }

    /// Jobs of a tenant, newest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn list(&self, tenant: Arc<str>, listing: Listing) -> Result<Page, StoreError> {
        match self {
            Self::Embedded(store) => blocking(store, move |store| store.list(&tenant, &listing)).await,
            Self::Postgres(store) => store.list(tenant, listing).await,
        }
    }

    /// At most `limit` events, fewer if they are large, starting with number `from`; `None` if the job does not exist.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn events(&self, key: &JobKey, from: u64, limit: usize) -> Result<Option<Replay>, StoreError> {
        let key = key.clone();
        match self {
            Self::Embedded(store) => blocking(store, move |store| store.events(&key, from, limit)).await,
            Self::Postgres(store) => store.events(key, from, limit).await,
        }
    }

    /// Removes a job with everything that is kept of it, unless `check` objects. A damaged job is removed without the
    /// check, since the caller named it explicitly.
    ///
    /// # Errors
    /// The job does not exist, or `check` fails. See [`StoreError`] for the rest.
    pub async fn delete<E: Send + 'static>(
        &self,
        key: &JobKey,
        check: impl FnOnce(&Job) -> Result<(), E> + Send + 'static,
    ) -> Result<(), UpdateError<E>> {
        let key = key.clone();
        match self {
            Self::Embedded(store) => blocking(store, move |store| store.delete(&key, check)).await,
            Self::Postgres(store) => store.delete(key, check).await,
        }
    }

    /// Notes that nothing is left of a deleted job in its folder.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn forget(&self, id: JobId) -> Result<(), StoreError> {
        match self {
            Self::Embedded(store) => blocking(store, move |store| store.forget(id)).await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Whether other servers change the jobs as well.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Embedded(_) => false,
            Self::Postgres(_) => true,
        }
    }
}

/// Runs work that may block on the disk on a blocking thread.
async fn blocking<T: Send + 'static>(
    store: &Arc<EmbeddedJobs>,
    work: impl FnOnce(&EmbeddedJobs) -> T + Send + 'static,
) -> T {
    let store = Arc::clone(store);
    match spawn_blocking(move || work(&store)).await {
        Ok(done) => done,
        Err(cause) if cause.is_panic() => resume_unwind(cause.into_panic()),
        // The runtime is being shut down, and this task with it.
        Err(_) => std::future::pending().await,
    }
}
