//! Jobs and their events on disk. What a reader sees survives a power failure.
//!
//! One database for all tenants. When it cannot be written, it is opened anew at the next use; what was being written
//! then is brought to its end first, so that it is there once, whether or not the disk already had it. While its disk is
//! full, it is read all the same.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::edit::Edit;
use super::event::{EventPayload, JobEvent};
use super::job::{Job, JobId, JobKey, JobSpec};
use super::record;
use super::state::StateName;
use crate::durable::{Database, DatabaseError, Volume, guard, is_full};
use crate::gallery::Time;

pub use error::{AddError, StoreError, UpdateError};
pub use tables::FILE;

/// Changes when an older program could misread the file. Since 2, records have checksums.
const SCHEMA: u64 = 2;

mod error;
mod opening;
mod tables;

/// Bounds on what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Jobs of one tenant, in any state.
    pub jobs_max: usize,
    /// Events of one job; older ones are removed.
    pub events_retained_max: u64,
}

/// Room that must be there for a new job, and before what is pending is written after a disk was full.
const ROOM_BYTES: u64 = 1 << 20;

/// Jobs, events and request ids.
pub struct JobStore {
    volume: Box<dyn Volume>,
    bounds: Bounds,
    state: Mutex<State>,
}

struct State {
    /// No new job gets a number below this one.
    next_id_min: u64,
    /// `None` after a failure, until it can be opened again.
    database: Option<Database>,
    /// What may or may not have been written when the database failed.
    pending: Option<RedoRecord>,
}

/// One transaction, which says how things are and not how they change: doing it twice is doing it once.
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
    /// Jobs of this page's numbers whose records cannot be read, whatever state they were in.
    pub damaged: Vec<JobId>,
    /// There are more, older than the last of these.
    pub more: bool,
}

/// Every job there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct All {
    /// Oldest first.
    pub jobs: Vec<Job>,
    /// Those whose records cannot be read, and why.
    pub damaged: Vec<(JobKey, String)>,
}

/// Which jobs are listed.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// None: every state.
    pub states: Vec<StateName>,
    /// Only jobs older than this one.
    pub before: Option<JobId>,
    pub limit: usize,
}

/// Events from a number on, as far as there are any.
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
    /// Makes an empty store in a volume.
    ///
    /// # Errors
    /// There is one, or it cannot be written.
    pub fn create(volume: &dyn Volume) -> Result<(), StoreError> {
        Ok(opening::create(volume)?)
    }

    /// Opens the store in a volume. One of an earlier release gets its checksums; what can be told from the jobs is put
    /// right.
    ///
    /// # Errors
    /// It cannot be read as a whole, or is of a later release.
    pub fn open(volume: Box<dyn Volume>, bounds: Bounds) -> Result<Self, StoreError> {
        let database = opening::open(&*volume)?;
        guard(|| opening::check(&database, bounds))?;
        let state = State { next_id_min: 1, database: Some(database), pending: None };
        Ok(Self { volume, bounds, state: Mutex::new(state) })
    }

    /// Stores a new job that waits, unless its request id is known.
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
            // A job takes more room than its record does: rather none than one that fails at once.
            self.volume.reserve(ROOM_BYTES).map_err(DatabaseError::from)?;
            let id = JobId::new(tables::next_id(database)?.max(least));
            let request_id = order.request_id.clone();
            let key = JobKey { tenant: Arc::clone(tenant), id };
            let edit = Edit::created(Job::new(key, order, now), now);
            self.commit(state, RedoRecord::new(&edit, RedoKind::Creates { request_id }))?;
            Ok(Added::New(edit.into_job()))
        })
    }

    /// Keeps the number of a job from being used again, of which there may be nothing here any more.
    pub fn reserve(&self, id: JobId) {
        let mut state = self.lock();
        state.next_id_min = state.next_id_min.max(id.number().saturating_add(1));
    }

    /// Changes a job, and stores what happens in it, as one.
    ///
    /// # Errors
    /// There is no such job, or what `work` says; then nothing has changed. See [`StoreError`] for the rest.
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

    /// Opens the store again if it has failed, and brings what was being written to its end.
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

    /// At most `limit` events, fewer where they are large, the first of which has the number `from`; `None` where
    /// there is no such job.
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

    /// Removes a job with its events and its request id, if `check` finds nothing against it. One that is damaged goes
    /// without further questions; whoever asks for that has named it. Until [`Self::forget`], the store remembers that it
    /// was deleted.
    ///
    /// # Errors
    /// There is no such job, or what `check` says. See [`StoreError`] for the rest.
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

    /// Jobs that were deleted and not [forgotten](Self::forget), of which there is nothing here any more.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn deleted(&self) -> Result<Vec<JobId>, StoreError> {
        self.guarded(|state| tables::deleted(self.readable(state)?))
    }

    /// Nothing is left of a deleted job anywhere.
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

    /// Works on the database with a panic as damage, after which it is opened anew: redb promises no more where a file was
    /// changed behind its back.
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

    /// The database, opened again if need be, with nothing half done.
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

    /// The database to be read, which needs no room: what is pending waits for that.
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

    /// Writes a redo, twice if need be. What cannot be written now is left pending, unless a full disk is all that there
    /// is to it: then whoever asked comes again when there is room.
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

    /// Whether nothing of what is pending is on the disk, as far as that can be read.
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

    /// Whether the database is not written to any more.
    fn is_sealed(&self) -> bool {
        self.database.as_ref().is_some_and(|database| database.health().failure().is_some())
    }
}

impl fmt::Debug for JobStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobStore").field("bounds", &self.bounds).finish_non_exhaustive()
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
