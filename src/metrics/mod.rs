//! Every metric, once: `table` describes it, the functions here record it.
//!
//! Durations are in seconds. No label ever carries the id of a ship, a chip, a job or a caller.

mod resident;
mod shared;
pub mod table;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use resident::{model_gone, model_resident};
pub use shared::{
    copy_age, copy_lag, copy_loaded, database_clock_skew, database_failed, database_pool, database_reached,
    gallery_locked, job_taken_over, job_write_refused, lease_lost, model_outdated,
};
pub use table::LATE_MAX;
use table::*;

/// Starts recording; the handle renders what Prometheus scrapes.
///
/// # Errors
/// A recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in table::all() {
        if let Kind::Histogram(bounds) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), bounds)?;
        }
    }
    let handle = builder.install_recorder()?;
    describe();
    begin();
    gauge!(LATE_MAX).set(0.0);
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// The page for Prometheus, in its text format.
pub fn page(exporter: &PrometheusHandle) -> String {
    let mut page = exporter.render();
    resident::write(&mut page);
    page
}

/// Initializes counters of unexpected events, since a rate misses the first value of a series.
fn begin() {
    for metric in table::all().filter(|metric| metric.kind == Kind::Counter && metric.labels.is_empty()) {
        counter!(metric.name).increment(0);
    }
    for subject in ["certificates", "keys"] {
        counter!(RELOADS, "subject" => subject, "outcome" => "failed").increment(0);
    }
    for port in ["grpc", "status"] {
        counter!(ACCEPT_PAUSES, "port" => port).increment(0);
    }
}

fn describe() {
    for Metric { name, kind, meaning, .. } in table::all() {
        match kind {
            Kind::Counter => describe_counter!(*name, *meaning),
            Kind::Gauge => describe_gauge!(*name, *meaning),
            Kind::Histogram(_) => describe_histogram!(*name, *meaning),
        }
    }
    metrics_process::Collector::default().describe();
}

/// A limit that the configuration sets.
pub fn limit(limit: &'static str, most: f64) {
    gauge!(LIMIT, "limit" => limit).set(most);
}

/// `lines` is the total so far.
pub fn log_lines_lost(lines: u64) {
    counter!(LOG_LINES_LOST).absolute(lines);
}

/// Reads the process's own CPU time, memory and files, once per scrape.
pub fn collect_process() {
    metrics_process::Collector::default().collect();
}

/// `service` and `method` must come from the served contract, so that callers cannot add label values.
pub fn call_started(service: &'static str, method: &'static str) {
    counter!(STARTED, "grpc_service" => service, "grpc_method" => method).increment(1);
}

pub fn call_handled(service: &'static str, method: &'static str, code: &'static str, took: Duration) {
    counter!(HANDLED, "grpc_service" => service, "grpc_method" => method, "grpc_code" => code).increment(1);
    histogram!(HANDLING, "grpc_service" => service, "grpc_method" => method).record(took);
}

pub fn calls_in_flight(calls: usize) {
    gauge!(CALLS).set(calls as f64);
}

pub fn connections(open: usize) {
    gauge!(CONNECTIONS).set(open as f64);
}

pub fn connection_ended(reason: &'static str) {
    counter!(CONNECTIONS_ENDED, "reason" => reason).increment(1);
}

pub fn accepting_paused(port: &'static str) {
    counter!(ACCEPT_PAUSES, "port" => port).increment(1);
}

/// `subject` is the kind of file, never its name.
pub fn reloaded(subject: &'static str, outcome: &'static str) {
    counter!(RELOADS, "subject" => subject, "outcome" => outcome).increment(1);
}

/// In seconds of Unix time.
pub fn certificate_ends(at: i64) {
    gauge!(CERTIFICATE_END).set(at as f64);
}

/// In seconds of Unix time.
pub fn revocations_end(at: i64) {
    gauge!(REVOCATIONS_END).set(at as f64);
}

pub fn receiving(bytes: usize) {
    gauge!(RECEIVING).set(bytes as f64);
}

pub fn refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

pub fn chip_answered(modality: &'static str, outcome: &'static str) {
    counter!(CHIPS, "modality" => modality, "outcome" => outcome).increment(1);
}

pub fn chip_warning(code: &'static str) {
    counter!(WARNINGS, "code" => code).increment(1);
}

pub fn decoding(chips: u64) {
    gauge!(DECODING).set(chips as f64);
}

pub fn decoded(took: Duration) {
    histogram!(DECODE).record(took);
}

pub fn queue_depth(chips: usize) {
    gauge!(QUEUE_DEPTH).set(chips as f64);
}

pub fn admitted(chips: u64) {
    gauge!(ADMITTED).set(chips as f64);
}

pub fn admitted_bytes(bytes: u64) {
    gauge!(ADMITTED_BYTES).set(bytes as f64);
}

/// `late` has an entry for each chip that ended past its deadline.
pub fn batch_done(size: usize, forward: Duration, waits: &[Duration], late: &[Duration]) {
    static LATEST_US: AtomicU64 = AtomicU64::new(0);
    if let Some(latest) = late.iter().max() {
        counter!(LATE).increment(late.len() as u64);
        let latest = u64::try_from(latest.as_micros()).unwrap_or(u64::MAX);
        let latest = LATEST_US.fetch_max(latest, Ordering::Relaxed).max(latest);
        gauge!(LATE_MAX).set(Duration::from_micros(latest).as_secs_f64());
    }
    forward_succeeded();
    histogram!(BATCH).record(size as f64);
    histogram!(FORWARD).record(forward);
    for wait in waits {
        histogram!(QUEUE_WAIT).record(*wait);
    }
}

