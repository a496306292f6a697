//! Rows of the tables of jobs.

use tokio_postgres::{Client, Row};

use crate::jobs::event::JobEvent;
use crate::jobs::job::{Job, JobId, JobKey};
use crate::jobs::record;
use crate::jobs::store::StoreError;
use crate::postgres::{check_usable, query};

/// The columns that [`job_of`] reads.
pub const JOB: &str = "id, tenant, record, term, written, (select usable_from from shipreid) as usable_from";

/// A job whose row is locked until the transaction ends.
pub struct Locked {
    pub job: Job,
    pub term: i64,
    /// The last write of the holder in this term.
    pub written: i64,
}

fn key_of(row: &Row) -> JobKey {
    JobKey { tenant: row.get::<_, &str>("tenant").into(), id: JobId::new(row.get::<_, i64>("id") as u64) }
}

/// # Errors
/// It is damaged, or a newer program changed the tables.
pub fn job_of(row: &Row) -> Result<Job, StoreError> {
    check_usable(row.get("usable_from"))?;
    let key = key_of(row);
    record::job_from_bytes(&key, row.get("record")).map_err(StoreError::of_job(key.id))
}

/// # Errors
/// It is not the one with this number, or damaged.
pub fn event_of(key: &JobKey, number: u64, row: &Row) -> Result<JobEvent, StoreError> {
    let damaged =
        |cause: String| StoreError::DamagedJob { id: key.id, cause: format!("event {number}: {cause}") };
    if row.get::<_, i64>("number") as u64 != number {
        return Err(damaged("it is not there".into()));
    }
    record::event_from_bytes(key, number, row.get("record")).map_err(|cause| damaged(cause.to_string()))
}

/// Locks a job; `None` if it does not exist.
///
/// # Errors
/// It is damaged, or the database cannot be reached.
pub async fn lock(transaction: &Client, key: &JobKey) -> Result<Option<Locked>, StoreError> {
    let sql = format!("select {JOB} from jobs where id = $1 and tenant = $2 for update");
    let rows = query!(transaction, &sql, key.id.number() as i64 => INT8, &*key.tenant => TEXT)?;
    rows.first().map(locked).transpose()
}

/// # Errors
/// It is damaged.
pub fn locked(row: &Row) -> Result<Locked, StoreError> {
    Ok(Locked { job: job_of(row)?, term: row.get("term"), written: row.get("written") })
}
