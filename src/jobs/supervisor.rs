//! Decides which jobs run: the oldest waiting ones whose galleries this server holds, as many at the same time as there are
//! slots. The store is the queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::attempt::due;
use super::edit::Edit;
use super::failure::Failure;
use super::job::{Job, JobId, JobKey};
use super::model_sink::ModelSink;
use super::repository::JobRepository;
use super::retries::{Pauses, Retries};
use super::settings::Settings;
use super::slot::Slot;
use super::spawner::Spawner;
use super::state::{Change, JobState, Refused};
use super::store::{Active, StoreError, UpdateError};
use crate::gallery::{Catalog, GalleryName};
use crate::metrics;
use crate::reason::FailureReason;

/// Between two looks at the store without a notification, as after a time in which it could not be read.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// The same for a store that other servers change.
const SHARED_LOOK_PERIOD: Duration = Duration::from_millis(500);
const COMMANDS_MAX: usize = 64;

/// Notifies the supervisor of changes.
#[derive(Clone, Debug)]
pub struct Supervisor {
    commands: mpsc::Sender<Command>,
    begin: Arc<Notify>,
}

#[derive(Debug)]
enum Command {
    /// There may be a job that waits.
    Look,
    Stop(JobKey),
    Drain(oneshot::Sender<()>),
}

impl Supervisor {
    /// Restores jobs that ran when the server stopped, now or as soon as the store can be written. Waiting jobs are run
    /// once it [begins](Self::begin).
    ///
    /// # Errors
    /// The store cannot be read, or the thread cannot be started.
    pub async fn start(
        repository: Arc<JobRepository>,
        settings: Settings,
        model_sink: Arc<dyn ModelSink>,
    ) -> anyhow::Result<Self> {
        // Jobs of other servers are taken over later, by servers that are up.
        let recovered =
            !repository.is_shared() && recover(&repository, &HashMap::new(), settings.attempts_max).await?;
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let Settings { jobs_concurrent_max: slots, attempts_max, .. } = settings;
        let spawner = Spawner::start()?;
        let settings = Arc::new(settings);
        let slot = |number| Slot {
            number,
            repository: Arc::clone(&repository),
            settings: Arc::clone(&settings),
            spawner: spawner.clone(),
            model_sink: Arc::clone(&model_sink),
        };
        let begin = Arc::new(Notify::new());
        let scheduler = Scheduler {
            begin: Arc::clone(&begin),
            begun: false,
            recovered,
            attempts_max,
            galleries: Arc::clone(&settings.galleries),
            retries: Retries::new(Pauses::new(settings.retry_pause)),
            next_retry: None,
            looked_at: None,
            complained_at: None,
            free: (0..slots).rev().map(slot).collect(),
            repository: Arc::clone(&repository),
            running: HashMap::new(),
            attempts: JoinSet::new(),
        };
        tokio::spawn(scheduler.run(commands));
        Ok(Self { commands: sender, begin })
    }

    /// From now on, waiting jobs are run. A server whose start fails or is interrupted before this call uses up no
    /// attempt of a job.
    pub fn begin(&self) {
        self.begin.notify_one();
    }

    pub async fn look(&self) {
        self.tell(Command::Look).await;
    }

    /// Asks a job's process to stop, if it has one.
    pub async fn stop(&self, key: JobKey) {
        self.tell(Command::Stop(key)).await;
    }

    /// Stops every process, and returns when the last one has ended. No further one is started.
    pub async fn drain(&self) {
        let (done, drained) = oneshot::channel();
        self.tell(Command::Drain(done)).await;
        // A supervisor that is gone has nothing left to stop.
        let _ = drained.await;
    }

    async fn tell(&self, command: Command) {
        // After a drain the supervisor is gone, and nothing is started or stopped any more.
        let _ = self.commands.send(command).await;
    }
}

/// Jobs that ran when their server was killed become interrupted; all interrupted jobs wait again. Returns whether that
/// is done: a store that cannot be written now must not prevent startup. Jobs that are `running` here are not abandoned,
/// even if they were not renewed in time: as long as no other server has noticed, they still can be.
async fn recover(
    repository: &Arc<JobRepository>,
    running: &HashMap<JobKey, CancellationToken>,
    attempts_max: u32,
) -> Result<bool, UpdateError<Refused>> {
    for job in repository.abandoned().await? {
        if running.contains_key(&job.key) {
            continue;
        }
        match repository.take_over(&job.key, move |edit| resume(edit, attempts_max)).await {
            Ok(job) => {
                let state = job.state.name().text();
                tracing::info!(job = %job.key.id, state, "the server stopped while this job ran");
                if repository.is_shared() {
                    metrics::job_taken_over();
                }
            }
            // Another server was faster.
            Err(UpdateError::Unknown) => {}
            Err(UpdateError::Store(cause @ (StoreError::Unavailable(_) | StoreError::Pending(_)))) => {
                tracing::error!(%cause, job = %job.key.id, "a job that ran waits for the job store");
                return Ok(false);
            }
            Err(cause) => return Err(cause),
        }
    }
    Ok(true)
}

/// A server that stopped its jobs has interrupted them already. One that was killed may have been killed because of a
/// job, so that is only retried a bounded number of times.
fn resume(edit: &mut Edit, attempts_max: u32) -> Result<(), Refused> {
    let was_killed = edit.job().state != JobState::Interrupted;
    if was_killed {
        edit.change(Change::Stop)?;
    }
    if edit.job().state.is_ended() {
        return Ok(());
    }
    if was_killed && edit.count_attempt() >= attempts_max {
        let message =
            format!("the server stopped during {attempts_max} attempts without a further checkpoint");
        return edit.change(Change::Fail(Failure::new(FailureReason::ServerLost, message)));
    }
    edit.change(Change::Retry)
}

