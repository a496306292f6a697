//! Opening the job store: what it is, whether it agrees with itself, and what is put right.

use std::collections::HashMap;

use redb::{ReadableTable, ReadableTableMetadata};

use super::super::job::{JobId, JobKey};
use super::super::record;
use super::tables::{
    CACHE_BYTES, COMPLEMENT, DELETED, EVENTS, FILE, JOBS, META, NEXT_ID, REQUESTS, RETAINED_MIN, SCHEMA,
    SCHEMA_KEY, all, number, put_number,
};
use super::{Bounds, StoreError};
use crate::durable::{Database, DatabaseError, Volume};

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

/// Makes a store of an earlier release one of this, looks whether every key is found where it lies, and puts right what
/// the jobs themselves know.
pub fn check(database: &Database, bounds: Bounds) -> Result<(), StoreError> {
    match schema(database)? {
        found if found > SCHEMA => return Err(StoreError::Newer { found }),
        SCHEMA => {}
        _ => seal(database)?,
    }
    check_keys(database)?;
    restore_requests(database)?;
    note_bound(database, bounds.events_retained_max)
}

/// Remembers the narrowest bound, so that events that are not there can be told from those that were removed.
fn note_bound(database: &Database, retained: u64) -> Result<(), StoreError> {
    let known = number(&database.begin_read()?, RETAINED_MIN)?;
    if known.is_some_and(|known| known <= retained) {
        return Ok(());
    }
    // Where it is not known, another release has removed events, or the number is damaged.
    let fewest = if known.is_some() || all(database)?.jobs.is_empty() { retained } else { 0 };
    let write = database.begin_write()?;
    put_number(&write, RETAINED_MIN, fewest)?;
    Ok(database.commit(write)?)
}

/// Stored twice since schema 2, so that one flipped byte makes no store of another schema of it.
fn schema(database: &Database) -> Result<u64, StoreError> {
    let meta = database.begin_read()?.open_table(META)?;
    let value = meta.get(SCHEMA_KEY)?.map_or(0, |found| found.value());
    let complement = meta.get(&*format!("{SCHEMA_KEY}{COMPLEMENT}"))?.map(|found| !found.value());
    Ok(match complement {
        Some(complement) if complement != value => SCHEMA,
        _ => value,
    })
}

/// Gives every record of schema 1 its checksum. What is damaged already gets none.
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

/// One event at a time is in memory.
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

/// A key that lies where it is not looked for was changed, or one that leads to it was.
fn check_keys(database: &Database) -> Result<(), StoreError> {
    let read = database.begin_read()?;
    let jobs = read.open_table(JOBS)?;
    let mut count = 0;
    for entry in jobs.iter()? {
        let (key, _) = entry?;
        if jobs.get(key.value())?.is_none() {
            return Err(contradiction());
        }
        count += 1;
    }
    let requests = read.open_table(REQUESTS)?;
    for entry in requests.iter()? {
        if requests.get(entry?.0.value())?.is_none() {
            return Err(contradiction());
        }
    }
    if jobs.len()? == count { Ok(()) } else { Err(contradiction()) }
}

fn contradiction() -> StoreError {
    StoreError::Damaged("its keys contradict each other".into())
}

/// A request id leads to the job that says it was started by it, and to no other.
fn restore_requests(database: &Database) -> Result<(), StoreError> {
    let known = all(database)?;
    // What each job says, where it still says anything.
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
