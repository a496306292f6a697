//! Jobs and their events on disk. What a reader sees survives a power failure.
//!
//! One database for all tenants. When it cannot be written, it is opened anew at the next use; what was being written
//! then is brought to its end first, so that it is there once, whether or not the disk already had it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::event::{Happening, JobEvent};
use super::job::{Edit, Job, JobId, JobKey, Order};
use super::record::{self, RecordError};
use super::state::StateName;
use crate::durable::{Database, DatabaseError, Volume};
use crate::gallery::Time;

/// Name of the database's file.
pub const FILE: &str = "jobs.redb";
/// Changes when an older program could misread the file.
const SCHEMA: u64 = 1;
const CACHE_BYTES: usize = 8 << 20;
/// A page of jobs ends when their configurations have this many bytes.
const PAGE_BYTES: usize = 4 << 20;
/// What is read of a job's events at once ends when they have this many bytes.
const REPLAY_BYTES: usize = 4 << 20;

/// `schema` and `next_id`.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// By tenant and job.
const JOBS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("jobs");
/// By tenant, job and number.
const EVENTS: TableDefinition<(&str, u64, u64), &[u8]> = TableDefinition::new("events");
/// By tenant and request id: the job that it started.
const REQUESTS: TableDefinition<(&str, &str), u64> = TableDefinition::new("requests");

/// Bounds on what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Jobs of one tenant, in any state.
    pub jobs_max: usize,
    /// Events of one job; older ones are removed.
    pub events_retained_max: u64,
}

/// Jobs, events and request ids.
pub struct JobStore {
    volume: Box<dyn Volume>,
    bounds: Bounds,
    state: Mutex<State>,
}

struct State {
    /// `None` after a failure, until it can be opened again.
    database: Option<Database>,
    /// What may or may not have been written when the database failed.
    pending: Option<Stroke>,
}

/// One transaction, which says how things are and not how they change: doing it twice is doing it once.
struct Stroke {
    key: JobKey,
    job: Vec<u8>,
    events: Vec<(u64, Vec<u8>)>,
    kind: StrokeKind,
}

enum StrokeKind {
    Creates { request_id: Option<String> },
    Updates,
}

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the job store has schema {found}, this program knows {SCHEMA}")]
    Newer { found: u64 },
    #[error("the job store is damaged: {0}")]
    Damaged(String),
    /// For now; nothing has changed.
    #[error("the job store cannot be used now: {0}")]
    Unavailable(String),
    /// What was asked for comes to pass, once, when the store can be used again.
    #[error("the job store cannot be written now: {0}")]
    Pending(String),
}

