//! Opening the job store: migration, consistency checks and repairs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use redb::{ReadableTable, ReadableTableMetadata};

use super::tables::{
    CACHE_BYTES, COMPLEMENT, DELETED, EVENTS, FILE, JOBS, Keys, META, NEXT_ID, REQUESTS, RETAINED_MIN,
    SCHEMA_KEY, all, keys_of_events, number, put_number,
};
use super::{Bounds, SCHEMA, StoreError};
use crate::durable::{Database, DatabaseError, Volume};
use crate::jobs::job::{JobId, JobKey};
use crate::jobs::record;

pub fn create(volume: &dyn Volume) -> Result<(), DatabaseError> {
    let database = Database::create(volume, FILE, CACHE_BYTES)?;
    let write = database.begin_write()?;
    put_number(&write, SCHEMA_KEY, SCHEMA)?;
    write.open_table(JOBS)?;
    write.open_table(EVENTS)?;
    write.open_table(REQUESTS)?;
    write.open_table(DELETED)?;
    database.commit(write)?;
    database.close()
}

pub fn open(volume: &dyn Volume) -> Result<Database, DatabaseError> {
    Database::open(volume, FILE, CACHE_BYTES)
}

/// Migrates a store of an earlier release, checks that every key is found where it is stored, and repairs what can be
/// derived from the jobs.
pub fn check(database: &Database, bounds: Bounds) -> Result<(), StoreError> {
    match schema(database)? {
        found if found > SCHEMA => return Err(StoreError::Newer { found, known: SCHEMA }),
        SCHEMA => {}
        _ => seal(database)?,
    }
    refile_jobs(database)?;
    refile_requests(database)?;
    match restore_requests(database).and_then(|()| note_bound(database, bounds.events_retained_max)) {
        // A later open does it when there is space; everything can be read without it.
        Err(cause) if cause.is_full() => {
            tracing::warn!(%cause, "what is not in order in the job store stays so");
            Ok(())
        }
        done => done,
    }
}

/// Records the smallest bound, so that missing events can be distinguished from those that were removed.
fn note_bound(database: &Database, retained: u64) -> Result<(), StoreError> {
    let known = number(&database.begin_read()?, RETAINED_MIN)?;
    if known.is_some_and(|known| known <= retained) {
        return Ok(());
    }
    // If it is unknown, another release has removed events, or the number is damaged.
    let fewest = if known.is_some() || all(database)?.jobs.is_empty() { retained } else { 0 };
    let write = database.begin_write()?;
    put_number(&write, RETAINED_MIN, fewest)?;
    Ok(database.commit(write)?)
}

/// Stored twice since schema 2, so that one flipped byte cannot change the schema of a store.
fn schema(database: &Database) -> Result<u64, StoreError> {
    let meta = database.begin_read()?.open_table(META)?;
    let value = meta.get(SCHEMA_KEY)?.map_or(0, |found| found.value());
    let complement = meta.get(&*format!("{SCHEMA_KEY}{COMPLEMENT}"))?.map(|found| !found.value());
    Ok(match complement {
        Some(complement) if complement != value => SCHEMA,
        _ => value,
    })
}

/// Gives every record of schema 1 its checksum. Records that are already damaged get none.
fn seal(database: &Database) -> Result<(), StoreError> {
    let (mut jobs, mut events) = (Vec::new(), Vec::new());
    let read = database.begin_read()?;
    for entry in read.open_table(JOBS)?.iter()? {
        let (key, value) = entry?;
        let (tenant, id) = key.value();
        let key = JobKey { tenant: tenant.into(), id: JobId::new(id) };
        jobs.extend(record::sealed_job(&key, value.value()).map(|sealed| (key, sealed)));
    }
    for entry in read.open_table(EVENTS)?.iter()? {
        let (key, _) = entry?;
        let (tenant, id, number) = key.value();
        events.push((JobKey { tenant: tenant.into(), id: JobId::new(id) }, number));
    }
    let next = read.open_table(META)?.get(NEXT_ID)?.map(|next| next.value());
    drop(read);
    let write = database.begin_write()?;
    write_sealed(&write, &jobs, &events)?;
    put_number(&write, SCHEMA_KEY, SCHEMA)?;
    if let Some(next) = next {
        put_number(&write, NEXT_ID, next)?;
    }
    write.open_table(DELETED).map_err(DatabaseError::from)?;
    Ok(database.commit(write)?)
}

/// Keeps one event at a time in memory.
fn write_sealed(
    write: &redb::WriteTransaction,
    jobs: &[(JobKey, Vec<u8>)],
    events: &[(JobKey, u64)],
) -> Result<(), DatabaseError> {
    let mut table = write.open_table(JOBS)?;
    for (key, sealed) in jobs {
        table.insert((&*key.tenant, key.id.number()), &**sealed)?;
    }
    let mut table = write.open_table(EVENTS)?;
    for (key, number) in events {
        let place = (&*key.tenant, key.id.number(), *number);
        let sealed = table.get(place)?.and_then(|bytes| record::sealed_event(key, *number, bytes.value()));
        if let Some(sealed) = sealed {
            table.insert(place, &*sealed)?;
        }
    }
    Ok(())
}

