//! A device thread: creates its encoders, warms them, and runs batches until the queue is closed.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tracing::Span;

use super::mailbox::{Unload, Warm, WorkerCommand};
use super::queue::{Canary, QueueState, Waiting, WorkerTask};
use super::schedule::{Buckets, Entry};
use super::types::{CanaryError, EncodeError, Encoded, EncoderEvent, EncoderFactory, LoadError};
use super::{Batch, Encoder, EncoderInput, ForwardError, Rehearsal};
use crate::chip::{Chip, ChipSize, Modality};
use crate::embedding::{Embedding, ModelDigest};
use crate::memory;

/// Added to the thread's niceness: RPC threads, which only move data, get the processor first.
const NICENESS: libc::c_int = 5;

/// The main loop of a device thread.
pub(super) fn run(index: usize, queue: &QueueState, mut buckets: Buckets) {
    lower_priority();
    let thread = Thread { index, queue };
    let mut encoders = Encoders::new();
    loop {
        match queue.next_work(index, &buckets) {
            WorkerTask::Stop => return,
            // Below, the receiver is gone if the server gave up starting.
            WorkerTask::Command(WorkerCommand::Load(load)) => match make(index, &load.factory) {
                Ok(encoder) => {
                    encoders.insert(load.model, encoder);
                    queue.worked(index);
                    queue.command(index, WorkerCommand::Warm(Warm::all(load, &buckets)));
                }
                Err(cause) => drop(load.done.send(Err(cause))),
            },
            WorkerTask::Command(WorkerCommand::Warm(warm)) => warm_next(warm, &mut encoders, thread),
            WorkerTask::Command(WorkerCommand::Unload(Unload { model, done })) => {
                drop(encoders.remove(&model));
                memory::give_back();
                queue.worked(index);
                let _ = done.send(());
            }
            WorkerTask::Batch(entries) => {
                let model = entries[0].model;
                let encoder: &mut Box<dyn Encoder> =
                    encoders.get_mut(&model).expect("only resident models are in the queue");
                run_batch(encoder.as_mut(), model, entries, &mut buckets, thread);
            }
            WorkerTask::Canary(canary) => run_canary(canary, &mut encoders, thread),
        }
    }
}

/// A device thread's end of the queue.
#[derive(Clone, Copy)]
struct Thread<'s> {
    index: usize,
    queue: &'s QueueState,
}

/// The encoders of one device thread.
type Encoders = HashMap<ModelDigest, Box<dyn Encoder>>;

fn make(index: usize, factory: &EncoderFactory) -> Result<Box<dyn Encoder>, LoadError> {
    catch_unwind(AssertUnwindSafe(|| factory(index)))
        .map_err(|panic| LoadError(panic_message(panic.as_ref())))
        .and_then(|made| made.map_err(LoadError))
}

/// Runs one batch size, and defers the next one: chips may wait.
fn warm_next(mut warm: Warm, encoders: &mut Encoders, thread: Thread<'_>) {
    let (model, Some(size)) = (warm.model, warm.sizes.pop_front()) else { return };
    let chips = (0..size).map(|number| warm_up_chip(warm.chip_size, number)).collect();
    let encoder = encoders.get_mut(&model).expect("a model is made before it is warmed");
    match first_pass(encoder.as_mut(), &Batch { model, chips }, warm.has_run) {
        Ok(took) => thread.queue.record_time(model, size, took),
        Err(failure) => {
            encoders.remove(&model);
            let _ = warm.done.send(Err(LoadError(failure.to_string())));
            return;
        }
    }
    thread.queue.passed(thread.index, model);
    warm.has_run = true;
    if warm.sizes.is_empty() {
        memory::give_back();
        let _ = warm.done.send(Ok(()));
    } else {
        thread.queue.command(thread.index, WorkerCommand::Warm(warm));
    }
}

/// Runs a batch of a new size, in part if others have run and that is enough. Returns how long a whole one takes, at most.
fn first_pass(encoder: &mut dyn Encoder, batch: &Batch, has_run: bool) -> Result<Duration, Failure> {
    if let Some(Rehearsal { part, times }) = encoder.rehearsal().filter(|_| has_run) {
        let started = Instant::now();
        forward(part, batch)?;
        return Ok(started.elapsed() * times);
    }
    let started = Instant::now();
    forward(encoder, batch)?;
    Ok(started.elapsed())
}

/// Runs a canary; only whether it succeeds is reported.
fn run_canary(canary: Canary, encoders: &mut Encoders, thread: Thread<'_>) {
    let Canary { model, chip_size, reply } = canary;
    let Some(encoder) = encoders.get_mut(&model) else {
        // The waiting task may be gone, here and below.
        let _ = reply.send(Err(CanaryError::UnknownModel));
        return;
    };
    let batch = Batch { model, chips: vec![warm_up_chip(chip_size, 0)] };
    let outcome = match run_once(encoder.as_mut(), &batch, thread) {
        Ok(_) => Ok(()),
        Err(failure) => {
            let error = tell_failure(failure, 1, thread.queue);
            Err(if error == EncodeError::DeviceLost { CanaryError::Closed } else { CanaryError::Failed })
        }
    };
    let _ = reply.send(outcome);
}

/// Modalities alternate, so that a batch warms both branches.
fn warm_up_chip(size: ChipSize, number: usize) -> EncoderInput {
    let modality = if number.is_multiple_of(2) { Modality::Optical } else { Modality::Sar };
    let pixels = (0..size.height * size.width * 3).map(|byte| (byte * 31 + number) as u8).collect();
    Chip::new(pixels, size, modality, [0.5, 0.5, 4.0]).into()
}

