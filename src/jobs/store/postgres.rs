//! Jobs in the database that servers share: any server reads and changes them, one at a time runs each.
//!
//! A server claims a job for a time, by the database's clock, and renews that. Each claim and each taking over begins a
//! term, and whatever the holder writes (state, events, checkpoints, the model) is refused under an earlier one. So a server
//! that was stopped for longer than it had said can do no harm when it goes on.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use super::{
    AddError, Added, Bounds, Listing, PAGE_BYTES, Page, REPLAY_BYTES, Replay, StoreError, UpdateError,
};
use crate::gallery::Time;
use crate::jobs::edit::Edit;
use crate::jobs::hold::Write;
use crate::jobs::job::{Job, JobId, JobKey, JobSpec};
use crate::jobs::record;
use crate::jobs::retries::Pauses;
use crate::jobs::state::{JobState, StateName};
use crate::metrics;
use crate::postgres::{Cluster, Database, READING, Transaction, WRITING, execute, query};

use rows::{JOB, Locked, event_of, job_of, lock};

mod claims;
mod folders;
mod rows;
#[cfg(test)]
mod tests;

/// How servers share their jobs.
#[derive(Clone, Debug)]
pub struct PostgresSettings {
    pub cluster: Cluster,
    pub bounds: Bounds,
    /// How long a job is held without a renewal.
    pub lease: Duration,
    pub pauses: Pauses,
}

/// The jobs of a database. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct PostgresJobs(Arc<PostgresSettings>);

/// What a write does to the right to run a job.
#[derive(Clone, Copy, Debug)]
enum Holding {
    /// It stays for as long as the job has a process.
    Stays,
    /// The same after a write of the holder.
    Written(i64),
    /// It ends, whoever has it.
    Ends,
}

impl PostgresJobs {
    pub fn new(settings: PostgresSettings) -> Self {
        Self(Arc::new(settings))
    }

    /// How long a job is held without a renewal.
    pub fn lease(&self) -> Duration {
        self.0.lease
    }

    fn database(&self) -> &Database {
        &self.0.cluster.database
    }

    /// See [`JobStore::add`](super::JobStore::add).
    pub async fn add(&self, tenant: Arc<str>, order: JobSpec, now: Time) -> Result<Added, AddError> {
        let (jobs, database) = (self.clone(), self.database().clone());
        self.database()
            .run(move |_| async move {
                let transaction = Transaction::begin(&database, WRITING).await?;
                // Of one tenant, jobs are added one at a time: so their number and their request ids are exact.
                query!(transaction, "select pg_advisory_xact_lock(hashtextextended($1, 1))", &*tenant => TEXT)?;
                if let Some(known) = job_of_request(&transaction, &tenant, &order).await? {
                    transaction.roll_back().await?;
                    let same =
                        known.order.config_toml == order.config_toml && known.order.gallery == order.gallery;
                    return if same { Ok(Added::Known(known)) } else { Err(AddError::OtherOrder(known.key.id)) };
                }
                let counted = query!(transaction, "select count(*) from jobs where tenant = $1", &*tenant => TEXT)?;
                let max = jobs.0.bounds.jobs_max;
                if counted[0].get::<_, i64>(0) as usize >= max {
                    transaction.roll_back().await?;
                    return Err(AddError::Full { max });
                }
                let drawn = query!(transaction, "select nextval(pg_get_serial_sequence('jobs', 'id'))")?;
                let key = JobKey { tenant, id: JobId::new(drawn[0].get::<_, i64>(0) as u64) };
                let edit = Edit::created(Job::new(key, order, now), now);
                insert(&transaction, edit.job()).await?;
                insert_events(&transaction, &edit).await?;
                transaction.commit().await?;
                Ok(Added::New(edit.into_job()))
            })
            .await
    }

