//! Who runs which job: claimed, renewed, and taken over once nobody renews. The database's clock decides.

use std::time::Instant;

use super::rows::{JOB, job_of, locked};
use super::{Holding, PostgresJobs};
use crate::gallery::Time;
use crate::jobs::edit::Edit;
use crate::jobs::hold::{Claimed, Hold};
use crate::jobs::job::{Job, JobId, JobKey};
use crate::jobs::state::{Change, Refused};
use crate::jobs::store::{Active, StoreError, UpdateError};
use crate::postgres::{Transaction, WRITING, query};

/// A job that may be started now.
const WAITS: &str = "state = 'queued' and (rests_until is null or rests_until <= clock_timestamp())";
/// A job whose server has stopped it, or says nothing any more.
const ABANDONED: &str = "(state = 'interrupted'
    or (state in ('running', 'cancelling') and held_until < clock_timestamp()))";
/// Jobs that are looked at together.
const JOBS_MAX: i64 = 200;

impl PostgresJobs {
    /// When a lease that is taken now is over here: counted from before the database does, and a little less, since a
    /// process takes a moment to die before others may have its job.
    fn over_at(&self) -> Instant {
        Instant::now() + self.lease() * 9 / 10
    }

    /// See [`JobStore::claim`](crate::jobs::store::JobStore::claim).
    pub async fn claim(&self, key: JobKey, now: Time) -> Result<Claimed, UpdateError<Refused>> {
        let jobs = self.clone();
        let until = self.over_at();
        self.database()
            .run(move |_| async move {
                let transaction = Transaction::begin(jobs.database(), WRITING).await?;
                // Another server that claims it now is not waited for.
                let sql = format!(
                    "select {JOB} from jobs where id = $1 and tenant = $2 and {WAITS} for update skip locked"
                );
                let id = key.id.number() as i64;
                let rows = query!(transaction, &sql, id => INT8, &*key.tenant => TEXT)?;
                let Some(found) = rows.first() else {
                    transaction.roll_back().await?;
                    return Err(UpdateError::Unknown);
                };
                let job = job_of(found)?;
                let mut edit = Edit::new(job.clone(), now);
                edit.change(Change::Start).map_err(UpdateError::Refused)?;
                jobs.save(&transaction, &job, &edit, Holding::Stays).await?;
                let sql =
                    "update jobs set holder = $2, held_until = clock_timestamp() + $3 * interval '1 second',
                    written = 0, term = term + 1 where id = $1 returning term";
                let (server, lease) = (&jobs.0.cluster.server, jobs.lease().as_secs_f64());
                let rows = query!(transaction, sql, id => INT8, server => TEXT, lease => FLOAT8)?;
                let term = rows[0].get::<_, i64>(0) as u64;
                transaction.commit().await?;
                Ok(Claimed { job: edit.into_job(), hold: Hold::new(key, term, until) })
            })
            .await
    }

    /// See [`JobStore::renew`](crate::jobs::store::JobStore::renew).
    pub async fn renew(&self, hold: Hold) -> Result<Option<Instant>, StoreError> {
        let until = self.over_at();
        let lease = self.lease().as_secs_f64();
        self.database()
            .run(move |connection| async move {
                let sql = "update jobs set held_until = clock_timestamp() + $3 * interval '1 second'
                    where id = $1 and term = $2 and holder is not null returning id";
                let (id, term) = (hold.key.id.number() as i64, hold.term as i64);
                let renewed = query!(connection, sql, id => INT8, term => INT8, lease => FLOAT8)?;
                Ok(renewed.first().map(|_| until))
            })
            .await
    }

    /// See [`JobStore::abandoned`](crate::jobs::store::JobStore::abandoned).
    pub async fn abandoned(&self) -> Result<Vec<Job>, StoreError> {
        self.database()
            .run(|connection| async move {
                let sql = format!("select {JOB} from jobs where {ABANDONED} order by id limit $1");
                Ok(readable(&query!(connection, &sql, JOBS_MAX => INT8)?))
            })
            .await
    }

    /// See [`JobStore::take_over`](crate::jobs::store::JobStore::take_over).
    pub async fn take_over(
        &self,
        key: JobKey,
        now: Time,
        work: impl FnOnce(&mut Edit) -> Result<(), Refused> + Send + 'static,
    ) -> Result<Job, UpdateError<Refused>> {
        let jobs = self.clone();
        self.database()
            .run(move |_| async move {
                let transaction = Transaction::begin(jobs.database(), WRITING).await?;
                let sql = format!(
                    "select {JOB} from jobs where id = $1 and tenant = $2 and {ABANDONED} for update skip locked"
                );
                let rows = query!(transaction, &sql, key.id.number() as i64 => INT8, &*key.tenant => TEXT)?;
                let Some(found) = rows.first() else {
                    transaction.roll_back().await?;
                    return Err(UpdateError::Unknown);
                };
                jobs.write(transaction, locked(found)?.job, now, Holding::Ends, work).await
            })
            .await
    }

    /// See [`JobStore::active`](crate::jobs::store::JobStore::active).
    pub async fn active(&self, after: Option<JobId>) -> Result<Active, StoreError> {
        let server = self.0.cluster.server.clone();
        let after = after.map_or(0, |id| id.number() as i64);
        self.database()
            .run(move |connection| async move {
                let sql = format!(
                    "select {JOB} from jobs where ({WAITS} and id > $3)
                        or (holder = $1 and state in ('running', 'cancelling'))
                    order by state = 'queued', id limit $2"
                );
                let rows = query!(connection, &sql, server => TEXT, JOBS_MAX => INT8, after => INT8)?;
                let is_full = rows.len() as i64 == JOBS_MAX;
                let last =
                    rows.last().filter(|_| is_full).map(|row| JobId::new(row.get::<_, i64>("id") as u64));
                Ok(Active { jobs: readable(&rows), last })
            })
            .await
    }
}

/// Those that can be read; a damaged one is reported to whoever asks for it.
fn readable(rows: &[tokio_postgres::Row]) -> Vec<Job> {
    rows.iter().filter_map(|row| job_of(row).ok()).collect()
}
