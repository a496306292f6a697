//! Training jobs: orders, pages, jobs and their events.

use std::time::Duration;

use super::super::page::{after, page_size};
use super::super::problem::Problem;
use super::sighting::timestamp;
use super::{bounded_text, duration};
use crate::gallery::GalleryName;
use crate::jobs::{
    DeliveredCheckpoint, EventPayload, Job, JobEvent, JobFailure, JobId, JobKey, JobSpec, JobState, Listing,
    Progress, Rankings, RunEvent, SavedCheckpoint, Start, StateName, TensorShape, UntakenTensor,
};
use crate::reason::Reason;
use crate::wire;
use crate::wire::train_event::Event;

/// Bytes of a configuration; the authors' own have about 1,500.
const CONFIG_BYTES_MAX: usize = 64 << 10;
const REQUEST_ID_BYTES_MAX: usize = 128;

/// A caller's order, whose configuration is still unparsed text.
pub fn order(request: wire::TrainRequest) -> Result<JobSpec, Problem> {
    let wire::TrainRequest { config_toml, request_id, display_name, gallery, .. } = request;
    bounded_bytes("config_toml", config_toml.len(), CONFIG_BYTES_MAX)?;
    bounded_bytes("request_id", request_id.len(), REQUEST_ID_BYTES_MAX)?;
    bounded_text("request_id", &request_id)?;
    bounded_text("display_name", &display_name)?;
    let request_id = Some(request_id).filter(|id| !id.is_empty());
    let gallery =
        Some(gallery).filter(|name| !name.is_empty()).map(|name| GalleryName::new(&name)).transpose();
    let gallery = gallery.map_err(|cause| {
        Problem::invalid(Reason::GalleryNameInvalid, "gallery", format!("the gallery name {cause}"))
    })?;
    Ok(JobSpec { config_toml, gallery, display_name, request_id })
}

pub fn job_id(text: &str) -> Result<JobId, Problem> {
    text.parse()
        .map_err(|cause| Problem::invalid(Reason::JobIdMalformed, "job_id", format!("job_id: {cause}")))
}

/// The jobs that a caller asks to list.
pub fn listing(request: &wire::ListTrainingJobsRequest) -> Result<Listing, Problem> {
    let states = request.states.iter().map(|number| state_name(*number)).collect::<Result<_, _>>()?;
    Ok(Listing { states, before: after(&request.page_token)?, limit: page_size(request.page_size)? })
}

/// An event as every watcher of its job sees it.
pub fn job_event(key: &JobKey, event: JobEvent) -> wire::TrainEvent {
    let payload = match event.payload {
        EventPayload::State(job) => Event::Job(self::job(*job)),
        EventPayload::Run(event) => run_event(event),
    };
    wire::TrainEvent {
        job_id: key.id.to_string(),
        number: event.number,
        attempt: event.attempt,
        occurred_at: Some(timestamp(event.occurred_at)),
        event: Some(payload),
    }
}

fn run_event(event: RunEvent) -> Event {
    match event {
        RunEvent::Started(start) => Event::StartingPoint(starting_point(start)),
        RunEvent::Delivered(delivered) => Event::DeliveredCheckpoint(delivered_checkpoint(delivered)),
        RunEvent::Progress(progress) => Event::Progress(self::progress(progress)),
        RunEvent::Evaluated(evaluation) => Event::Evaluation(super::evaluation(evaluation)),
        RunEvent::Rankings(Rankings { epoch, png }) => {
            Event::Rankings(wire::SampleRankings { epoch, png: png.into() })
        }
        RunEvent::Saved(SavedCheckpoint { step, best }) => {
            Event::Checkpoint(wire::CheckpointSaved { step, best })
        }
        RunEvent::Log(line) => Event::LogLine(line),
    }
}