    /// See [`JobStore::update`](super::JobStore::update).
    pub async fn update<E: Send + 'static>(
        &self,
        key: JobKey,
        now: Time,
        work: impl FnOnce(&mut Edit) -> Result<(), E> + Send + 'static,
    ) -> Result<Job, UpdateError<E>> {
        let jobs = self.clone();
        self.database()
            .run(move |_| async move {
                let transaction = Transaction::begin(jobs.database(), WRITING).await?;
                let Some(locked) = lock(&transaction, &key).await? else {
                    transaction.roll_back().await?;
                    return Err(UpdateError::Unknown);
                };
                jobs.write(transaction, locked.job, now, Holding::Stays, work).await
            })
            .await
    }

    /// See [`JobStore::update_held`](super::JobStore::update_held).
    pub async fn update_held<E: Send + 'static>(
        &self,
        write: Write,
        now: Time,
        work: impl FnOnce(&mut Edit) -> Result<(), E> + Send + 'static,
    ) -> Result<Job, UpdateError<E>> {
        let jobs = self.clone();
        self.database()
            .run(move |_| async move {
                let transaction = Transaction::begin(jobs.database(), WRITING).await?;
                let key = &write.hold.key;
                let locked = lock(&transaction, key).await?;
                let number = write.number as i64;
                match locked.filter(|locked| locked.term == write.hold.term as i64) {
                    None => {
                        transaction.roll_back().await?;
                        metrics::job_write_refused();
                        tracing::warn!(job = %key.id, "another server has taken over this job, or it is deleted: nothing of it is written");
                        Err(UpdateError::Unknown)
                    }
                    // It had happened, and only the answer was lost.
                    Some(Locked { job, written, .. }) if written >= number => {
                        transaction.roll_back().await?;
                        Ok(job)
                    }
                    Some(Locked { job, .. }) => {
                        jobs.write(transaction, job, now, Holding::Written(number), work).await
                    }
                }
            })
            .await
    }

    /// Applies `work` to a locked job, and commits.
    async fn write<E>(
        &self,
        transaction: Transaction,
        job: Job,
        now: Time,
        holding: Holding,
        work: impl FnOnce(&mut Edit) -> Result<(), E>,
    ) -> Result<Job, UpdateError<E>> {
        let mut edit = Edit::new(job.clone(), now);
        if let Err(refused) = work(&mut edit) {
            transaction.roll_back().await?;
            return Err(UpdateError::Refused(refused));
        }
        if *edit.job() == job {
            transaction.roll_back().await?;
            return Ok(job);
        }
        self.save(&transaction, &job, &edit, holding).await?;
        transaction.commit().await?;
        Ok(edit.into_job())
    }

    /// Writes what an edit made of a job.
    async fn save(
        &self,
        transaction: &Client,
        before: &Job,
        edit: &Edit,
        holding: Holding,
    ) -> Result<(), StoreError> {
        let job = edit.job();
        let id = job.key.id.number() as i64;
        let (state, last_event, record) =
            (job.state.name().text(), job.last_event as i64, record::job_to_bytes(job));
        let is_held = matches!(job.state, JobState::Running | JobState::Cancelling);
        let waits_anew = job.state == JobState::Queued && before.state != JobState::Queued;
        let rest = self.0.pauses.after(job.fruitless).filter(|_| waits_anew).map(|pause| pause.as_secs_f64());
        let (written, ends) = match holding {
            Holding::Stays => (0, false),
            Holding::Written(number) => (number, false),
            Holding::Ends => (0, true),
        };
        let holds = is_held && !ends;
        let sql = "update jobs set state = $2, last_event = $3, record = $4,
            rests_until = clock_timestamp() + $5 * interval '1 second',
            holder = case when $6 then holder end, held_until = case when $6 then held_until end,
            written = greatest(written, $7), term = term + $8 where id = $1";
        execute!(transaction, sql, id => INT8, state => TEXT, last_event => INT8, record => BYTEA,
            rest => FLOAT8, holds => BOOL, written => INT8, i64::from(ends) => INT8)?;
        insert_events(transaction, edit).await?;
        let first_kept = (job.last_event + 1).saturating_sub(self.0.bounds.events_retained_max) as i64;
        let forget = "delete from job_events where job = $1 and number < $2";
        execute!(transaction, forget, id => INT8, first_kept => INT8)?;
        if matches!(job.state, JobState::Finished { .. }) {
            // Nothing resumes it any more.
            folders::remove_all(transaction, id).await?;
        }
        Ok(())
    }

    /// See [`JobStore::get`](super::JobStore::get).
    pub async fn get(&self, key: JobKey) -> Result<Option<Job>, StoreError> {
        self.database()
            .run(move |connection| async move {
                let sql = format!("select {JOB} from jobs where id = $1 and tenant = $2");
                let id = key.id.number() as i64;
                let rows = query!(connection, &sql, id => INT8, &*key.tenant => TEXT)?;
                rows.first().map(job_of).transpose()
            })
            .await
    }

    /// See [`JobStore::list`](super::JobStore::list).
    pub async fn list(&self, tenant: Arc<str>, listing: Listing) -> Result<Page, StoreError> {
        self.database()
            .run(move |connection| async move {
                let states: Vec<&str> = listing.states.iter().map(|state| state.text()).collect();
                let before = listing.before.map_or(i64::MAX, |id| id.number() as i64);
                let limit = i64::try_from(listing.limit).unwrap_or(i64::MAX).saturating_add(1);
                let sql = "select id, octet_length(record)::int8 from jobs where tenant = $1 and id < $2
                    and (cardinality($3) = 0 or state = any ($3)) order by id desc limit $4";
                let found = query!(connection, sql, &*tenant => TEXT, before => INT8, states => TEXT_ARRAY,
                    limit => INT8)?;
                let (mut ids, mut bytes) = (Vec::<i64>::new(), 0);
                for row in found.iter().take(listing.limit) {
                    bytes += row.get::<_, i64>(1) as usize;
                    if bytes > PAGE_BYTES && !ids.is_empty() {
                        break;
                    }
                    ids.push(row.get(0));
                }
                let more = ids.len() < found.len();
                let sql = format!("select {JOB} from jobs where id = any ($1) order by id desc");
                let mut page = Page { more, ..Page::default() };
                for row in &query!(connection, &sql, ids => INT8_ARRAY)? {
                    match job_of(row) {
                        Ok(job) => page.jobs.push(job),
                        Err(StoreError::DamagedJob { id, .. }) => page.damaged.push(id),
                        Err(other) => return Err(other),
                    }
                }
                Ok(page)
            })
            .await
    }

    /// See [`JobStore::events`](super::JobStore::events).
    pub async fn events(&self, key: JobKey, from: u64, limit: usize) -> Result<Option<Replay>, StoreError> {
        let database = self.database().clone();
        self.database()
            .run(move |_| async move {
                // The job and its events are of one state of the database.
                let transaction = Transaction::begin(&database, READING).await?;
                let replay = replay(&transaction, &key, from, limit).await?;
                transaction.roll_back().await?;
                Ok(replay)
            })
            .await
    }

    /// See [`JobStore::delete`](super::JobStore::delete).
    pub async fn delete<E: Send + 'static>(
        &self,
        key: JobKey,
        check: impl FnOnce(&Job) -> Result<(), E> + Send + 'static,
    ) -> Result<(), UpdateError<E>> {
        let database = self.database().clone();
        self.database()
            .run(move |_| async move {
                let transaction = Transaction::begin(&database, WRITING).await?;
                let refused = match lock(&transaction, &key).await {
                    Ok(Some(locked)) => check(&locked.job).err().map(UpdateError::Refused),
                    Ok(None) => Some(UpdateError::Unknown),
                    Err(StoreError::DamagedJob { .. }) => None,
                    Err(other) => return Err(other.into()),
                };
                if let Some(refused) = refused {
                    transaction.roll_back().await?;
                    return Err(refused);
                }
                let id = key.id.number() as i64;
                folders::remove_all(&transaction, id).await?;
                execute!(transaction, "delete from job_events where job = $1", id => INT8)?;
                execute!(transaction, "delete from jobs where id = $1", id => INT8)?;
                Ok(transaction.commit().await?)
            })
            .await
    }

    /// The last events of those of these jobs that exist.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn heads(&self, ids: Vec<JobId>) -> Result<Vec<(JobId, u64)>, StoreError> {
        let ids: Vec<i64> = ids.into_iter().map(|id| id.number() as i64).collect();
        self.database()
            .run(move |connection| async move {
                let sql = "select id, last_event from jobs where id = any ($1)";
                let rows = query!(connection, sql, ids => INT8_ARRAY)?;
                let head = |row: &tokio_postgres::Row| {
                    (JobId::new(row.get::<_, i64>(0) as u64), row.get::<_, i64>(1) as u64)
                };
                Ok(rows.iter().map(head).collect())
            })
            .await
    }

    /// The number of jobs in each state, without those that other servers run.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn census(&self) -> Result<Vec<(StateName, usize)>, StoreError> {
        let server = self.0.cluster.server.clone();
        self.database()
            .run(move |connection| async move {
                let sql = "select state, count(*) from jobs
                    where state not in ('running', 'cancelling') or holder = $1 group by state";
                let rows = query!(connection, sql, server => TEXT)?;
                let count = |state: StateName| {
                    let row = rows.iter().find(|row| row.get::<_, &str>(0) == state.text());
                    (state, row.map_or(0, |row| row.get::<_, i64>(1) as usize))
                };
                Ok(StateName::EVERY.into_iter().map(count).collect())
            })
            .await
    }
}

