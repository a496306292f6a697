//! The queue between callers, who are async, and device threads, which are not.
//!
//! The async side owns deadlines: it answers its caller in time and takes the chip out. A device thread only
//! judges, when it binds a batch, whether a chip could still be done in time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::predict::BatchTime;
use super::schedule::{Buckets, Entry, Priority, Schedule};
use super::worker::{self, EncoderFactory};
use crate::chip::{Chip, ChipSize};
use crate::embedding::{Embedding, ModelDigest};

/// How the device threads are laid out.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    /// Device threads, at least 1.
    pub workers: usize,
    /// Chips in one forward pass.
    pub batch_max: usize,
}

/// Whether chips can be embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No model has been warmed yet.
    Warming,
    Serving,
    /// Going down: what is there is finished.
    Draining,
    /// A device thread lost its device; only a restart helps.
    DeviceLost,
}

/// What happened on the device threads, for whoever counts and logs.
#[derive(Clone, Debug, PartialEq)]
pub enum EncoderEvent {
    BatchDone {
        size: usize,
        forward: Duration,
        waits: Vec<Duration>,
        /// How far chips ended past their deadlines, for those that did.
        late: Vec<Duration>,
    },
    /// Chips that wait now.
    Depth(usize),
    /// A chip left the queue without costing the device.
    Dropped {
        reason: &'static str,
    },
    OutOfMemory {
        size: usize,
    },
    Failed {
        size: usize,
        message: String,
    },
    Panicked {
        size: usize,
        message: String,
    },
    DeviceLost {
        message: String,
    },
}

/// Called on device threads and in callers' tasks, also under the queue's lock: must be quick and must not call back.
pub type Observe = Arc<dyn Fn(EncoderEvent) + Send + Sync>;

/// One chip and how it wants to be served.
#[derive(Debug)]
pub struct EncodeJob {
    pub model: ModelDigest,
    pub tenant: Arc<str>,
    pub priority: Priority,
    pub deadline: Option<tokio::time::Instant>,
    pub chip: Chip,
}

/// An embedding and what it took.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub embedding: Embedding,
    /// From the queue to the device.
    pub queued: Duration,
    /// The forward pass of its batch.
    pub forward: Duration,
    /// Chips in its batch.
    pub batch_size: usize,
}

/// Why a chip has no embedding. What the device said stays in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("the deadline has passed")]
    DeadlineExceeded,
    #[error("the forward pass failed")]
    Failed,
    #[error("the device has not enough memory")]
    OutOfMemory,
    #[error("the device is lost")]
    DeviceLost,
    #[error("the queue is closed")]
    Closed,
    #[error("the model is not resident")]
    UnknownModel,
}

impl EncodeError {
    /// Stable and fit for programs and labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Failed => "FORWARD_FAILED",
            Self::OutOfMemory => "DEVICE_OUT_OF_MEMORY",
            Self::DeviceLost => "DEVICE_LOST",
            Self::Closed => "DRAINING",
            Self::UnknownModel => "MODEL_NOT_FOUND",
        }
    }
}