/// A batch belongs to the traces of all its callers, and is in none of them.
fn batch_span(entries: &[Entry<Waiting>]) -> Span {
    let span = tracing::debug_span!(parent: None, "batch", chips = entries.len());
    for entry in entries {
        span.follows_from(&entry.payload.span);
    }
    span
}

/// Runs a batch and answers its callers; one that does not fit into memory is retried once in halves.
fn run_batch(
    encoder: &mut dyn Encoder,
    model: ModelDigest,
    entries: Vec<Entry<Waiting>>,
    buckets: &mut Buckets,
    thread: Thread<'_>,
) {
    let bound = Instant::now();
    let span = batch_span(&entries);
    let _span = span.enter();
    let (chips, callers): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .map(|Entry { payload, deadline, .. }| {
            let queued = bound.saturating_duration_since(payload.since);
            (payload.chip, Caller { reply: payload.reply, queued, deadline })
        })
        .unzip();
    let batch = Batch { model, chips };
    match run_once(encoder, &batch, thread) {
        Err(Failure::OutOfMemory) if batch.chips.len() > 1 => {
            buckets.halve();
            let (mut first, mut first_callers) = (batch.chips, callers);
            let half = first.len() / 2;
            let (second, second_callers) = (first.split_off(half), first_callers.split_off(half));
            for (chips, callers) in [(first, first_callers), (second, second_callers)] {
                let outcome = run_once(encoder, &Batch { model, chips }, thread);
                answer(callers, outcome, thread.queue);
            }
        }
        outcome => answer(callers, outcome, thread.queue),
    }
}

struct Caller {
    reply: tokio::sync::oneshot::Sender<Result<Encoded, EncodeError>>,
    queued: Duration,
    deadline: Option<Instant>,
}

fn run_once(
    encoder: &mut dyn Encoder,
    batch: &Batch,
    thread: Thread<'_>,
) -> Result<(Vec<Embedding>, Duration), Failure> {
    let span = tracing::debug_span!("forward", chips = batch.chips.len());
    let started = Instant::now();
    let embeddings = span.in_scope(|| forward(encoder, batch))?;
    let took = started.elapsed();
    thread.queue.record_time(batch.model, batch.chips.len(), took);
    thread.queue.passed(thread.index, batch.model);
    Ok((embeddings, took))
}

fn forward(encoder: &mut dyn Encoder, batch: &Batch) -> Result<Vec<Embedding>, Failure> {
    let wanted = batch.chips.len();
    match catch_unwind(AssertUnwindSafe(|| encoder.forward(batch))) {
        Ok(Ok(embeddings)) if embeddings.len() == wanted => Ok(embeddings),
        Ok(Ok(embeddings)) => {
            Err(Failure::Failed(format!("{} embeddings for {wanted} chips", embeddings.len())))
        }
        Ok(Err(ForwardError::OutOfMemory)) => Err(Failure::OutOfMemory),
        Ok(Err(ForwardError::DeviceLost(message))) => Err(Failure::DeviceLost(message)),
        Ok(Err(ForwardError::Failed(message))) => Err(Failure::Failed(message)),
        Err(panic) => Err(Failure::Panicked(panic_message(panic.as_ref()))),
    }
}

/// Why a batch failed; a panic is a reason that an encoder cannot report itself.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the device has not enough memory for a batch")]
    OutOfMemory,
    #[error("the device is lost: {0}")]
    DeviceLost(String),
    #[error("the forward pass failed: {0}")]
    Failed(String),
    #[error("the forward pass panicked: {0}")]
    Panicked(String),
}

fn answer(callers: Vec<Caller>, outcome: Result<(Vec<Embedding>, Duration), Failure>, queue: &QueueState) {
    let size = callers.len();
    let error = match outcome {
        Ok((embeddings, forward)) => {
            let waits = callers.iter().map(|caller| caller.queued).collect();
            let now = Instant::now();
            let late = callers.iter().filter_map(|caller| now.checked_duration_since(caller.deadline?));
            let late = late.collect();
            queue.tell(EncoderEvent::BatchDone { size, forward, waits, late });
            for (Caller { reply, queued, .. }, embedding) in callers.into_iter().zip(embeddings) {
                // A caller that has left needs no answer, here and below.
                let _ = reply.send(Ok(Encoded { embedding, queued, forward, batch_size: size }));
            }
            return;
        }
        Err(failure) => tell_failure(failure, size, queue),
    };
    for caller in callers {
        let _ = caller.reply.send(Err(error));
    }
}

/// Reports why a batch failed, and returns the error for its callers.
fn tell_failure(failure: Failure, size: usize, queue: &QueueState) -> EncodeError {
    match failure {
        Failure::OutOfMemory => {
            queue.tell(EncoderEvent::OutOfMemory { size });
            EncodeError::OutOfMemory
        }
        Failure::DeviceLost(message) => {
            queue.lose_device(message);
            EncodeError::DeviceLost
        }
        Failure::Failed(message) => {
            queue.tell(EncoderEvent::Failed { size, message });
            EncodeError::Failed
        }
        Failure::Panicked(message) => {
            queue.tell(EncoderEvent::Panicked { size, message });
            EncodeError::Failed
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}

fn lower_priority() {
    // SAFETY: setpriority reads its arguments only; on Linux, process 0 is the calling thread.
    let failed = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } != 0;
    if failed {
        tracing::debug!("the device thread keeps the priority that it was started with");
    }
}
