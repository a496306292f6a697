//! The tables of the job store, and functions to read and write them.

use std::sync::Arc;

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};

use super::{All, Bounds, Listing, Page, RedoKind, RedoRecord, Replay, StoreError};
use crate::durable::{Database, DatabaseError};
use crate::jobs::job::{Job, JobId, JobKey};
use crate::jobs::record;
use crate::jobs::store::{PAGE_BYTES, REPLAY_BYTES};

/// Name of the database's file.
pub const FILE: &str = "jobs.redb";
pub const CACHE_BYTES: usize = 8 << 20;

/// [`SCHEMA_KEY`] and [`NEXT_ID`]; since schema 2, the complement of each under its name with [`COMPLEMENT`].
pub const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// By tenant and job.
pub const JOBS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("jobs");
/// By tenant, job and number.
pub const EVENTS: TableDefinition<(&str, u64, u64), &[u8]> = TableDefinition::new("events");
/// By tenant and request id: the job that it started. The jobs contain this as well.
pub const REQUESTS: TableDefinition<(&str, &str), u64> = TableDefinition::new("requests");
/// By job: a checksum. Jobs that were deleted and whose folders may still exist.
pub const DELETED: TableDefinition<u64, &[u8]> = TableDefinition::new("deleted");

pub const SCHEMA_KEY: &str = "schema";
pub const NEXT_ID: &str = "next_id";
/// The smallest bound on a job's events that this store was ever opened with; 0 if an earlier release did so.
pub const RETAINED_MIN: &str = "events_retained_min";
pub const COMPLEMENT: &str = " complement";

/// Jobs that have an event or a record, whether or not it is readable.
pub type Keys = Vec<(Arc<str>, u64)>;

/// A number that is stored twice; `None` if it was never stored, or if the two copies disagree.
pub fn number(read: &ReadTransaction, name: &str) -> Result<Option<u64>, StoreError> {
    let meta = read.open_table(META)?;
    let value = meta.get(name)?.map(|value| value.value());
    let complement = meta.get(&*format!("{name}{COMPLEMENT}"))?.map(|value| !value.value());
    Ok(value.filter(|value| complement == Some(*value)))
}

/// Stores a number twice.
pub fn put_number(write: &WriteTransaction, name: &str, value: u64) -> Result<(), DatabaseError> {
    let mut meta = write.open_table(META)?;
    meta.insert(name, value)?;
    meta.insert(&*format!("{name}{COMPLEMENT}"), !value)?;
    Ok(())
}

/// The job of this key. A job that only has events is damaged, not unknown.
pub fn job(database: &Database, key: &JobKey) -> Result<Option<Job>, StoreError> {
    let read = database.begin_read()?;
    let (tenant, id) = (&*key.tenant, key.id.number());
    if let Some(value) = read.open_table(JOBS)?.get((tenant, id))? {
        return Ok(Some(record::job_from_bytes(key, value.value()).map_err(StoreError::of_job(key.id))?));
    }
    match read.open_table(EVENTS)?.range((tenant, id, 0)..=(tenant, id, u64::MAX))?.next().transpose()? {
        None => Ok(None),
        Some(_) => Err(lost(key.id)),
    }
}

/// The stored record of a job, readable or not.
pub fn record_of(database: &Database, key: &JobKey) -> Result<Option<Vec<u8>>, StoreError> {
    let table = database.begin_read()?.open_table(JOBS)?;
    Ok(table.get((&*key.tenant, key.id.number()))?.map(|record| record.value().to_vec()))
}

fn lost(id: JobId) -> StoreError {
    StoreError::DamagedJob { id, cause: "its record is not there".into() }
}

/// The job that a request id has started. The table only indicates where to look first.
pub fn job_of_request(
    database: &Database,
    tenant: &Arc<str>,
    request: &str,
) -> Result<Option<Job>, StoreError> {
    let table = database.begin_read()?.open_table(REQUESTS)?;
    let Some(id) = table.get((&**tenant, request))?.map(|id| id.value()) else { return Ok(None) };
    let key = JobKey { tenant: Arc::clone(tenant), id: JobId::new(id) };
    let is_its = |job: &Job| job.order.request_id.as_deref() == Some(request);
    match job(database, &key)? {
        Some(job) if is_its(&job) => Ok(Some(job)),
        _ => Ok(all(database)?.jobs.into_iter().find(|job| job.key.tenant == *tenant && is_its(job))),
    }
}

pub fn count_jobs(database: &Database, tenant: &str) -> Result<usize, StoreError> {
    let table = database.begin_read()?.open_table(JOBS)?;
    Ok(table.range((tenant, 0)..=(tenant, u64::MAX))?.count())
}