/// A model could not be put on a device thread.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// The handle that callers share. Device threads end when it is [closed](Self::close).
#[derive(Clone)]
pub struct EncodeQueue {
    shared: Arc<Shared>,
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
        let workers = settings.workers.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                schedule: Schedule::default(),
                times: HashMap::new(),
                resident: HashSet::new(),
                loads: (0..workers).map(|_| VecDeque::new()).collect(),
                phase: Phase::Open,
            }),
            wake: Condvar::new(),
            settings: QueueSettings { workers, batch_max: settings.batch_max.max(1) },
            next_id: AtomicU64::new(0),
            health: watch::Sender::new(Health::Warming),
            observe,
        });
        let threads = (0..workers).map(|index| {
            let shared = Arc::clone(&shared);
            let buckets = Buckets::up_to(settings.batch_max);
            std::thread::Builder::new()
                .name(format!("device-{index}"))
                .spawn(move || worker::run(index, &shared, buckets))
                .expect("the system has room for the device threads")
        });
        let threads = Arc::new(Mutex::new(threads.collect()));
        Self { shared, threads }
    }

    /// Makes `model` on every device thread and warms every batch size; afterwards chips may name it.
    ///
    /// # Errors
    /// When one thread cannot make or run it; then no thread serves it.
    pub async fn load(
        &self,
        model: ModelDigest,
        chip_size: ChipSize,
        factory: EncoderFactory,
    ) -> Result<(), LoadError> {
        let mut answers = Vec::new();
        {
            let mut state = self.shared.lock();
            for loads in &mut state.loads {
                let (done, answer) = oneshot::channel();
                loads.push_back(Load { model, chip_size, factory: Arc::clone(&factory), done });
                answers.push(answer);
            }
        }
        self.shared.wake.notify_all();
        for answer in answers {
            answer.await.unwrap_or_else(|_| Err(LoadError("the device thread has ended".into())))?;
        }
        self.shared.lock().resident.insert(model);
        self.shared.health.send_if_modified(|health| {
            let first = *health == Health::Warming;
            if first {
                *health = Health::Serving;
            }
            first
        });
        Ok(())
    }

    /// Waits for the chip's turn and its forward pass. Dropping the future frees its place at once.
    ///
    /// # Errors
    /// What became of this chip's batch, or [`EncodeError::DeadlineExceeded`] at the deadline.
    pub async fn encode(&self, job: EncodeJob) -> Result<Encoded, EncodeError> {
        let deadline = job.deadline;
        let (reply, answer) = oneshot::channel();
        let ticket = self.shared.enqueue(job, reply)?;
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

    /// How long chips that come now would take to be done, by the batches that ran lately.
    pub fn expected_time(
        &self,
        model: ModelDigest,
        tenant: &str,
        priority: Priority,
        chips: usize,
    ) -> Duration {
        let state = self.shared.lock();
        let QueueSettings { workers, batch_max } = self.shared.settings;
        let ahead = state.schedule.ahead_of(tenant, priority);
        let time = state.times.get(&model).copied().unwrap_or_default();
        time.predict_behind(ahead, chips, batch_max, workers)
    }

    /// Chips that wait for a device; those on a device do not count.
    pub fn depth(&self) -> usize {
        self.shared.lock().schedule.len()
    }

    /// Follows the state of the device threads.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// Tells everybody who follows the health that the server goes down; chips are still embedded.
    pub fn announce_drain(&self) {
        self.shared.health.send_if_modified(|health| {
            let alive = matches!(health, Health::Warming | Health::Serving);
            if alive {
                *health = Health::Draining;
            }
            alive
        });
    }

    /// Refuses new chips, embeds those that wait, ends the device threads.
    pub async fn close(&self) {
        self.announce_drain();
        self.shared.lock().phase.close();
        self.shared.wake.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
        if joined.await.is_err() {
            tracing::error!("the device threads could not be joined");
        }
    }
}

/// What callers and device threads share.
pub(super) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    settings: QueueSettings,
    next_id: AtomicU64,
    health: watch::Sender<Health>,
    observe: Observe,
}

struct State {
    schedule: Schedule<Waiting>,
    times: HashMap<ModelDigest, BatchTime>,
    resident: HashSet<ModelDigest>,
    /// For each device thread, the models that it has yet to make.
    loads: Vec<VecDeque<Load>>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closed,
    Lost,
}

impl Phase {
    fn close(&mut self) {
        if *self == Self::Open {
            *self = Self::Closed;
        }
    }
}

/// A model for one device thread to make.
pub(super) struct Load {
    pub model: ModelDigest,
    pub chip_size: ChipSize,
    pub factory: EncoderFactory,
    pub done: oneshot::Sender<Result<(), LoadError>>,
}

