//! Jobs and their events in a file of this server. What a reader sees survives a power failure.
//!
//! One database for all tenants. When it cannot be written, it is reopened at the next use. The interrupted write is
//! completed first, so that it is applied exactly once, whether or not it had reached the disk. While its disk is full,
//! it can still be read.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{AddError, Added, All, Bounds, Listing, Page, Replay, StoreError, UpdateError};
use crate::durable::{Database, DatabaseError, Volume, guard, is_full};
use crate::gallery::Time;
use crate::jobs::edit::Edit;
use crate::jobs::event::EventPayload;
use crate::jobs::job::{Job, JobId, JobKey, JobSpec};
use crate::jobs::record;

pub use tables::FILE;

/// Incremented when an older program could misread the file. Since 2, records have checksums.
const SCHEMA: u64 = 2;

mod opening;
mod tables;

/// Free space required for a new job, and before pending changes are written after the disk was full.
const ROOM_BYTES: u64 = 1 << 20;

/// Jobs, events and request ids.
pub struct EmbeddedJobs {
    volume: Box<dyn Volume>,
    bounds: Bounds,
    state: Mutex<State>,
}

struct State {
    /// New jobs get numbers from this one on.
    next_id_min: u64,
    /// `None` after a failure, until it can be reopened.
    database: Option<Database>,
    /// A write that may or may not have reached the disk when the database failed.
    pending: Option<RedoRecord>,
}

/// One transaction, recorded as resulting values and not as changes, so that it is idempotent.
struct RedoRecord {
    key: JobKey,
    job: Vec<u8>,
    events: Vec<(u64, Vec<u8>)>,
    kind: RedoKind,
}

enum RedoKind {
    Creates { request_id: Option<String> },
    Updates,
}

impl EmbeddedJobs {
    /// Creates an empty store in a volume.
    ///
    /// # Errors
    /// It exists already, or cannot be written.
    pub fn create(volume: &dyn Volume) -> Result<(), StoreError> {
        Ok(opening::create(volume)?)
    }

    /// Opens the store in a volume. A store of an earlier release gets checksums; indexes that can be derived from the
    /// jobs are repaired.
    ///
    /// # Errors
    /// It cannot be read as a whole, or is of a later release.
    pub fn open(volume: Box<dyn Volume>, bounds: Bounds) -> Result<Self, StoreError> {
        let database = opening::open(&*volume)?;
        guard(|| opening::check(&database, bounds))?;
        let state = State { next_id_min: 1, database: Some(database), pending: None };
        Ok(Self { volume, bounds, state: Mutex::new(state) })
    }