async fn job_of_request(
    transaction: &Client,
    tenant: &str,
    order: &JobSpec,
) -> Result<Option<Job>, StoreError> {
    let Some(request_id) = &order.request_id else { return Ok(None) };
    let sql = format!("select {JOB} from jobs where tenant = $1 and request_id = $2");
    let rows = query!(transaction, &sql, tenant => TEXT, request_id => TEXT)?;
    rows.first().map(job_of).transpose()
}

async fn insert(transaction: &Client, job: &Job) -> Result<(), StoreError> {
    let sql = "insert into jobs (id, tenant, request_id, state, created_at, last_event, record)
        values ($1, $2, $3, $4, timestamptz 'epoch' + $5 * interval '1 microsecond', $6, $7)";
    let (id, request_id, created_at) =
        (job.key.id.number() as i64, &job.order.request_id, job.created_at.nanos().div_euclid(1000));
    let (state, last_event, record) =
        (job.state.name().text(), job.last_event as i64, record::job_to_bytes(job));
    execute!(transaction, sql, id => INT8, &*job.key.tenant => TEXT, request_id => TEXT, state => TEXT,
        created_at => INT8, last_event => INT8, record => BYTEA)?;
    Ok(())
}

async fn insert_events(transaction: &Client, edit: &Edit) -> Result<(), StoreError> {
    let (job, happened, now) = edit.clone().into_parts();
    if happened.is_empty() {
        return Ok(());
    }
    let first = job.last_event + 1 - happened.len() as u64;
    let (numbers, records): (Vec<i64>, Vec<Vec<u8>>) = (first..)
        .zip(&happened)
        .map(|(number, payload)| (number as i64, record::event_to_bytes(&job.key, number, payload, now)))
        .unzip();
    let sql = "insert into job_events (job, number, record) select $1, n.number, n.record
        from unnest($2, $3) as n (number, record)";
    execute!(transaction, sql, job.key.id.number() as i64 => INT8, numbers => INT8_ARRAY, records => BYTEA_ARRAY)?;
    Ok(())
}

