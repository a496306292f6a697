//! State shared by callers and device threads: waiting chips, commands to the threads, and whether they are alive.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::Span;

use super::trial::{Canary, Passes, Trials};
use crate::embedding::ModelDigest;
use crate::encoder::EncoderInput;
use crate::encoder::mailbox::{Mailbox, WorkerCommand};
use crate::encoder::predict::BatchTime;
use crate::encoder::schedule::{Buckets, Entry, Priority, Schedule};
use crate::encoder::types::{
    CanaryError, CanaryOutcome, EncodeError, EncodeJob, Encoded, EncoderEvent, Health, Observe, QueueSettings,
};

/// State shared by callers and device threads.
pub struct QueueState {
    state: Mutex<LockedState>,
    wake: Condvar,
    settings: QueueSettings,
    next_id: AtomicU64,
    health: watch::Sender<Health>,
    observe: Observe,
}

struct LockedState {
    schedule: Schedule<Waiting>,
    times: HashMap<ModelDigest, BatchTime>,
    resident: HashSet<ModelDigest>,
    /// One for each device thread.
    mailboxes: Vec<Mailbox>,
    trials: Trials,
    /// Whether another model should serve.
    is_outdated: bool,
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

/// A chip in the queue, and where its answer is sent.
pub struct Waiting {
    pub chip: EncoderInput,
    pub since: Instant,
    pub reply: oneshot::Sender<Result<Encoded, EncodeError>>,
    /// The span of the wait; later spans link to it.
    pub span: Span,
}

/// What a free device thread does next.
pub enum WorkerTask {
    Command(WorkerCommand),
    Batch(Vec<Entry<Waiting>>),
    Canary(Canary),
    Stop,
}

impl LockedState {
    /// The command that a device thread carries out now, if it is a command's turn.
    fn next_command(&mut self, worker: usize) -> Option<WorkerCommand> {
        let Self { schedule, mailboxes, .. } = self;
        mailboxes[worker].next_command(schedule.len(), |model| schedule.waiting(model))
    }

    /// Commands that will not be carried out; dropping them notifies the waiting tasks.
    fn take_commands(&mut self) -> Vec<WorkerCommand> {
        self.mailboxes.iter_mut().flat_map(Mailbox::clear).collect()
    }
}

impl QueueState {
    pub fn new(settings: QueueSettings, observe: Observe) -> Self {
        let workers = settings.workers.max(1);
        Self {
            state: Mutex::new(LockedState {
                schedule: Schedule::default(),
                times: HashMap::new(),
                resident: HashSet::new(),
                mailboxes: (0..workers).map(|_| Mailbox::default()).collect(),
                trials: Trials::new(workers),
                is_outdated: false,
                phase: Phase::Open,
            }),
            wake: Condvar::new(),
            settings: QueueSettings { workers, batch_max: settings.batch_max.max(1) },
            next_id: AtomicU64::new(0),
            health: watch::Sender::new(Health::Warming),
            observe,
        }
    }

    pub fn settings(&self) -> QueueSettings {
        self.settings
    }

    /// Lets chips name `model`; with the first one the server begins to serve.
    pub fn admit(&self, model: ModelDigest) {
        self.lock().resident.insert(model);
        self.turn(Health::Warming, Health::Serving);
    }

    /// Refuses chips that name `model`; its failures no longer matter.
    pub fn dismiss(&self, model: ModelDigest) {
        let mut state = self.lock();
        state.resident.remove(&model);
        for worker in state.trials.forget(model) {
            self.tell_thread(&state, worker);
        }
    }

    pub fn has_models(&self) -> bool {
        !self.lock().resident.is_empty()
    }

    pub fn depth(&self) -> usize {
        self.lock().schedule.len()
    }

    pub fn expected_time(
        &self,
        model: ModelDigest,
        tenant: &str,
        priority: Priority,
        chips: usize,
    ) -> Duration {
        let state = self.lock();
        let QueueSettings { workers, batch_max } = self.settings;
        let ahead = state.schedule.ahead_of(tenant, priority);
        let time = state.times.get(&model).copied().unwrap_or_default();
        time.predict_behind(ahead, chips, batch_max, workers)
    }