/// A chip in the queue, and where its answer goes.
pub(super) struct Waiting {
    pub chip: Chip,
    pub since: Instant,
    pub reply: oneshot::Sender<Result<Encoded, EncodeError>>,
}

/// What a free device thread does next.
pub(super) enum Work {
    Load(Load),
    Batch(Vec<Entry<Waiting>>),
    Stop,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the state half changed: no code that may panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(
        self: &Arc<Self>,
        job: EncodeJob,
        reply: oneshot::Sender<Result<Encoded, EncodeError>>,
    ) -> Result<Ticket, EncodeError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        match state.phase {
            Phase::Open => {}
            Phase::Closed => return Err(EncodeError::Closed),
            Phase::Lost => return Err(EncodeError::DeviceLost),
        }
        if !state.resident.contains(&job.model) {
            return Err(EncodeError::UnknownModel);
        }
        state.schedule.insert(Entry {
            id,
            model: job.model,
            tenant: job.tenant,
            priority: job.priority,
            deadline: job.deadline.map(tokio::time::Instant::into_std),
            payload: Waiting { chip: job.chip, since: Instant::now(), reply },
        });
        self.tell_depth(&state);
        drop(state);
        self.wake.notify_one();
        Ok(Ticket { id, shared: Arc::clone(self) })
    }

    /// Blocks a device thread until there is something to do. The batch is bound here, when the device is
    /// free, and not before.
    pub fn next_work(&self, worker: usize, buckets: &Buckets) -> Work {
        let mut state = self.lock();
        loop {
            if let Some(load) = state.loads[worker].pop_front() {
                return Work::Load(load);
            }
            let State { schedule, times, .. } = &mut *state;
            let taken = schedule.take_batch(Instant::now(), buckets, |model, size| {
                times.get(&model).map_or(Duration::ZERO, |time| time.predict(size))
            });
            let closed = state.phase != Phase::Open;
            if !taken.expired.is_empty() || !taken.batch.is_empty() {
                self.tell_depth(&state);
                drop(state);
                for entry in taken.expired {
                    self.tell(EncoderEvent::Dropped { reason: "DEADLINE" });
                    // A caller that left in the meantime wants no answer.
                    let _ = entry.payload.reply.send(Err(EncodeError::DeadlineExceeded));
                }
                if !taken.batch.is_empty() {
                    return Work::Batch(taken.batch);
                }
                state = self.lock();
                continue;
            }
            if closed {
                return Work::Stop;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn record_time(&self, model: ModelDigest, size: usize, took: Duration) {
        self.lock().times.entry(model).or_default().record(size, took);
    }

    /// The device is gone: nobody who waits, or comes later, will be served.
    pub fn lose_device(&self, message: String) {
        let waiting = {
            let mut state = self.lock();
            state.phase = Phase::Lost;
            let waiting = state.schedule.drain();
            self.tell_depth(&state);
            waiting
        };
        self.health.send_replace(Health::DeviceLost);
        self.wake.notify_all();
        self.tell(EncoderEvent::DeviceLost { message });
        for entry in waiting {
            let _ = entry.payload.reply.send(Err(EncodeError::DeviceLost));
        }
    }

    /// Under the lock, so that the depths arrive in the order in which they were true.
    fn tell_depth(&self, state: &State) {
        self.tell(EncoderEvent::Depth(state.schedule.len()));
    }

    pub fn tell(&self, event: EncoderEvent) {
        (self.observe)(event);
    }
}

/// A caller's place in the queue, free again when the caller leaves.
struct Ticket {
    id: u64,
    shared: Arc<Shared>,
}

impl Ticket {
    fn give_up(&self, reason: &'static str) {
        let mut state = self.shared.lock();
        if state.schedule.remove(self.id).is_some() {
            self.shared.tell_depth(&state);
            drop(state);
            self.shared.tell(EncoderEvent::Dropped { reason });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A chip that has run, or was given up before, is not in the queue any more.
        self.give_up("CANCELLED");
    }
}

#[cfg(test)]
mod tests;
