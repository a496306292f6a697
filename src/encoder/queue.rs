//! The queue between async callers and blocking device threads.
//!
//! The async side handles deadlines: it answers its caller in time and removes the chip. A device thread only decides,
//! when it binds a batch, whether a chip can still be done in time.

mod state;
mod trial;

use std::fmt;
use std::iter;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};

pub(super) use state::{QueueState, Waiting, WorkerTask};
pub(super) use trial::{Canary, Passes};

use super::mailbox::{Load, Unload, WorkerCommand};
use super::schedule::{Buckets, Priority};
use super::types::{
    CanaryError, CanaryOutcome, EncodeError, EncodeJob, Encoded, EncoderFactory, Health, LoadError, Observe,
    QueueSettings,
};
use super::worker;
use crate::chip::ChipSize;
use crate::embedding::ModelDigest;

/// The handle that callers share. Device threads end when it is [closed](Self::close).
#[derive(Clone)]
pub struct EncodeQueue {
    state: Arc<QueueState>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl fmt::Debug for EncodeQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodeQueue").field("depth", &self.depth()).finish_non_exhaustive()
    }
}

impl EncodeQueue {
    /// Starts the device threads; they have no model yet.
    pub fn start(settings: QueueSettings, observe: Observe) -> Self {
        let state = Arc::new(QueueState::new(settings, observe));
        let threads = (0..state.settings().workers).map(|index| {
            let state = Arc::clone(&state);
            let buckets = Buckets::up_to(settings.batch_max);
            std::thread::Builder::new()
                .name(thread_name(index))
                .spawn(move || worker::run(index, &state, buckets))
                .expect("the system has room for the device threads")
        });
        let threads = Arc::new(Mutex::new(threads.collect()));
        Self { state, threads }
    }

    /// Creates `model` on every device thread and warms every batch size; afterwards chips may name it. The future must
    /// be awaited to its end.
    ///
    /// While other models serve, the threads create it one after the other, between their batches.
    ///
    /// # Errors
    /// One thread cannot create or run it; then it is on no thread.
    pub async fn load(
        &self,
        model: ModelDigest,
        chip_size: ChipSize,
        factory: EncoderFactory,
    ) -> Result<(), LoadError> {
        if let Err(cause) = self.load_everywhere(model, chip_size, factory).await {
            self.unload(model).await;
            return Err(cause);
        }
        self.state.admit(model);
        Ok(())
    }

    async fn load_everywhere(
        &self,
        model: ModelDigest,
        chip_size: ChipSize,
        factory: EncoderFactory,
    ) -> Result<(), LoadError> {
        let workers = self.state.settings().workers;
        let at_once = if self.state.has_models() { 1 } else { workers };
        // The last thread gets the factory itself, so that its data is dropped there and not here.
        let mut factories = iter::repeat_n(factory, workers).enumerate();
        for _ in (0..workers).step_by(at_once) {
            let answers: Vec<_> = factories
                .by_ref()
                .take(at_once)
                .map(|(worker, factory)| {
                    let (done, answer) = oneshot::channel();
                    self.state.command(worker, WorkerCommand::Load(Load { model, chip_size, factory, done }));
                    answer
                })
                .collect();
            for answer in join_all(answers).await {
                answer.unwrap_or_else(|_| Err(LoadError("the device threads have ended".into())))?;
            }
        }
        Ok(())
    }

    /// Refuses new chips of `model` from now on, lets the waiting ones be embedded, then drops it on every device
    /// thread. Does nothing if it is not loaded.
    pub async fn unload(&self, model: ModelDigest) {
        self.state.dismiss(model);
        let answers = (0..self.state.settings().workers).map(|worker| {
            let (done, answer) = oneshot::channel();
            self.state.command(worker, WorkerCommand::Unload(Unload { model, done }));
            answer
        });
        // A thread that has ended without answering has dropped its models.
        join_all(answers.collect::<Vec<_>>()).await;
        self.state.forget_times(model);
    }

    /// Waits for the chip's turn and its forward pass. Dropping the future frees its slot immediately.
    ///
    /// # Errors
    /// The failure of this chip's batch, or [`EncodeError::DeadlineExceeded`] at the deadline.
    pub async fn encode(&self, job: EncodeJob) -> Result<Encoded, EncodeError> {
        let deadline = job.deadline;
        // It ends when a device thread takes the chip, or the caller leaves.
        let span = tracing::debug_span!("queue");
        let (reply, answer) = oneshot::channel();
        let ticket = self.state.enqueue(job, span, reply)?;
        let outcome = match deadline {
            None => answer.await,
            Some(deadline) => match tokio::time::timeout_at(deadline, answer).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    ticket.give_up("DEADLINE");
                    return Err(EncodeError::DeadlineExceeded);
                }
            },
        };
        outcome.unwrap_or(Err(EncodeError::Closed))
    }

    /// Sends a canary through a device thread, once it has nothing else to do. Each thread has one at a time: the next
    /// one replaces it, and dropping the future withdraws it.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn send_canary(
        &self,
        worker: usize,
        model: ModelDigest,
        chip_size: ChipSize,
    ) -> Result<(), CanaryError> {
        let (reply, answer) = oneshot::channel();
        let waits = self.state.place_canary(worker, Canary { model, chip_size, reply })?;
        let outcome = answer.await;
        drop(waits);
        outcome.unwrap_or(Err(CanaryError::Closed))
    }

    /// Changes with everything that a device thread completes.
    pub fn passes(&self, worker: usize) -> watch::Receiver<Passes> {
        self.state.passes(worker)
    }

    /// Updates health with the outcome of a canary.
    pub fn judge(&self, worker: usize, model: ModelDigest, outcome: CanaryOutcome) {
        self.state.judge(worker, model, outcome);
    }

    /// How long chips that arrive now would take to be done, judged by recent batches.
    pub fn expected_time(
        &self,
        model: ModelDigest,
        tenant: &str,
        priority: Priority,
        chips: usize,
    ) -> Duration {
        self.state.expected_time(model, tenant, priority, chips)
    }

    /// How long they would take if the queue were empty.
    pub fn least_time(&self, model: ModelDigest, chips: usize) -> Duration {
        self.state.least_time(model, chips)
    }

    /// Device threads.
    pub fn workers(&self) -> usize {
        self.state.settings().workers
    }

    /// Chips that wait for a device; those on a device do not count.
    pub fn depth(&self) -> usize {
        self.state.depth()
    }

    /// Subscribes to the state of the device threads.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.state.health()
    }

    /// Reports in the health that the server shuts down; chips are still embedded.
    pub fn announce_drain(&self) {
        self.state.announce_drain();
    }

    /// Reports in the health whether the model that should serve cannot; chips are still embedded.
    pub fn set_outdated(&self, is_outdated: bool) {
        self.state.set_outdated(is_outdated);
    }

    /// Refuses new chips, embeds the waiting ones, ends the device threads.
    pub async fn close(&self) {
        self.announce_drain();
        self.state.close();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
        if joined.await.is_err() {
            tracing::error!("the device threads could not be joined");
        }
    }
}

/// The name of a device thread, in the log and in the system.
pub fn thread_name(worker: usize) -> String {
    format!("device-{worker}")
}

#[cfg(test)]
mod tests;