fn forward_succeeded() {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    gauge!(LAST_FORWARD).set(since_1970.as_secs_f64());
}

/// Whether a canary has succeeded.
pub fn canary(thread: String, outcome: &'static str) {
    if outcome == "ok" {
        forward_succeeded();
    }
    counter!(CANARIES, "thread" => thread, "outcome" => outcome).increment(1);
}

pub fn device_thread(thread: String, is_failing: bool) {
    gauge!(DEVICE_THREAD_FAILING, "thread" => thread).set(f64::from(u8::from(is_failing)));
}

pub fn dropped(reason: &'static str) {
    counter!(DROPPED, "reason" => reason).increment(1);
}

pub fn out_of_memory() {
    counter!(OUT_OF_MEMORY).increment(1);
}

pub fn encoder_panicked() {
    counter!(PANICS).increment(1);
}

pub fn searching(threads: usize) {
    gauge!(SEARCHING).set(threads as f64);
}

pub fn search_waited(took: Duration) {
    histogram!(SEARCH_WAIT).record(took);
}

pub fn searched(ranking: &'static str, took: Duration) {
    histogram!(SEARCH, "ranking" => ranking).record(took);
}

pub fn search_stopped(reason: &'static str) {
    counter!(SEARCH_STOPPED, "reason" => reason).increment(1);
}

/// `outcome` is one of a fixed set, never what a caller sent.
pub fn enrolled(outcome: &'static str, took: Duration) {
    counter!(ENROLLED, "outcome" => outcome).increment(1);
    histogram!(ENROLL).record(took);
}

pub fn committed(operations: usize, took: Duration) {
    histogram!(COMMIT).record(took);
    histogram!(COMMIT_SIZE).record(operations as f64);
}

/// The number of galleries in a state.
pub fn galleries(state: &'static str, galleries: usize) {
    gauge!(GALLERIES, "state" => state).set(galleries as f64);
}

/// Of all galleries together.
pub fn gallery_content(entries: u64, bytes: u64) {
    gauge!(ENTRIES).set(entries as f64);
    gauge!(GALLERY_BYTES).set(bytes as f64);
}

pub fn uploads(uploads: u64) {
    gauge!(UPLOADS).set(uploads as f64);
}

pub fn upload_bytes(bytes: u64) {
    gauge!(UPLOAD_BYTES).set(bytes as f64);
}

pub fn upload_ended(outcome: &'static str) {
    counter!(UPLOADS_ENDED, "outcome" => outcome).increment(1);
}

pub fn ready(is_ready: bool) {
    gauge!(READY).set(f64::from(u8::from(is_ready)));
}

/// Whether the server is in a state.
pub fn health(state: &'static str, is_in_it: bool) {
    gauge!(HEALTH, "state" => state).set(f64::from(u8::from(is_in_it)));
}

/// Whether a kernel computes the linear layers of batches of up to this many chips.
pub fn linear_kernel(
    kernel: &'static str,
    precision: &'static str,
    isa: &'static str,
    batch: usize,
    computes: bool,
) {
    let labels = [
        ("kernel", kernel.to_owned()),
        ("precision", precision.to_owned()),
        ("isa", isa.to_owned()),
        ("batch", batch.to_string()),
    ];
    gauge!(LINEAR, &labels).set(f64::from(u8::from(computes)));
}

/// The time that a kernel took for the layers that determine the choice.
pub fn linear_timing(kernel: &'static str, precision: &'static str, batch: usize, took: Duration) {
    gauge!(LINEAR_TIME, "kernel" => kernel, "precision" => precision, "batch" => batch.to_string()).set(took);
}

pub fn models_stored(models: usize, bytes: u64) {
    gauge!(MODELS_STORED).set(models as f64);
    gauge!(MODELS_STORED_BYTES).set(bytes as f64);
}

pub fn activation(outcome: &'static str, took: Duration) {
    counter!(ACTIVATIONS, "outcome" => outcome).increment(1);
    // The duration of a failure says nothing about the model that serves.
    if outcome == "ok" {
        gauge!(ACTIVATION).set(took);
    }
}

pub fn following(galleries: usize) {
    gauge!(FOLLOWING).set(galleries as f64);
}

/// Of all galleries that are being moved.
pub fn following_left(entries: u64) {
    gauge!(FOLLOWING_LEFT).set(entries as f64);
}

pub fn stalled_galleries(galleries: usize) {
    gauge!(STALLED).set(galleries as f64);
}

pub fn reembedded(entries: u64) {
    counter!(REEMBEDDED).increment(entries);
}

pub fn jobs(state: &'static str, jobs: usize) {
    gauge!(JOBS, "state" => state).set(jobs as f64);
}

/// `slot` counts the slots for jobs that run at the same time, from 0.
pub fn job_step(slot: usize, seconds: f64, images_per_second: f64, loss: f64) {
    histogram!(JOB_STEP, "slot" => slot.to_string()).record(seconds);
    gauge!(JOB_IMAGES, "slot" => slot.to_string()).set(images_per_second);
    gauge!(JOB_LOSS, "slot" => slot.to_string()).set(loss);
}

pub fn job_map(slot: usize, map: f64) {
    gauge!(JOB_MAP, "slot" => slot.to_string()).set(map);
}

pub fn job_slot_free(slot: usize) {
    gauge!(JOB_IMAGES, "slot" => slot.to_string()).set(0.0);
    gauge!(JOB_LOSS, "slot" => slot.to_string()).set(f64::NAN);
    gauge!(JOB_MAP, "slot" => slot.to_string()).set(f64::NAN);
}