/// Why a job was not created.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error("the request id started {0} with another configuration")]
    OtherOrder(JobId),
    #[error("the tenant has {max} jobs already")]
    Full { max: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a job was not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E> {
    #[error("there is no such job")]
    Unknown,
    #[error("{0}")]
    Refused(E),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A job that was ordered, or that the same order started before.
#[derive(Clone, Debug, PartialEq)]
pub enum Added {
    New(Job),
    Known(Job),
}

/// Some jobs, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    pub jobs: Vec<Job>,
    /// There are more, older than the last of these.
    pub more: bool,
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
        let database = Database::create(volume, FILE, CACHE_BYTES)?;
        let write = database.begin_write()?;
        write.open_table(META)?.insert("schema", SCHEMA)?;
        write.open_table(JOBS)?;
        write.open_table(EVENTS)?;
        write.open_table(REQUESTS)?;
        database.commit(write)?;
        Ok(database.close()?)
    }

    /// Opens the store in a volume.
    ///
    /// # Errors
    /// It cannot be read, or is of a later release.
    pub fn open(volume: Box<dyn Volume>, bounds: Bounds) -> Result<Self, StoreError> {
        let database = open(&*volume)?;
        let found = database.begin_read()?.open_table(META)?.get("schema")?.map_or(0, |found| found.value());
        if found > SCHEMA {
            return Err(StoreError::Newer { found });
        }
        Ok(Self { volume, bounds, state: Mutex::new(State { database: Some(database), pending: None }) })
    }

    /// Stores a new job that waits, unless its request id is known.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add(&self, tenant: &Arc<str>, order: Order, now: Time) -> Result<Added, AddError> {
        let mut state = self.lock();
        let database = self.healed(&mut state)?;
        if let Some(request_id) = &order.request_id
            && let Some(known) = job_of_request(database, tenant, request_id)?
        {
            let same = known.order.config_toml == order.config_toml && known.order.gallery == order.gallery;
            return if same { Ok(Added::Known(known)) } else { Err(AddError::OtherOrder(known.key.id)) };
        }
        let max = self.bounds.jobs_max;
        if count_jobs(database, tenant)? >= max {
            return Err(AddError::Full { max });
        }
        let id = JobId::new(next_id(database)?);
        let request_id = order.request_id.clone();
        let key = JobKey { tenant: Arc::clone(tenant), id };
        let edit = Edit::created(Job::new(key, order, now), now);
        self.strike(&mut state, Stroke::new(&edit, StrokeKind::Creates { request_id }))?;
        Ok(Added::New(edit.into_job()))
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
        let mut state = self.lock();
        let database = self.healed(&mut state)?;
        let bytes = job_bytes(database, key)?.ok_or(UpdateError::Unknown)?;
        let job = record::job_from_bytes(key, &bytes).map_err(StoreError::from)?;
        let mut edit = Edit::new(job.clone(), now);
        work(&mut edit).map_err(UpdateError::Refused)?;
        if *edit.job() != job {
            self.strike(&mut state, Stroke::new(&edit, StrokeKind::Updates))?;
        }
        Ok(edit.into_job())
    }

    /// Opens the store again if it has failed, and brings what was being written to its end.
    ///
    /// # Errors
    /// It still cannot be used.
    pub fn heal(&self) -> Result<(), StoreError> {
        self.healed(&mut self.lock()).map(drop)
    }

    /// # Errors
    /// See [`StoreError`].
    pub fn get(&self, key: &JobKey) -> Result<Option<Job>, StoreError> {
        let mut state = self.lock();
        let bytes = job_bytes(self.healed(&mut state)?, key)?;
        Ok(bytes.map(|bytes| record::job_from_bytes(key, &bytes)).transpose()?)
    }

    /// Jobs of a tenant, newest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn list(&self, tenant: &Arc<str>, listing: &Listing) -> Result<Page, StoreError> {
        let mut state = self.lock();
        let jobs = self.healed(&mut state)?.begin_read()?.open_table(JOBS)?;
        let end = listing.before.map_or(u64::MAX, JobId::number);
        let (mut page, mut bytes) = (Page::default(), 0);
        for entry in jobs.range((&**tenant, 0)..(&**tenant, end))?.rev() {
            let (id, value) = entry?;
            let key = JobKey { tenant: Arc::clone(tenant), id: JobId::new(id.value().1) };
            let job = record::job_from_bytes(&key, value.value())?;
            if !listing.states.is_empty() && !listing.states.contains(&job.state.name()) {
                continue;
            }
            bytes += value.value().len();
            if page.jobs.len() == listing.limit || (bytes > PAGE_BYTES && !page.jobs.is_empty()) {
                page.more = true;
                break;
            }
            page.jobs.push(job);
        }
        Ok(page)
    }

    /// Every job of every tenant, oldest first; for the start of a server.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn all(&self) -> Result<Vec<Job>, StoreError> {
        let mut state = self.lock();
        let table = self.healed(&mut state)?.begin_read()?.open_table(JOBS)?;
        let mut jobs = Vec::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            let (tenant, id) = key.value();
            let key = JobKey { tenant: tenant.into(), id: JobId::new(id) };
            jobs.push(record::job_from_bytes(&key, value.value())?);
        }
        jobs.sort_by_key(|job| job.key.id);
        Ok(jobs)
    }

    /// At most `limit` events, fewer where they are large, the first of which has the number `from`; `None` where
    /// there is no such job.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn events(&self, key: &JobKey, from: u64, limit: usize) -> Result<Option<Replay>, StoreError> {
        let mut state = self.lock();
        let database = self.healed(&mut state)?;
        let Some(bytes) = job_bytes(database, key)? else { return Ok(None) };
        let job = record::job_from_bytes(key, &bytes)?;
        let table = database.begin_read()?.open_table(EVENTS)?;
        let (tenant, id) = (&*key.tenant, key.id.number());
        let oldest = table.range((tenant, id, 0)..=(tenant, id, u64::MAX))?.next().transpose()?;
        let oldest = oldest.map_or(job.last_event + 1, |(key, _)| key.value().2);
        if from < oldest {
            return Ok(Some(Replay::Gone { oldest }));
        }
        if from > job.last_event + 1 {
            return Ok(Some(Replay::Future { next: job.last_event + 1 }));
        }
        let (mut events, mut bytes) = (Vec::new(), 0);
        for entry in table.range((tenant, id, from)..=(tenant, id, u64::MAX))?.take(limit) {
            let (number, value) = entry?;
            bytes += value.value().len();
            if bytes > REPLAY_BYTES && !events.is_empty() {
                break;
            }
            events.push(record::event_from_bytes(key, number.value().2, value.value())?);
        }
        let complete = job.state.is_ended() && from + events.len() as u64 == job.last_event + 1;
        Ok(Some(Replay::Events { events, complete }))
    }

    /// Removes a job with its events and its request id, if `check` finds nothing against it.
    ///
    /// # Errors
    /// There is no such job, or what `check` says. See [`StoreError`] for the rest.
    pub fn delete<E>(
        &self,
        key: &JobKey,
        check: impl FnOnce(&Job) -> Result<(), E>,
    ) -> Result<Job, UpdateError<E>> {
        let mut state = self.lock();
        let database = self.healed(&mut state)?;
        let bytes = job_bytes(database, key)?.ok_or(UpdateError::Unknown)?;
        let job = record::job_from_bytes(key, &bytes).map_err(StoreError::from)?;
        check(&job).map_err(UpdateError::Refused)?;
        if let Err(cause) = remove(database, &job) {
            state.database = None;
            return Err(UpdateError::Store(cause.into()));
        }
        Ok(job)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database, opened again if need be, with nothing half done.
    fn healed<'a>(&self, state: &'a mut State) -> Result<&'a Database, StoreError> {
        if state.database.is_none() {
            state.database = Some(open(&*self.volume)?);
        }
        if let Some(stroke) = &state.pending {
            let done = state.database.as_ref().map(|database| apply(database, stroke, self.bounds));
            if let Some(Err(cause)) = done {
                state.database = None;
                return Err(cause.into());
            }
            state.pending = None;
        }
        state.database.as_ref().ok_or_else(|| StoreError::Unavailable("it is closed".into()))
    }

    /// Writes a stroke, twice if need be; what cannot be written now is left pending.
    fn strike(&self, state: &mut State, stroke: Stroke) -> Result<(), StoreError> {
        state.pending = Some(stroke);
        match self.healed(state) {
            Ok(_) => Ok(()),
            Err(cause) => {
                tracing::warn!(%cause, "the job store is opened again");
                self.healed(state).map(drop).map_err(|cause| StoreError::Pending(cause.to_string()))
            }
        }
    }
}