/// Puts waiting jobs into free slots, and tracks the running ones.
struct Scheduler {
    begin: Arc<Notify>,
    /// Until then, no job is started.
    begun: bool,
    /// Likewise, until the jobs that ran when the server stopped are restored.
    recovered: bool,
    attempts_max: u32,
    galleries: Catalog,
    retries: Retries,
    /// The earliest end of a waiting job's pause.
    next_retry: Option<Instant>,
    /// The last waiting job that was looked at, if the next look is for those after it.
    looked_at: Option<JobId>,
    /// When the log was last told that the store cannot be read.
    complained_at: Option<Instant>,
    repository: Arc<JobRepository>,
    free: Vec<Slot>,
    /// Each with the token that stops it.
    running: HashMap<JobKey, CancellationToken>,
    attempts: JoinSet<(Slot, JobKey)>,
}

impl Scheduler {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let period = if self.repository.is_shared() { SHARED_LOOK_PERIOD } else { LOOK_PERIOD };
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let drained = loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Look) => {}
                    Some(Command::Stop(key)) => self.stop(&key),
                    Some(Command::Drain(drained)) => break Some(drained),
                    None => break None,
                },
                Some(Ok((slot, key))) = self.attempts.join_next() => self.ended(slot, key),
                () = self.begin.notified(), if !self.begun => self.begun = true,
                _ = ticks.tick(), if self.begun => {}
                () = due(self.next_retry) => {}
            }
            if let Err(cause) = self.fill().await {
                self.complain(&cause);
            }
        };
        self.running.keys().for_each(|key| self.stop(key));
        while self.attempts.join_next().await.is_some() {}
        if let Some(drained) = drained {
            // The caller may have given up waiting.
            let _ = drained.send(());
        }
    }

    /// Tells the log that the store cannot be read, less often than it is tried.
    fn complain(&mut self, cause: &UpdateError<Refused>) {
        if self.complained_at.is_none_or(|complained_at| complained_at.elapsed() >= LOOK_PERIOD) {
            self.complained_at = Some(Instant::now());
            tracing::error!(%cause, "the job store cannot be read; no job is started");
        }
    }

    /// Puts waiting jobs into free slots, oldest first except for those in a pause, and stops those whose cancellation
    /// was stored late. Where too many wait for one look, the next one goes on after them.
    async fn fill(&mut self) -> Result<(), UpdateError<Refused>> {
        self.next_retry = None;
        // A server that trains nothing has no slots.
        if !self.begun || (self.free.is_empty() && self.running.is_empty()) {
            return Ok(());
        }
        if !self.recovered {
            let is_done = recover(&self.repository, &self.running, self.attempts_max).await?;
            // Jobs that servers share may be abandoned at any time.
            self.recovered = is_done && !self.repository.is_shared();
            if !is_done {
                return Ok(());
            }
        }
        let Active { jobs, last } = self.repository.active(self.looked_at).await?;
        self.retries.keep_waiting(&jobs);
        for job in jobs {
            match (&job.state, self.running.contains_key(&job.key)) {
                (JobState::Cancelling, true) => self.stop(&job.key),
                (JobState::Queued, false) if !self.has_data(&job) => {}
                (JobState::Queued, false) => match self.retries.paused_until(&job) {
                    Some(until) => {
                        self.next_retry = Some(self.next_retry.map_or(until, |next| next.min(until)));
                    }
                    None => self.run_in_a_slot(job.key),
                },
                _ => {}
            }
        }
        // Jobs that cannot run here do not keep it from those behind them.
        self.looked_at = last.filter(|_| !self.free.is_empty());
        Ok(())
    }

    /// Whether the gallery that a job learns from is here; its chips come with its checkpoints.
    fn has_data(&self, job: &Job) -> bool {
        let is_here = |name: &GalleryName| self.galleries.holds(&job.key.tenant, name);
        job.saved_steps > 0 || job.order.gallery.as_ref().is_none_or(is_here)
    }

    fn run_in_a_slot(&mut self, key: JobKey) {
        let Some(slot) = self.free.pop() else { return };
        let stop = CancellationToken::new();
        self.running.insert(key.clone(), stop.clone());
        self.attempts.spawn(attempt(slot, key, stop));
    }

    fn stop(&self, key: &JobKey) {
        if let Some(stop) = self.running.get(key) {
            stop.cancel();
        }
    }

    fn ended(&mut self, slot: Slot, key: JobKey) {
        self.running.remove(&key);
        self.free.push(slot);
        self.retries.attempt_ended(key);
    }
}

/// Runs an attempt, and returns its slot whatever the outcome.
async fn attempt(slot: Slot, key: JobKey, stop: CancellationToken) -> (Slot, JobKey) {
    // Otherwise it was cancelled or deleted while it waited, or another server runs it.
    let Some(claimed) = slot.repository.claim(&key).await else { return (slot, key) };
    let hold = claimed.hold.clone();
    if let Err(cause) = tokio::spawn(slot.clone().attempt(claimed, stop)).await {
        // The process was killed as its handle was dropped.
        tracing::error!(%cause, job = %key.id, "supervising a job failed");
        let failure = Failure::new(FailureReason::Crashed, "the server could not supervise the process");
        slot.repository.update_surely(&hold, move |edit| edit.change(Change::Fail(failure.clone()))).await;
    }
    (slot, key)
}