async fn replay(
    transaction: &Client,
    key: &JobKey,
    from: u64,
    limit: usize,
) -> Result<Option<Replay>, StoreError> {
    let (id, first, limit) = (key.id.number() as i64, from as i64, limit as i64);
    let sql = format!("select {JOB} from jobs where id = $1 and tenant = $2");
    let rows = query!(transaction, &sql, id => INT8, &*key.tenant => TEXT)?;
    let Some(job) = rows.first().map(job_of).transpose()? else { return Ok(None) };
    let next = job.last_event + 1;
    if from > next {
        return Ok(Some(Replay::Future { next }));
    }
    let oldest = query!(transaction, "select min(number) from job_events where job = $1", id => INT8)?;
    let oldest = oldest[0].get::<_, Option<i64>>(0).map_or(next, |number| number as u64);
    if from < oldest {
        return Ok(Some(Replay::Gone { oldest }));
    }
    let sql = "select number, record from (
            select number, record, sum(octet_length(record)) over (order by number) as bytes
            from job_events where job = $1 and number >= $2 order by number limit $3) as read
        where bytes <= $4 or number = $2 order by number";
    let rows =
        query!(transaction, sql, id => INT8, first => INT8, limit => INT8, REPLAY_BYTES as i64 => INT8)?;
    let mut events = Vec::with_capacity(rows.len());
    for (number, row) in (from..).zip(&rows) {
        match event_of(key, number, row) {
            Ok(event) => events.push(event),
            // The events before it can be returned.
            Err(_) if !events.is_empty() => break,
            Err(cause) => return Err(cause),
        }
    }
    let complete = job.state.is_ended() && from + events.len() as u64 == next;
    Ok(Some(Replay::Events { events, complete }))
}