impl fmt::Debug for JobStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobStore").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl Stroke {
    fn new(edit: &Edit, kind: StrokeKind) -> Self {
        let (job, happened, now) = edit.clone().into_parts();
        let first = job.last_event + 1 - happened.len() as u64;
        let bytes = |(attempt, what): &(u32, Happening)| record::event_to_bytes(*attempt, now, what);
        let events = (first..).zip(happened.iter().map(bytes)).collect();
        Self { job: record::job_to_bytes(&job), events, kind, key: job.key }
    }
}

fn open(volume: &dyn Volume) -> Result<Database, DatabaseError> {
    Database::open(volume, FILE, CACHE_BYTES)
}

fn job_bytes(database: &Database, key: &JobKey) -> Result<Option<Vec<u8>>, StoreError> {
    let table = database.begin_read()?.open_table(JOBS)?;
    let value = table.get((&*key.tenant, key.id.number()))?;
    Ok(value.map(|value| value.value().to_vec()))
}

fn job_of_request(database: &Database, tenant: &Arc<str>, request: &str) -> Result<Option<Job>, StoreError> {
    let table = database.begin_read()?.open_table(REQUESTS)?;
    let Some(id) = table.get((&**tenant, request))? else { return Ok(None) };
    let key = JobKey { tenant: Arc::clone(tenant), id: JobId::new(id.value()) };
    let bytes = job_bytes(database, &key)?;
    Ok(bytes.map(|bytes| record::job_from_bytes(&key, &bytes)).transpose()?)
}