    /// Stores a new waiting job, unless its request id is known.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add(&self, tenant: &Arc<str>, order: JobSpec, now: Time) -> Result<Added, AddError> {
        self.guarded(|state| {
            let least = state.next_id_min;
            let database = self.healed(state)?;
            if let Some(request_id) = &order.request_id
                && let Some(known) = tables::job_of_request(database, tenant, request_id)?
            {
                let same =
                    known.order.config_toml == order.config_toml && known.order.gallery == order.gallery;
                return if same { Ok(Added::Known(known)) } else { Err(AddError::OtherOrder(known.key.id)) };
            }
            let max = self.bounds.jobs_max;
            if tables::count_jobs(database, tenant)? >= max {
                return Err(AddError::Full { max });
            }
            // A job needs more space than its record: it is better to refuse it than to let it fail immediately.
            self.volume.reserve(ROOM_BYTES).map_err(DatabaseError::from)?;
            let id = JobId::new(tables::next_id(database)?.max(least));
            let request_id = order.request_id.clone();
            let key = JobKey { tenant: Arc::clone(tenant), id };
            let edit = Edit::created(Job::new(key, order, now), now);
            self.commit(state, RedoRecord::new(&edit, RedoKind::Creates { request_id }))?;
            Ok(Added::New(edit.into_job()))
        })
    }

    /// Prevents the number of a job from being reused, even if the store no longer contains it.
    pub fn reserve(&self, id: JobId) {
        let mut state = self.lock();
        state.next_id_min = state.next_id_min.max(id.number().saturating_add(1));
    }

    /// Changes a job and stores its events in one transaction.
    ///
    /// # Errors
    /// The job does not exist, or `work` fails; then nothing has changed. See [`StoreError`] for the rest.
    pub fn update<E>(
        &self,
        key: &JobKey,
        now: Time,
        work: impl FnOnce(&mut Edit) -> Result<(), E>,
    ) -> Result<Job, UpdateError<E>> {
        self.guarded(|state| {
            let job = tables::job(self.healed(state)?, key)?.ok_or(UpdateError::Unknown)?;
            let mut edit = Edit::new(job.clone(), now);
            work(&mut edit).map_err(UpdateError::Refused)?;
            if *edit.job() != job {
                self.commit(state, RedoRecord::new(&edit, RedoKind::Updates))?;
            }
            Ok(edit.into_job())
        })
    }

    /// Reopens the store if it has failed, and completes pending writes.
    ///
    /// # Errors
    /// It still cannot be used.
    pub fn heal(&self) -> Result<(), StoreError> {
        self.guarded(|state| self.healed(state).map(drop))
    }

    /// # Errors
    /// See [`StoreError`].
    pub fn get(&self, key: &JobKey) -> Result<Option<Job>, StoreError> {
        self.guarded(|state| tables::job(self.readable(state)?, key))
    }

    /// Jobs of a tenant, newest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn list(&self, tenant: &Arc<str>, listing: &Listing) -> Result<Page, StoreError> {
        self.guarded(|state| tables::list(self.readable(state)?, tenant, listing))
    }

    /// Every job of every tenant.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn all(&self) -> Result<All, StoreError> {
        self.guarded(|state| tables::all(self.readable(state)?))
    }

    /// At most `limit` events, fewer if they are large, starting with number `from`; `None` if the job does not exist.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn events(&self, key: &JobKey, from: u64, limit: usize) -> Result<Option<Replay>, StoreError> {
        self.guarded(|state| {
            let database = self.readable(state)?;
            let Some(job) = tables::job(database, key)? else { return Ok(None) };
            tables::events(database, &job, from, limit).map(Some)
        })
    }

    /// Removes a job with its events and its request id, unless `check` objects. A damaged job is removed without the
    /// check, since the caller named it explicitly. Until [`Self::forget`], the store remembers that it was deleted.
    ///
    /// # Errors
    /// The job does not exist, or `check` fails. See [`StoreError`] for the rest.
    pub fn delete<E>(
        &self,
        key: &JobKey,
        check: impl FnOnce(&Job) -> Result<(), E>,
    ) -> Result<(), UpdateError<E>> {
        self.guarded(|state| {
            let database = self.healed(state)?;
            match tables::job(database, key) {
                Ok(job) => {
                    let job = job.ok_or(UpdateError::Unknown)?;
                    check(&job).map_err(UpdateError::Refused)?;
                }
                Err(StoreError::DamagedJob { .. }) => {}
                Err(other) => return Err(other.into()),
            }
            if let Err(cause) = tables::remove(database, key) {
                state.database = None;
                return Err(UpdateError::Store(cause.into()));
            }
            Ok(())
        })
    }

    /// Jobs that were deleted and not [forgotten](Self::forget); the store contains nothing else of them.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn deleted(&self) -> Result<Vec<JobId>, StoreError> {
        self.guarded(|state| tables::deleted(self.readable(state)?))
    }

    /// Notes that nothing is left of a deleted job anywhere.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn forget(&self, id: JobId) -> Result<(), StoreError> {
        self.guarded(|state| {
            let forgotten = tables::forget(self.healed(state)?, id);
            if forgotten.is_err() {
                state.database = None;
            }
            Ok(forgotten?)
        })
    }

    /// Uses the database, treating a panic as damage after which it is reopened: redb guarantees no more if a file was
    /// changed externally.
    fn guarded<T, E: From<DatabaseError>>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut state = self.lock();
        let mut calm = false;
        let done = guard(|| {
            let done = work(&mut state);
            calm = true;
            done
        });
        if !calm {
            state.database = None;
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database, reopened if necessary, without pending writes.
    fn healed<'a>(&self, state: &'a mut State) -> Result<&'a Database, StoreError> {
        if state.is_sealed() {
            state.database = None;
        }
        self.open_again(state)?;
        if let Some(redo) = &state.pending {
            let done = state.database.as_ref().map(|database| tables::apply(database, redo, self.bounds));
            if let Some(Err(cause)) = done {
                state.database = None;
                return Err(cause.into());
            }
            state.pending = None;
        }
        state.opened()
    }

    /// The database for reading, which needs no space: pending writes wait for that.
    fn readable<'a>(&self, state: &'a mut State) -> Result<&'a Database, StoreError> {
        let is_stuck = state.pending.is_some() || state.is_sealed();
        if !is_stuck || !self.volume.reserve(ROOM_BYTES).is_err_and(|cause| is_full(&cause)) {
            match self.healed(state).map(drop) {
                Err(cause) if cause.is_full() => {}
                healed => healed?,
            }
        }
        self.open_again(state)?;
        state.opened()
    }

    fn open_again(&self, state: &mut State) -> Result<(), DatabaseError> {
        if state.database.is_none() {
            state.database = Some(opening::open(&*self.volume)?);
        }
        Ok(())
    }

    /// Writes a redo, with one retry. If it cannot be written now it stays pending, unless the only problem is a full
    /// disk: then the caller has to retry when there is space.
    fn commit(&self, state: &mut State, redo: RedoRecord) -> Result<(), StoreError> {
        state.pending = Some(redo);
        match self.healed(state) {
            Ok(_) => Ok(()),
            Err(cause) => {
                tracing::warn!(%cause, "the job store is opened again");
                let Err(cause) = self.healed(state).map(drop) else { return Ok(()) };
                if cause.is_full() && self.is_undone(state) {
                    state.pending = None;
                    return Err(cause);
                }
                Err(cause.pending())
            }
        }
    }

    /// Whether nothing pending has reached the disk, where that can be read.
    fn is_undone(&self, state: &mut State) -> bool {
        let Some(key) = state.pending.as_ref().map(|redo| redo.key.clone()) else { return true };
        let found = self.open_again(state).map_err(StoreError::from);
        let found = found.and_then(|()| tables::record_of(state.opened()?, &key));
        found.is_ok_and(|found| found.as_ref() != state.pending.as_ref().map(|redo| &redo.job))
    }
}

impl State {
    fn opened(&self) -> Result<&Database, StoreError> {
        self.database.as_ref().ok_or_else(|| DatabaseError::Closed.into())
    }

    /// Whether the database is no longer written to.
    fn is_sealed(&self) -> bool {
        self.database.as_ref().is_some_and(|database| database.health().failure().is_some())
    }
}

impl fmt::Debug for EmbeddedJobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedJobs").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl RedoRecord {
    fn new(edit: &Edit, kind: RedoKind) -> Self {
        let (job, happened, now) = edit.clone().into_parts();
        let first = job.last_event + 1 - happened.len() as u64;
        let event = |(number, payload): (u64, &(u32, EventPayload))| {
            (number, record::event_to_bytes(&job.key, number, payload, now))
        };
        let events = (first..).zip(&happened).map(event).collect();
        Self { job: record::job_to_bytes(&job), events, kind, key: job.key }
    }
}

#[cfg(test)]
mod damage;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;