/// The number of the next job: higher than that of every job of which anything is left, damaged or not.
pub fn next_id(database: &Database) -> Result<u64, StoreError> {
    let read = database.begin_read()?;
    if let Some(next) = number(&read, NEXT_ID)? {
        return Ok(next);
    }
    let mut last = 0;
    for (_, id) in keys_of_jobs(&read)?.into_iter().chain(keys_of_events(&read, None)?) {
        last = last.max(id);
    }
    for entry in read.open_table(DELETED)?.iter()? {
        last = last.max(entry?.0.value());
    }
    Ok(last.saturating_add(1))
}

pub fn list(database: &Database, tenant: &Arc<str>, listing: &Listing) -> Result<Page, StoreError> {
    let read = database.begin_read()?;
    let jobs = read.open_table(JOBS)?;
    let end = listing.before.map_or(u64::MAX, JobId::number);
    let (mut page, mut bytes) = (Page::default(), 0);
    let mut known = Vec::new();
    for entry in jobs.range((&**tenant, 0)..(&**tenant, end))?.rev() {
        let (id, value) = entry?;
        let key = JobKey { tenant: Arc::clone(tenant), id: JobId::new(id.value().1) };
        known.push(key.id.number());
        let Ok(job) = record::job_from_bytes(&key, value.value()) else {
            page.damaged.push(key.id);
            continue;
        };
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
    let first = if page.more { page.jobs.last().map_or(0, |job| job.key.id.number()) } else { 0 };
    let lost = keys_of_events(&read, Some(tenant))?.into_iter().map(|(_, id)| id);
    let lost = lost.filter(|id| (first..end).contains(id) && !known.contains(id));
    page.damaged.extend(lost.map(JobId::new));
    page.damaged.retain(|id| id.number() >= first);
    page.damaged.sort_unstable_by(|a, b| b.cmp(a));
    Ok(page)
}

pub fn all(database: &Database) -> Result<All, StoreError> {
    let read = database.begin_read()?;
    let table = read.open_table(JOBS)?;
    let (mut all, mut known) = (All::default(), Keys::new());
    for entry in table.iter()? {
        let (key, value) = entry?;
        let (tenant, id) = key.value();
        let key = JobKey { tenant: tenant.into(), id: JobId::new(id) };
        known.push((Arc::clone(&key.tenant), id));
        match record::job_from_bytes(&key, value.value()) {
            Ok(job) => all.jobs.push(job),
            Err(cause) => all.damaged.push((key, cause.to_string())),
        }
    }
    for (tenant, id) in keys_of_events(&read, None)? {
        if known.binary_search(&(Arc::clone(&tenant), id)).is_err() {
            all.damaged.push((JobKey { tenant, id: JobId::new(id) }, "its record is not there".into()));
        }
    }
    all.jobs.sort_by_key(|job| job.key.id);
    Ok(all)
}

/// Events of a job, without gaps.
pub fn events(database: &Database, job: &Job, from: u64, limit: usize) -> Result<Replay, StoreError> {
    let damaged = |number: u64, cause: &str| StoreError::DamagedJob {
        id: job.key.id,
        cause: format!("event {number}: {cause}"),
    };
    let read = database.begin_read()?;
    let table = read.open_table(EVENTS)?;
    let (tenant, id) = (&*job.key.tenant, job.key.id.number());
    let oldest = table.range((tenant, id, 0)..=(tenant, id, u64::MAX))?.next().transpose()?;
    let oldest = oldest.map_or(job.last_event + 1, |(key, _)| key.value().2);
    if from < oldest {
        // Events that no bound has ever removed must exist.
        let retained = number(&read, RETAINED_MIN)?.filter(|retained| *retained > 0);
        let first = retained.map_or(oldest, |retained| (job.last_event + 1).saturating_sub(retained).max(1));
        return if first < oldest {
            Err(damaged(first.max(from), "it is not there"))
        } else {
            Ok(Replay::Gone { oldest })
        };
    }
    if from > job.last_event + 1 {
        return Ok(Replay::Future { next: job.last_event + 1 });
    }
    let (mut events, mut bytes) = (Vec::new(), 0);
    for (expected, entry) in
        (from..).zip(table.range((tenant, id, from)..=(tenant, id, u64::MAX))?.take(limit))
    {
        let (number, value) = entry?;
        let number = number.value().2;
        bytes += value.value().len();
        if bytes > REPLAY_BYTES && !events.is_empty() {
            break;
        }
        let event = if number == expected && number <= job.last_event {
            record::event_from_bytes(&job.key, number, value.value()).map_err(|cause| cause.to_string())
        } else {
            Err("it is not there".to_owned())
        };
        match event {
            Ok(event) => events.push(event),
            // The events before it can be returned.
            Err(_) if !events.is_empty() => break,
            Err(cause) => return Err(damaged(expected, &cause)),
        }
    }
    if events.is_empty() && from <= job.last_event && limit > 0 {
        return Err(damaged(from, "it is not there"));
    }
    let complete = job.state.is_ended() && from + events.len() as u64 == job.last_event + 1;
    Ok(Replay::Events { events, complete })
}

pub fn apply(database: &Database, redo: &RedoRecord, bounds: Bounds) -> Result<(), DatabaseError> {
    let write = database.begin_write()?;
    write_redo(&write, redo, bounds)?;
    database.commit(write)
}

fn write_redo(write: &WriteTransaction, redo: &RedoRecord, bounds: Bounds) -> Result<(), DatabaseError> {
    let (tenant, id) = (&*redo.key.tenant, redo.key.id.number());
    write.open_table(JOBS)?.insert((tenant, id), &*redo.job)?;
    if let RedoKind::Creates { request_id } = &redo.kind {
        put_number(write, NEXT_ID, id + 1)?;
        if let Some(request_id) = request_id {
            write.open_table(REQUESTS)?.insert((tenant, &**request_id), id)?;
        }
    }
    let mut events = write.open_table(EVENTS)?;
    for (number, bytes) in &redo.events {
        events.insert((tenant, id, *number), &**bytes)?;
    }
    let last = redo.events.last().map_or(0, |(number, _)| *number);
    let first_kept = (last + 1).saturating_sub(bounds.events_retained_max);
    let mut old = events.extract_from_if((tenant, id, 0)..(tenant, id, first_kept), |_, _| true)?;
    old.try_for_each(|removed| removed.map(drop))?;
    Ok(())
}

/// Removes everything of a job, and remembers that it was deleted.
pub fn remove(database: &Database, key: &JobKey) -> Result<(), DatabaseError> {
    let (tenant, id) = (&*key.tenant, key.id.number());
    let write = database.begin_write()?;
    write.open_table(JOBS)?.remove((tenant, id))?;
    {
        // A damaged job does not reveal which request started it.
        let mut requests = write.open_table(REQUESTS)?;
        let mut of_job = requests.extract_if(|(of, _), started| of == tenant && started == id)?;
        of_job.try_for_each(|removed| removed.map(drop))?;
    }
    {
        let mut events = write.open_table(EVENTS)?;
        let mut all = events.extract_from_if((tenant, id, 0)..=(tenant, id, u64::MAX), |_, _| true)?;
        all.try_for_each(|removed| removed.map(drop))?;
    }
    write.open_table(DELETED)?.insert(id, &record::deletion_to_bytes(key.id)[..])?;
    database.commit(write)
}

pub fn deleted(database: &Database) -> Result<Vec<JobId>, StoreError> {
    let read = database.begin_read()?;
    let table = read.open_table(DELETED)?;
    if table.is_empty()? {
        return Ok(Vec::new());
    }
    let kept = keys_of_jobs(&read)?.into_iter().chain(keys_of_events(&read, None)?);
    let kept: Vec<u64> = kept.map(|(_, id)| id).collect();
    let mut deleted = Vec::new();
    for entry in table.iter()? {
        let (id, checksum) = entry?;
        let id = JobId::new(id.value());
        if checksum.value() == record::deletion_to_bytes(id) && !kept.contains(&id.number()) {
            deleted.push(id);
        }
    }
    Ok(deleted)
}

pub fn forget(database: &Database, id: JobId) -> Result<(), DatabaseError> {
    let write = database.begin_write()?;
    write.open_table(DELETED)?.remove(id.number())?;
    database.commit(write)
}

fn keys_of_jobs(read: &ReadTransaction) -> Result<Keys, StoreError> {
    let mut keys = Keys::new();
    for entry in read.open_table(JOBS)?.iter()? {
        let (key, _) = entry?;
        let (tenant, id) = key.value();
        keys.push((tenant.into(), id));
    }
    Ok(keys)
}

/// Jobs that have events, of every tenant or of one, found by seeking from one to the next.
pub fn keys_of_events(read: &ReadTransaction, tenant: Option<&Arc<str>>) -> Result<Keys, StoreError> {
    let table = read.open_table(EVENTS)?;
    let mut keys = Keys::new();
    let mut from: (Arc<str>, u64) = (tenant.cloned().unwrap_or_else(|| "".into()), 0);
    loop {
        let next = table.range((&*from.0, from.1, 0)..)?.next().transpose()?;
        let Some((key, _)) = next else { return Ok(keys) };
        let (found, id, _) = key.value();
        if tenant.is_some_and(|tenant| **tenant != *found) {
            return Ok(keys);
        }
        keys.push((found.into(), id));
        let Some(after) = id.checked_add(1) else { return Ok(keys) };
        from = (found.into(), after);
    }
}