    pub fn least_time(&self, model: ModelDigest, chips: usize) -> Duration {
        let QueueSettings { workers, batch_max } = self.settings;
        let time = self.lock().times.get(&model).copied().unwrap_or_default();
        time.predict_behind(0, chips, batch_max, workers)
    }

    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Changes health from one state to another, if it is in the first.
    fn turn(&self, from: Health, to: Health) {
        self.health.send_if_modified(|health| {
            let turns = *health == from && from != to;
            if turns {
                *health = to;
            }
            turns
        });
    }

    pub fn passes(&self, worker: usize) -> watch::Receiver<Passes> {
        self.lock().trials.passes(worker)
    }

    /// Notes that a device thread has carried out a command.
    pub fn worked(&self, worker: usize) {
        self.lock().trials.worked(worker);
    }

    /// Notes that a forward pass has succeeded, with any caller's chips.
    pub fn passed(&self, worker: usize, model: ModelDigest) {
        let mut state = self.lock();
        if state.trials.passed(worker, model) {
            self.tell_thread(&state, worker);
        }
    }

    pub fn judge(&self, worker: usize, model: ModelDigest, outcome: CanaryOutcome) {
        let mut state = self.lock();
        let has_failed = outcome != CanaryOutcome::Passed;
        // If the model has been unloaded in the meantime, nothing would report that it works again.
        if has_failed && state.resident.contains(&model) && state.trials.failed(worker, model) {
            self.tell_thread(&state, worker);
        }
        drop(state);
        self.tell(EncoderEvent::Canary { worker, model, outcome });
    }

    /// Called under the lock, so that the reported health is the latest.
    fn tell_thread(&self, state: &LockedState, worker: usize) {
        self.tell(EncoderEvent::Thread { worker, is_failing: state.trials.is_failing(worker) });
        self.tell_health(state);
    }

    /// Whether another model should serve, which this one is not ready to replace.
    pub fn set_outdated(&self, is_outdated: bool) {
        let mut state = self.lock();
        state.is_outdated = is_outdated;
        self.tell_health(&state);
    }

    /// Likewise under the lock.
    fn tell_health(&self, state: &LockedState) {
        let now = if state.trials.is_any_failing() {
            Health::Failing
        } else if state.is_outdated {
            Health::Outdated
        } else {
            Health::Serving
        };
        for before in [Health::Serving, Health::Failing, Health::Outdated] {
            self.turn(before, now);
        }
    }

