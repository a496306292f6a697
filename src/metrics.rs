//! Every metric: its name, labels and meaning, once.
//!
//! Durations are in seconds. No label ever carries the id of a ship, a chip, a job or a caller.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

const STARTED: &str = "grpc_server_started_total";
const HANDLED: &str = "grpc_server_handled_total";
const HANDLING: &str = "grpc_server_handling_seconds";
const CALLS: &str = "shipreid_calls_in_flight";
const CONNECTIONS: &str = "shipreid_connections";
const CONNECTIONS_ENDED: &str = "shipreid_connections_ended_total";
const RELOADS: &str = "shipreid_reloads_total";
const REFUSED: &str = "shipreid_refused_total";
const CHIPS: &str = "shipreid_chips_total";
const WARNINGS: &str = "shipreid_chip_warnings_total";
const DECODE: &str = "shipreid_decode_duration_seconds";
const QUEUE_DEPTH: &str = "shipreid_queue_depth_chips";
const ADMITTED: &str = "shipreid_admitted_chips";
const ADMITTED_BYTES: &str = "shipreid_admitted_bytes";
const QUEUE_WAIT: &str = "shipreid_queue_wait_duration_seconds";
const FORWARD: &str = "shipreid_forward_duration_seconds";
const BATCH: &str = "shipreid_batch_size_chips";
const DROPPED: &str = "shipreid_dropped_chips_total";
const LATE: &str = "shipreid_late_chips_total";
/// Read by `shipreid bench`.
pub const LATE_MAX: &str = "shipreid_late_seconds_max";
const OUT_OF_MEMORY: &str = "shipreid_out_of_memory_total";
const PANICS: &str = "shipreid_encoder_panics_total";
const SEARCH: &str = "shipreid_search_duration_seconds";
const ENROLLED: &str = "shipreid_enrolled_total";
const READY: &str = "shipreid_ready";
const MODEL: &str = "shipreid_model_info";
const ACTIVATIONS: &str = "shipreid_activations_total";
const ACTIVATION: &str = "shipreid_activation_seconds";
const FOLLOWING: &str = "shipreid_following_galleries";
const FOLLOWING_LEFT: &str = "shipreid_following_entries_left";
const STALLED: &str = "shipreid_stalled_galleries";
const REEMBEDDED: &str = "shipreid_reembedded_entries_total";
const MODELS_STORED: &str = "shipreid_models_stored";
const MODELS_STORED_BYTES: &str = "shipreid_models_stored_bytes";
const JOBS: &str = "shipreid_jobs";
const JOB_STEP: &str = "shipreid_job_step_duration_seconds";
const JOB_IMAGES: &str = "shipreid_job_images_per_second";
const JOB_LOSS: &str = "shipreid_job_loss";
const JOB_MAP: &str = "shipreid_job_map";

