//! The right of a server to run a job, for as long as it renews it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::job::{Job, JobKey};
use crate::postgres::Fence;

/// A job that this server runs. What it writes says under which hold.
#[derive(Clone, Debug)]
pub struct Hold {
    pub key: JobKey,
    /// Which claim of the job this is. A later one ends this one.
    pub term: u64,
    /// Until when the job is held if the hold is not renewed; `None` where there are no other servers.
    pub until: Option<Instant>,
    writes: Arc<AtomicU64>,
}

/// One write under a hold, which may be tried again.
#[derive(Clone, Debug)]
pub struct Write {
    pub hold: Hold,
    /// Counts from 1 under each hold.
    pub number: u64,
}

/// A job that was started, and the right to run it.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub job: Job,
    pub hold: Hold,
}

impl Hold {
    pub fn new(key: JobKey, term: u64, until: Instant) -> Self {
        Self { key, term, until: Some(until), writes: Arc::default() }
    }

    /// Where there are no other servers.
    pub fn alone(key: JobKey) -> Self {
        Self { key, term: 0, until: None, writes: Arc::default() }
    }

    /// What proves to the database that the job is still held.
    pub fn fence(&self) -> Fence {
        Fence { job: self.key.id.number() as i64, term: self.term as i64 }
    }

    /// The next write. A job's writes come one after the other.
    pub fn write(&self) -> Write {
        Write { hold: self.clone(), number: self.writes.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}