fn count_jobs(database: &Database, tenant: &str) -> Result<usize, StoreError> {
    let table = database.begin_read()?.open_table(JOBS)?;
    Ok(table.range((tenant, 0)..=(tenant, u64::MAX))?.count())
}

fn next_id(database: &Database) -> Result<u64, StoreError> {
    Ok(database.begin_read()?.open_table(META)?.get("next_id")?.map_or(1, |next| next.value()))
}

fn apply(database: &Database, stroke: &Stroke, bounds: Bounds) -> Result<(), DatabaseError> {
    let write = database.begin_write()?;
    write_stroke(&write, stroke, bounds)?;
    database.commit(write)
}

fn write_stroke(write: &WriteTransaction, stroke: &Stroke, bounds: Bounds) -> Result<(), DatabaseError> {
    let (tenant, id) = (&*stroke.key.tenant, stroke.key.id.number());
    write.open_table(JOBS)?.insert((tenant, id), &*stroke.job)?;
    if let StrokeKind::Creates { request_id } = &stroke.kind {
        write.open_table(META)?.insert("next_id", id + 1)?;
        if let Some(request_id) = request_id {
            write.open_table(REQUESTS)?.insert((tenant, &**request_id), id)?;
        }
    }
    let mut events = write.open_table(EVENTS)?;
    for (number, bytes) in &stroke.events {
        events.insert((tenant, id, *number), &**bytes)?;
    }
    let last = stroke.events.last().map_or(0, |(number, _)| *number);
    let first_kept = (last + 1).saturating_sub(bounds.events_retained_max);
    let mut old = events.extract_from_if((tenant, id, 0)..(tenant, id, first_kept), |_, _| true)?;
    old.try_for_each(|removed| removed.map(drop))?;
    Ok(())
}

fn remove(database: &Database, job: &Job) -> Result<(), DatabaseError> {
    let (tenant, id) = (&*job.key.tenant, job.key.id.number());
    let write = database.begin_write()?;
    write.open_table(JOBS)?.remove((tenant, id))?;
    if let Some(request_id) = &job.order.request_id {
        write.open_table(REQUESTS)?.remove((tenant, &**request_id))?;
    }
    {
        let mut events = write.open_table(EVENTS)?;
        let mut all = events.extract_from_if((tenant, id, 0)..=(tenant, id, u64::MAX), |_, _| true)?;
        all.try_for_each(|removed| removed.map(drop))?;
    }
    database.commit(write)
}

impl From<DatabaseError> for StoreError {
    fn from(cause: DatabaseError) -> Self {
        match cause {
            DatabaseError::Damaged(cause) => Self::Damaged(cause),
            DatabaseError::Io(_) | DatabaseError::Sealed(_) | DatabaseError::Closed => {
                Self::Unavailable(cause.to_string())
            }
        }
    }
}

impl From<RecordError> for StoreError {
    fn from(cause: RecordError) -> Self {
        Self::Damaged(cause.to_string())
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(cause: $error) -> Self {
                DatabaseError::from(cause).into()
            }
        })*
    };
}
from_redb!(redb::StorageError, redb::TableError);

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;