const CALL_SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const STAGE_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
const STEP_SECONDS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const BATCH_CHIPS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Starts recording; the handle renders what Prometheus scrapes.
///
/// # Errors
/// When a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(HANDLING.into()), &CALL_SECONDS)?
        .set_buckets_for_metric(Matcher::Full(JOB_STEP.into()), &STEP_SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), &STAGE_SECONDS)?
        .set_buckets_for_metric(Matcher::Full(BATCH.into()), &BATCH_CHIPS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    describe_counter!(STARTED, "Calls that arrived, by service and method.");
    describe_counter!(HANDLED, "Calls that ended, by service, method and gRPC code.");
    describe_histogram!(HANDLING, Unit::Seconds, "Time from a call's headers to its end.");
    describe_gauge!(CALLS, "Calls that hold a permit.");
    describe_gauge!(CONNECTIONS, "Open gRPC connections.");
    describe_counter!(CONNECTIONS_ENDED, "gRPC connections that the server ended in order, by reason.");
    describe_counter!(
        RELOADS,
        "Changed files that were read again, by subject and outcome (\"ok\", \"failed\")."
    );
    describe_counter!(REFUSED, "Connections, calls and chips refused at once, by reason.");
    describe_counter!(CHIPS, "Chips answered, by modality and outcome (\"ok\" or the error's reason).");
    describe_counter!(WARNINGS, "Doubts about embedded chips, by code.");
    describe_histogram!(DECODE, Unit::Seconds, "Decoding and resizing one chip.");
    describe_gauge!(QUEUE_DEPTH, "Chips that wait for a device.");
    describe_gauge!(ADMITTED, "Chips in the server, from admission to answer.");
    describe_gauge!(ADMITTED_BYTES, Unit::Bytes, "Bytes of the chips in the server.");
    describe_histogram!(QUEUE_WAIT, Unit::Seconds, "Time of one chip between queue and device.");
    describe_histogram!(FORWARD, Unit::Seconds, "One forward pass.");
    describe_histogram!(BATCH, "Chips in one forward pass.");
    describe_counter!(DROPPED, "Chips that left the queue without costing the device, by reason.");
    describe_counter!(LATE, "Chips whose forward pass ended after their deadline.");
    describe_gauge!(LATE_MAX, Unit::Seconds, "The furthest that a forward pass has ended past a deadline.");
    gauge!(LATE_MAX).set(0.0);
    describe_counter!(OUT_OF_MEMORY, "Forward passes that ran out of device memory.");
    describe_counter!(PANICS, "Forward passes that panicked.");
    describe_histogram!(
        SEARCH,
        Unit::Seconds,
        "Filtering, searching and ranking the queries of one Match call."
    );
    describe_counter!(ENROLLED, "Enrolments answered, by outcome (\"created\", ... or the error's reason).");
    describe_gauge!(READY, "1 while the server answers calls.");
    describe_gauge!(MODEL, "1 for each resident model, by digest, precision and device.");
    describe_counter!(ACTIVATIONS, "Activations of a model, by outcome (\"ok\" or the error's reason).");
    describe_gauge!(ACTIVATION, Unit::Seconds, "How long the last activation took.");
    describe_gauge!(FOLLOWING, "Galleries that are being embedded anew by the active model.");
    describe_gauge!(FOLLOWING_LEFT, "Entries that the gallery at work has yet to be embedded anew.");
    describe_gauge!(STALLED, "Galleries that should follow the active model but cannot.");
    describe_counter!(REEMBEDDED, "Entries that were embedded anew.");
    describe_gauge!(MODELS_STORED, "Models on disk.");
    describe_gauge!(MODELS_STORED_BYTES, Unit::Bytes, "Bytes of the models on disk.");
    describe_gauge!(JOBS, "Training jobs, by state.");
    describe_histogram!(JOB_STEP, Unit::Seconds, "One training step, by the slot that its job runs in.");
    describe_gauge!(
        JOB_IMAGES,
        "Images that a training job learns from in a second, by slot; 0 without a job."
    );
    describe_gauge!(JOB_LOSS, "Loss of a training job's last step, by slot; NaN without a job.");
    describe_gauge!(JOB_MAP, "mAP of a training job's last evaluation, by slot; NaN before the first.");
    metrics_process::Collector::default().describe();
}

/// Reads the process's own CPU time, memory and files, once a scrape.
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

pub fn reloaded(subject: &'static str, outcome: &'static str) {
    counter!(RELOADS, "subject" => subject, "outcome" => outcome).increment(1);
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

pub fn decoded(took: Duration) {
    histogram!(DECODE).record(took);
}

pub fn queue_depth(chips: usize) {
    gauge!(QUEUE_DEPTH).set(chips as f64);
}

pub fn admitted(chips: usize, bytes: usize) {
    gauge!(ADMITTED).set(chips as f64);
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
    histogram!(BATCH).record(size as f64);
    histogram!(FORWARD).record(forward);
    for wait in waits {
        histogram!(QUEUE_WAIT).record(*wait);
    }
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

pub fn searched(took: Duration) {
    histogram!(SEARCH).record(took);
}

/// `outcome` is one of a fixed set, never what a caller sent.
pub fn enrolled(outcome: &'static str) {
    counter!(ENROLLED, "outcome" => outcome).increment(1);
}

pub fn ready(is_ready: bool) {
    gauge!(READY).set(f64::from(u8::from(is_ready)));
}

/// A model is on the devices.
pub fn model_resident(digest: String, precision: &'static str, device: String) {
    gauge!(MODEL, "digest" => digest, "precision" => precision, "device" => device).set(1.0);
}

/// A model has left the devices.
pub fn model_gone(digest: String, precision: &'static str, device: String) {
    gauge!(MODEL, "digest" => digest, "precision" => precision, "device" => device).set(0.0);
}

pub fn models_stored(models: usize, bytes: u64) {
    gauge!(MODELS_STORED).set(models as f64);
    gauge!(MODELS_STORED_BYTES).set(bytes as f64);
}

pub fn activation(outcome: &'static str, took: Duration) {
    counter!(ACTIVATIONS, "outcome" => outcome).increment(1);
    gauge!(ACTIVATION).set(took);
}

pub fn following(galleries: usize) {
    gauge!(FOLLOWING).set(galleries as f64);
}

/// Of the gallery that is at work.
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

/// `slot` counts the places for jobs that run at the same time, from 0.
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