pub fn job(job: Job) -> wire::TrainingJob {
    let state = wire_state(job.state.name());
    let (failure, model) = match job.state {
        JobState::Failed(failure) => (Some(failure), String::new()),
        JobState::Finished { model } => (None, model.to_string()),
        JobState::Queued
        | JobState::Running
        | JobState::Cancelling
        | JobState::Cancelled
        | JobState::Interrupted => (None, String::new()),
    };
    let (failure_reason, failure_message) = match failure {
        Some(JobFailure { reason, message }) => (reason.name().to_owned(), message),
        None => Default::default(),
    };
    wire::TrainingJob {
        job_id: job.key.id.to_string(),
        display_name: job.order.display_name,
        state: state.into(),
        failure_reason,
        failure_message,
        config_toml: job.order.config_toml,
        attempt: job.attempt,
        created_at: Some(timestamp(job.created_at)),
        started_at: job.started_at.map(timestamp),
        ended_at: job.ended_at.map(timestamp),
        progress: job.progress.map(progress),
        model,
        evaluations: job.evaluations.into_iter().map(super::evaluation).collect(),
        last_event: job.last_event,
        starting_point: job.start.map(starting_point),
        delivered_checkpoint: job.delivered.map(delivered_checkpoint),
    }
}

fn progress(progress: Progress) -> wire::TrainProgress {
    let seconds = |seconds| Duration::try_from_secs_f64(seconds).ok().and_then(duration);
    wire::TrainProgress {
        step: progress.step,
        steps_total: progress.steps_total,
        epoch: progress.epoch,
        epochs_total: progress.epochs_total,
        losses: progress.losses.into_iter().collect(),
        accuracy: progress.accuracy,
        learning_rate: progress.learning_rate,
        images_per_second: progress.images_per_second,
        remaining: seconds(progress.seconds_left),
        processes: progress.processes,
        all_reduce: (progress.processes > 1).then(|| seconds(progress.all_reduce_seconds)).flatten(),
    }
}

fn starting_point(start: Start) -> wire::StartingPoint {
    let shape = |TensorShape { lengths }| wire::TensorShape { lengths };
    let untaken = start.untaken.into_iter().map(|UntakenTensor { name, found, expected, reason }| {
        wire::UntakenTensor { name, found: found.map(shape), expected: expected.map(shape), reason }
    });
    wire::StartingPoint {
        path: start.path,
        weights: start.weights,
        prefix: start.prefix,
        tensors_taken: start.tensors_taken,
        tensors_kept: start.tensors_kept,
        blocks_taken: start.blocks_taken,
        blocks_total: start.blocks_total,
        untaken: untaken.collect(),
        untaken_total: start.untaken_total,
        warning: start.warning,
        kept: start.kept,
    }
}

fn delivered_checkpoint(delivered: DeliveredCheckpoint) -> wire::DeliveredCheckpoint {
    let DeliveredCheckpoint { epoch, step, best_by } = delivered;
    let (choice, metric) = match best_by {
        Some(_) => (wire::CheckpointChoice::Best, "map"),
        None => (wire::CheckpointChoice::Last, ""),
    };
    wire::DeliveredCheckpoint {
        epoch,
        step,
        choice: choice.into(),
        metric: metric.into(),
        evaluation: best_by.map(super::evaluation),
    }
}

fn wire_state(name: StateName) -> wire::JobState {
    match name {
        StateName::Queued => wire::JobState::Queued,
        StateName::Running => wire::JobState::Running,
        StateName::Cancelling => wire::JobState::Cancelling,
        StateName::Cancelled => wire::JobState::Cancelled,
        StateName::Failed => wire::JobState::Failed,
        StateName::Finished => wire::JobState::Finished,
        StateName::Interrupted => wire::JobState::Interrupted,
    }
}

fn state_name(number: i32) -> Result<StateName, Problem> {
    let known = StateName::EVERY.into_iter().find(|name| wire_state(*name) as i32 == number);
    known
        .ok_or_else(|| Problem::invalid(Reason::StateUnknown, "states", format!("state {number} is unknown")))
}

fn bounded_bytes(field: &str, bytes: usize, limit: usize) -> Result<(), Problem> {
    if bytes <= limit {
        return Ok(());
    }
    let message = format!("{field} has {bytes} bytes, the limit is {limit}");
    Err(Problem::invalid(Reason::TextTooLong, field, message).with_metadata("limit", limit))
}
