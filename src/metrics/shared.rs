//! Records what galleries, jobs and models that several servers share do.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::table::*;

pub fn database_reached(is_reached: bool) {
    gauge!(DATABASE_REACHED).set(f64::from(u8::from(is_reached)));
}

/// By how much the own clock is ahead.
pub fn database_clock_skew(seconds: f64) {
    gauge!(DATABASE_SKEW).set(seconds);
}

pub fn database_pool(used: usize, idle: usize, waiting: usize) {
    gauge!(DATABASE_CONNECTIONS, "state" => "used").set(used as f64);
    gauge!(DATABASE_CONNECTIONS, "state" => "idle").set(idle as f64);
    gauge!(DATABASE_WAITING).set(waiting as f64);
}

/// `cause` is one of a fixed set.
pub fn database_failed(cause: &'static str) {
    counter!(DATABASE_FAILURES, "cause" => cause).increment(1);
}

pub fn gallery_locked(waited: Duration) {
    histogram!(LOCK_WAIT).record(waited);
}

/// Of the copy furthest behind.
pub fn copy_lag(commits: u64) {
    gauge!(COPY_LAG).set(commits as f64);
}

/// Of the oldest copy.
pub fn copy_age(age: Duration) {
    gauge!(COPY_AGE).set(age);
}

pub fn copy_loaded(reason: &'static str) {
    counter!(COPIES_LOADED, "reason" => reason).increment(1);
}

pub fn lease_lost() {
    counter!(LEASES_LOST).increment(1);
}

pub fn job_taken_over() {
    counter!(JOBS_TAKEN_OVER).increment(1);
}

pub fn job_write_refused() {
    counter!(JOB_WRITES_REFUSED).increment(1);
}

pub fn model_outdated(is_outdated: bool) {
    gauge!(MODEL_OUTDATED).set(f64::from(u8::from(is_outdated)));
}