/// Moves every record of a job to where its key is looked up. A misplaced key was itself changed, or a key on the path
/// to it was. A record whose checksum belongs to another key is moved back there if there are events of that key; the
/// rest keeps its key and counts as damaged.
fn refile_jobs(database: &Database) -> Result<(), StoreError> {
    let read = database.begin_read()?;
    let table = read.open_table(JOBS)?;
    let mut lost = keys_of_events(&read, None)?;
    lost.retain(|(tenant, id)| !table.get((&**tenant, *id)).is_ok_and(|found| found.is_some()));
    let (mut filed, mut in_order) = (BTreeMap::new(), true);
    for entry in table.iter()? {
        let (key, record) = entry?;
        let (tenant, id) = key.value();
        let found = JobKey { tenant: tenant.into(), id: JobId::new(id) };
        let key = owner(found.clone(), record.value(), &lost);
        in_order &= key == found && table.get((tenant, id))?.is_some();
        if filed.insert((key.tenant, key.id.number()), record.value().to_vec()).is_some() {
            return Err(contradiction());
        }
    }
    if in_order && table.len()? == filed.len() as u64 {
        return Ok(());
    }
    tracing::warn!("keys of jobs are damaged and are put right");
    drop((table, read));
    let write = database.begin_write()?;
    write.delete_table(JOBS)?;
    {
        let mut table = write.open_table(JOBS)?;
        for ((tenant, id), record) in &filed {
            table.insert((&**tenant, *id), &**record)?;
        }
    }
    Ok(database.commit(write)?)
}

/// The key under which a record was stored, where that can be determined.
fn owner(found: JobKey, record: &[u8], lost: &Keys) -> JobKey {
    let fits = |key: &JobKey| record::job_from_bytes(key, record).is_ok();
    if fits(&found) {
        return found;
    }
    let lost = lost.iter().map(|(tenant, id)| JobKey { tenant: Arc::clone(tenant), id: JobId::new(*id) });
    lost.into_iter().find(fits).unwrap_or(found)
}

/// Moves every request id to where it is looked up; its target is [checked](restore_requests) after that.
fn refile_requests(database: &Database) -> Result<(), StoreError> {
    let read = database.begin_read()?;
    let table = read.open_table(REQUESTS)?;
    let (mut filed, mut in_order) = (Vec::new(), true);
    for entry in table.iter()? {
        let (key, id) = entry?;
        in_order &= table.get(key.value())?.is_some();
        let (tenant, request) = key.value();
        filed.push((tenant.to_owned(), request.to_owned(), id.value()));
    }
    if in_order && table.len()? == filed.len() as u64 {
        return Ok(());
    }
    tracing::warn!("keys of request ids are damaged and are put right");
    drop((table, read));
    let write = database.begin_write()?;
    write.delete_table(REQUESTS)?;
    {
        let mut table = write.open_table(REQUESTS)?;
        for (tenant, request, id) in &filed {
            table.insert((&**tenant, &**request), *id)?;
        }
    }
    Ok(database.commit(write)?)
}

fn contradiction() -> StoreError {
    StoreError::Damaged("its keys contradict each other".into())
}

/// Makes a request id refer to the job that names it, and to no other.
fn restore_requests(database: &Database) -> Result<(), StoreError> {
    let known = all(database)?;
    // The request id of each job, if readable.
    let mut jobs: HashMap<(&str, u64), Option<&str>> = HashMap::new();
    jobs.extend(known.damaged.iter().map(|(key, _)| ((&*key.tenant, key.id.number()), None)));
    let (mut started, mut foreign) = (Vec::new(), Vec::new());
    let read = database.begin_read()?;
    let requests = read.open_table(REQUESTS)?;
    for job in &known.jobs {
        let (tenant, id) = (&*job.key.tenant, job.key.id.number());
        let request = job.order.request_id.as_deref();
        jobs.insert((tenant, id), Some(request.unwrap_or_default()));
        let Some(request) = request else { continue };
        if requests.get((tenant, request))?.map(|id| id.value()) != Some(id) {
            started.push((tenant, request, id));
        }
    }
    for entry in requests.iter()? {
        let (key, id) = entry?;
        let (tenant, request) = key.value();
        let may_be = match jobs.get(&(tenant, id.value())) {
            None => false,
            Some(None) => true,
            Some(Some(said)) => *said == request,
        };
        if !may_be {
            foreign.push((tenant.to_owned(), request.to_owned()));
        }
    }
    drop((requests, read));
    if started.is_empty() && foreign.is_empty() {
        return Ok(());
    }
    tracing::warn!(
        missing = started.len(),
        foreign = foreign.len(),
        "request ids of jobs are damaged and are put right"
    );
    let write = database.begin_write()?;
    {
        let mut table = write.open_table(REQUESTS).map_err(DatabaseError::from)?;
        for (tenant, request) in &foreign {
            table.remove((&**tenant, &**request))?;
        }
        for (tenant, request, id) in started {
            table.insert((tenant, request), id)?;
        }
    }
    Ok(database.commit(write)?)
}