    /// Puts a canary in the waiting slot, replacing any previous one.
    pub fn place_canary(
        self: &Arc<Self>,
        worker: usize,
        canary: Canary,
    ) -> Result<CanaryTicket, CanaryError> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(CanaryError::Closed);
        }
        let former = state.trials.place(worker, canary);
        drop(state);
        drop(former);
        self.wake.notify_all();
        Ok(CanaryTicket { queue: Arc::clone(self), worker })
    }

    pub fn take_canary(&self, worker: usize) -> Option<Canary> {
        self.lock().trials.take(worker)
    }

    pub fn announce_drain(&self) {
        self.health.send_if_modified(|health| {
            let alive =
                matches!(health, Health::Warming | Health::Serving | Health::Failing | Health::Outdated);
            if alive {
                *health = Health::Draining;
            }
            alive
        });
    }

    /// Refuses new chips and commands; the threads end once no chip waits.
    pub fn close(&self) {
        let (commands, canaries) = {
            let mut state = self.lock();
            state.phase.close();
            (state.take_commands(), state.trials.take_all())
        };
        drop((commands, canaries));
        self.wake.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, LockedState> {
        // A panic cannot leave the state half changed: no code that may panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn enqueue(
        self: &Arc<Self>,
        job: EncodeJob,
        span: Span,
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
            payload: Waiting { chip: job.chip, since: Instant::now(), reply, span },
        });
        self.tell_depth(&state);
        drop(state);
        self.wake.notify_one();
        Ok(Ticket { id, queue: Arc::clone(self) })
    }

    /// Gives a device thread a command; it is dropped if the threads are ending.
    pub fn command(&self, worker: usize, command: WorkerCommand) {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            drop(state);
            return drop(command);
        }
        state.mailboxes[worker].push(command);
        drop(state);
        self.wake.notify_all();
    }

    /// Blocks a device thread until there is something to do. The batch is bound here, when the device is free, and not
    /// before.
    pub fn next_work(&self, worker: usize, buckets: &Buckets) -> WorkerTask {
        let mut state = self.lock();
        loop {
            if let Some(command) = state.next_command(worker) {
                return WorkerTask::Command(command);
            }
            let LockedState { schedule, times, .. } = &mut *state;
            let taken = schedule.take_batch(Instant::now(), buckets, |model, size| {
                times.get(&model).map_or(Duration::ZERO, |time| time.predict(size))
            });
            let closed = state.phase != Phase::Open;
            if !taken.expired.is_empty() || !taken.batch.is_empty() {
                self.tell_depth(&state);
                if !taken.batch.is_empty() {
                    state.mailboxes[worker].batch_taken();
                }
                drop(state);
                for entry in taken.expired {
                    self.tell(EncoderEvent::Dropped { reason: "DEADLINE" });
                    // A caller that has left in the meantime needs no answer.
                    let _ = entry.payload.reply.send(Err(EncodeError::DeadlineExceeded));
                }
                if !taken.batch.is_empty() {
                    return WorkerTask::Batch(taken.batch);
                }
                state = self.lock();
                continue;
            }
            if closed {
                return WorkerTask::Stop;
            }
            if let Some(canary) = state.trials.take(worker) {
                return WorkerTask::Canary(canary);
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn forget_times(&self, model: ModelDigest) {
        self.lock().times.remove(&model);
    }

    pub fn record_time(&self, model: ModelDigest, size: usize, took: Duration) {
        self.lock().times.entry(model).or_default().record(size, took);
    }

    /// Records that the device is gone: waiting and later chips will not be served.
    pub fn lose_device(&self, message: String) {
        let (waiting, commands, canaries) = {
            let mut state = self.lock();
            state.phase = Phase::Lost;
            let waiting = state.schedule.drain();
            self.tell_depth(&state);
            (waiting, state.take_commands(), state.trials.take_all())
        };
        drop((commands, canaries));
        self.health.send_replace(Health::DeviceLost);
        self.wake.notify_all();
        self.tell(EncoderEvent::DeviceLost { message });
        for entry in waiting {
            let _ = entry.payload.reply.send(Err(EncodeError::DeviceLost));
        }
    }

    /// Called under the lock, so that depths are reported in the order in which they occurred.
    fn tell_depth(&self, state: &LockedState) {
        self.tell(EncoderEvent::Depth(state.schedule.len()));
    }

    pub fn tell(&self, event: EncoderEvent) {
        (self.observe)(event);
    }
}

/// A caller's slot in the queue, released when the caller leaves.
pub struct Ticket {
    id: u64,
    queue: Arc<QueueState>,
}

impl Ticket {
    pub fn give_up(&self, reason: &'static str) {
        let mut state = self.queue.lock();
        if state.schedule.remove(self.id).is_some() {
            self.queue.tell_depth(&state);
            drop(state);
            self.queue.tell(EncoderEvent::Dropped { reason });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A chip that has run, or was given up before, is no longer in the queue.
        self.give_up("CANCELLED");
    }
}

/// A canary's slot, released when the waiting task is gone.
pub struct CanaryTicket {
    pub queue: Arc<QueueState>,
    pub worker: usize,
}

impl Drop for CanaryTicket {
    fn drop(&mut self) {
        // A canary that is on a device is no longer in its slot.
        let canary = self.queue.take_canary(self.worker);
        drop(canary);
    }
}
