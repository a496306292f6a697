//! One attempt at a job: its process from start to end, however it ends.

use std::future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::child::{ChildMessage, ExitReport, Instructions, MODEL};
use super::chips;
use super::edit::Edit;
use super::failure::{Failure, io_reason};
use super::hold::{Claimed, Hold};
use super::job::{Job, JobId, JobKey};
use super::lease::Lease;
use super::lines::{Lines, Log};
use super::outcome::{AttemptOutcome, Death, MemoryKills, settle};
use super::paths::ShownPaths;
use super::rankings;
use super::report::{Rankings, RunEvent};
use super::settings::Settings;
use super::slot::Slot;
use super::state::{JobState, Refused};
use crate::durable::discard_folder;
use crate::embedding::ModelDigest;
use crate::memory;
use crate::metrics;
use crate::postgres::FolderError;
use crate::processor::SPINS_OF_TRAINING;
use crate::reason::FailureReason;

/// Lines that wait to be stored; a process that writes more has to wait.
const LINES_MAX: usize = 256;
/// How long a pipe may stay open after its process has ended.
const PIPE_MAX: Duration = Duration::from_secs(5);
/// Heartbeat periods without a sign of life after which a process counts as hung.
const BEATS: f64 = 4.0;
/// Between two attempts to fetch a job's folder from a database that cannot be used.
const FETCH_PAUSE: Duration = Duration::from_secs(1);

impl Slot {
    /// Runs a job that was started: supervises its process to the end, and stores the outcome.
    pub async fn attempt(self, claimed: Claimed, stop: CancellationToken) {
        let Claimed { job, hold } = &claimed;
        let lease = Lease::keep(&self.repository, hold);
        let outcome = match self.begin(&claimed, &stop, &lease.lost).await {
            Ok(process) => process.supervise(stop, lease.lost.clone()).await,
            Err(outcome) => outcome,
        };
        let outcome = match outcome {
            AttemptOutcome::Finished { model } => self.keep(hold, model).await,
            outcome @ (AttemptOutcome::Stopped | AttemptOutcome::Failed(_)) => outcome,
        };
        let outcome = match outcome {
            AttemptOutcome::Failed(Failure { reason, message }) => {
                AttemptOutcome::Failed(Failure::new(reason, self.paths(job).relative(&message)))
            }
            other => other,
        };
        let attempts_max = self.settings.attempts_max;
        let after = self
            .repository
            .update_surely(hold, move |edit| settle(edit, outcome.clone(), attempts_max))
            .await;
        drop(lease);
        metrics::job_slot_free(self.number);
        let is_finished = after.as_ref().is_some_and(|job| matches!(job.state, JobState::Finished { .. }));
        self.clear(job.key.id, is_finished).await;
        if let Some(job) = after {
            let (id, state) = (job.key.id, job.state.name().text());
            tracing::info!(job = %id, attempt = job.attempt, state, "an attempt ended");
        }
    }

    /// Removes what is not needed any more from the folder of a job whose attempt is stored. Where servers share jobs,
    /// the next attempt may be another server's, and fetches what it needs.
    async fn clear(&self, id: JobId, is_finished: bool) {
        let (folder, is_shared) = (self.settings.job_folder(id), self.repository.is_shared());
        let clear = move || match (is_shared, is_finished) {
            (true, _) => leave(&folder),
            // Only once its end is on disk: an attempt that has to be repeated learns from the same chips.
            (false, true) => chips::discard(&folder),
            (false, false) => {}
        };
        let _ = spawn_blocking(clear).await;
    }

    /// Fetches what the process needs, and starts it.
    async fn begin(
        &self,
        claimed: &Claimed,
        stop: &CancellationToken,
        lost: &CancellationToken,
    ) -> Result<Process, AttemptOutcome> {
        let Claimed { job, hold } = claimed;
        self.fetch_folder(hold, stop, lost).await?;
        chips::fetch(self, claimed, stop).await?;
        if !self.repository.keep_folder_surely(hold, &self.settings.job_folder(job.key.id), &[]).await {
            return Err(AttemptOutcome::Stopped);
        }
        self.start(claimed).await.map_err(AttemptOutcome::Failed)
    }

    /// Fetches the chips and checkpoints that another server may have left, waiting for as long as the database cannot be
    /// used.
    async fn fetch_folder(
        &self,
        hold: &Hold,
        stop: &CancellationToken,
        lost: &CancellationToken,
    ) -> Result<(), AttemptOutcome> {
        let folder = self.settings.job_folder(hold.key.id);
        loop {
            match self.repository.fetch_folder(hold, &folder).await {
                Ok(()) => return Ok(()),
                Err(FolderError::Io { path, cause }) => {
                    let message = format!("its checkpoints cannot be fetched: {}: {cause}", path.display());
                    let failure = Failure::new(io_reason(&cause, FailureReason::NotStarted), message);
                    return Err(AttemptOutcome::Failed(failure));
                }
                Err(cause @ FolderError::Database(_)) => {
                    tracing::error!(%cause, job = %hold.key.id, "waiting for the checkpoints of a job");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(FETCH_PAUSE) => {}
                () = stop.cancelled() => return Err(AttemptOutcome::Stopped),
                () = lost.cancelled() => return Err(AttemptOutcome::Stopped),
            }
        }
    }

    async fn start(&self, claimed: &Claimed) -> Result<Process, Failure> {
        let Claimed { job, hold } = claimed;
        let not_started = |cause: io::Error| {
            Failure::new(io_reason(&cause, FailureReason::NotStarted), format!("not started: {cause}"))
        };
        let folder = self.settings.job_folder(job.key.id);
        std::fs::create_dir_all(&folder).map_err(not_started)?;
        self.instructions(job).write(&folder).map_err(not_started)?;
        let log = Log::open(&folder).map_err(not_started)?;
        let mut child = self.spawner.spawn(self.command(folder)).await.map_err(not_started)?;
        let (lines, heard) = mpsc::channel(LINES_MAX);
        if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
            tokio::spawn(forward(out, lines.clone(), Line::Said));
            tokio::spawn(forward(err, lines, Line::Logged));
        }
        Ok(Process {
            hold: hold.clone(),
            stdin: child.stdin.take(),
            child,
            heard,
            log: Arc::new(Mutex::new(log)),
            paths: self.paths(job),
            kills: MemoryKills::now(),
            slot: self.clone(),
            words: None,
            last_line: None,
        })
    }

    async fn keep(&self, hold: &Hold, model: ModelDigest) -> AttemptOutcome {
        let (model_sink, folder) = (Arc::clone(&self.model_sink), self.settings.job_folder(hold.key.id));
        let fence = self.repository.is_shared().then(|| hold.fence());
        let keep = move || model_sink.keep(&folder.join(MODEL), model, fence);
        match spawn_blocking(keep).await {
            Ok(Ok(())) => AttemptOutcome::Finished { model },
            Ok(Err(failure)) => AttemptOutcome::Failed(failure),
            Err(cause) => {
                AttemptOutcome::Failed(Failure::new(FailureReason::ModelNotKept, cause.to_string()))
            }
        }
    }

    fn paths(&self, job: &Job) -> ShownPaths {
        ShownPaths::of_job(&self.settings, &self.settings.job_folder(job.key.id))
    }

    fn instructions(&self, job: &Job) -> Instructions {
        let settings = &self.settings;
        Instructions {
            name: format!("{}, attempt {}", job.key.id, job.attempt),
            tenant: job.key.tenant.to_string(),
            device: settings.device.clone(),
            threads: self.threads_per_process(),
            processes: settings.processes,
            nice: settings.nice,
            memory_bytes_max: settings.memory_bytes_max,
            heartbeat_seconds: settings.silence_max.as_secs_f64() / BEATS,
            lock_seconds_max: settings.grace.as_secs_f64(),
            data_roots: settings.data_roots.clone(),
            from_chips: job.order.gallery.is_some(),
            config_toml: job.order.config_toml.clone(),
        }
    }

    fn threads_per_process(&self) -> usize {
        (self.settings.threads / self.settings.processes).max(1)
    }

    fn command(&self, folder: PathBuf) -> Command {
        let mut command = Command::new(&self.settings.program);
        command.args(["train", "--job"]).arg(folder);
        // Signals from the server's terminal must not reach its jobs: the server stops them itself.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // libgomp reads these before any of our code runs; threads that spin for long would take CPU time that serving needs.
        command
            .env("OMP_WAIT_POLICY", "PASSIVE")
            .env("OMP_NUM_THREADS", self.threads_per_process().to_string());
        command.envs(memory::OF_TRAINING).envs([SPINS_OF_TRAINING]);
        command
    }
}

enum Line {
    Said(String),
    Logged(String),
}

async fn forward(
    pipe: impl AsyncRead + Unpin + Send + 'static,
    lines: mpsc::Sender<Line>,
    kind: fn(String) -> Line,
) {
    let mut pipe = Lines::new(BufReader::new(pipe));
    while let Some(line) = pipe.next().await {
        if lines.send(kind(line)).await.is_err() {
            return;
        }
    }
}

/// A running process.
struct Process {
    hold: Hold,
    child: Child,
    stdin: Option<ChildStdin>,
    heard: mpsc::Receiver<Line>,
    log: Arc<Mutex<Log>>,
    paths: ShownPaths,
    kills: MemoryKills,
    slot: Slot,
    /// The end that the process reported.
    words: Option<ExitReport>,
    /// Of its log.
    last_line: Option<String>,
}

/// Output of a process that is being stored.
struct Storing {
    /// Whether the job still exists.
    done: Pin<Box<dyn Future<Output = bool> + Send>>,
    /// The number of the sync that the process waits for.
    sync: Option<u64>,
}

/// Deadlines after which action is taken on a misbehaving process.
struct Clock {
    /// It has been silent for too long.
    silent_at: Instant,
    /// It was asked to stop, and has not.
    kill_at: Option<Instant>,
    /// It has ended, but its pipes are still open.
    deaf_at: Option<Instant>,
}

impl Process {
    /// Runs until the process has ended and all its output is stored. While the store cannot be used, everything else
    /// continues.
    async fn supervise(mut self, stop: CancellationToken, lost: CancellationToken) -> AttemptOutcome {
        let Settings { silence_max, grace, .. } = *self.slot.settings;
        let mut clock = Clock { silent_at: Instant::now() + silence_max, kill_at: None, deaf_at: None };
        let (mut exit, mut silent, mut open, mut is_lost) = (None, None, true, false);
        let mut storing = None;
        let mut lines = Vec::with_capacity(LINES_MAX);
        loop {
            tokio::select! {
                count = self.heard.recv_many(&mut lines, LINES_MAX), if open && storing.is_none() => {
                    open = count > 0;
                    storing = self.hear(std::mem::take(&mut lines));
                    clock.silent_at = Instant::now() + silence_max;
                }
                has_job = stored(&mut storing) => {
                    let sync = storing.take().and_then(|storing| storing.sync);
                    self.answer(has_job, sync).await;
                    // It may have been waiting for this.
                    clock.silent_at = Instant::now() + silence_max;
                }
                ended = self.child.wait(), if exit.is_none() => {
                    exit = Some(ended.unwrap_or_default());
                    clock.deaf_at = Some(Instant::now() + PIPE_MAX);
                }
                () = stop.cancelled(), if clock.kill_at.is_none() => {
                    self.signal(Signal::TERM);
                    clock.kill_at = Some(Instant::now() + grace);
                }
                () = lost.cancelled(), if !is_lost => {
                    // Another server may start the next attempt at any time: this one has no time left to save anything.
                    is_lost = true;
                    self.signal(Signal::KILL);
                    clock.kill_at = Some(Instant::now() + grace);
                }
                () = sleep_until(clock.silent_at), if exit.is_none() && clock.kill_at.is_none() && silent.is_none() => {
                    let waits = storing.as_ref().is_some_and(|storing| storing.sync.is_some());
                    if waits || !self.heard.is_empty() {
                        clock.silent_at = Instant::now() + silence_max;
                    } else {
                        silent = Some(silence_max);
                        self.signal(Signal::KILL);
                    }
                }
                () = due(clock.kill_at), if exit.is_none() => {
                    self.signal(Signal::KILL);
                    clock.kill_at = Some(Instant::now() + grace);
                }
                () = due(clock.deaf_at) => {
                    // What it wrote before is still received.
                    self.heard.close();
                    clock.deaf_at = None;
                }
            }
            if let (Some(exit), false, None) = (exit, open, &storing) {
                return self.death(exit, clock.kill_at.is_some(), silent).outcome();
            }
        }
    }

    /// Processes output of the process, and returns the future that stores it, if there is anything to store.
    fn hear(&mut self, lines: Vec<Line>) -> Option<Storing> {
        let mut sync = None;
        let mut begun = None;
        let mut events = Vec::with_capacity(lines.len());
        for line in lines {
            match line {
                Line::Logged(line) => events.push(RunEvent::Log(line)),
                Line::Said(line) => match serde_json::from_str(&line) {
                    Ok(ChildMessage::Begun { steps }) => begun = Some(steps),
                    Ok(ChildMessage::Alive) => {}
                    Ok(ChildMessage::Sync { number }) => sync = Some(number),
                    Ok(ChildMessage::Exit(report)) => self.words = Some(report),
                    Ok(ChildMessage::Run(event)) => events.push(event),
                    // Not part of our protocol, but perhaps useful to a reader of the log.
                    Err(_) => events.push(RunEvent::Log(line)),
                },
            }
        }
        for event in &mut events {
            if let RunEvent::Log(line) = event {
                *line = self.paths.relative(line);
            }
        }
        self.note(&events);
        if begun.is_none() && events.is_empty() {
            return sync.map(|_| Storing { done: Box::pin(future::ready(true)), sync });
        }
        let (slot, hold, log) = (self.slot.clone(), self.hold.clone(), Arc::clone(&self.log));
        let done = async move {
            let saved: Vec<u64> = events.iter().filter_map(RunEvent::saved_steps).collect();
            if !saved.is_empty() {
                let folder = slot.settings.job_folder(hold.key.id);
                // Whoever reads that a checkpoint was saved can rely on it, wherever the job goes on.
                if !slot.repository.keep_folder_surely(&hold, &folder, &saved).await {
                    return false;
                }
            }
            let events = with_pictures(&slot, &hold.key, events).await;
            let stored = move |edit: &mut Edit| store(begun, &events, edit, &log);
            slot.repository.update_surely(&hold, stored).await.is_some()
        };
        Some(Storing { done: Box::pin(done), sync })
    }

    /// Notifies the process that its output is stored, if it waits for that.
    async fn answer(&mut self, has_job: bool, sync: Option<u64>) {
        if !has_job {
            // The job no longer exists.
            self.signal(Signal::KILL);
        }
        if let (Some(number), Some(stdin)) = (sync, &mut self.stdin)
            && stdin.write_all(format!("{number}\n").as_bytes()).await.is_err()
        {
            // It has ended, which is noticed elsewhere.
            self.stdin = None;
        }
    }

    fn note(&mut self, events: &[RunEvent]) {
        self.kills.look();
        let slot = self.slot.number;
        for event in events {
            match event {
                // Rust ends a panic message with a hint on how to see more of it.
                RunEvent::Log(line) if line.is_empty() || line.starts_with("note: ") => {}
                RunEvent::Log(line) => self.last_line = Some(line.clone()),
                RunEvent::Progress(progress) => {
                    let loss = progress.losses.get("total").copied().unwrap_or(f64::NAN);
                    metrics::job_step(slot, progress.step_seconds, progress.images_per_second, loss);
                    if progress.processes > 1 {
                        metrics::job_all_reduce(slot, progress.all_reduce_seconds);
                    }
                }
                RunEvent::Evaluated(evaluation) if evaluation.protocol == "all" => {
                    metrics::job_map(slot, evaluation.mean_average_precision);
                }
                RunEvent::Evaluated(_)
                | RunEvent::Started(_)
                | RunEvent::Delivered(_)
                | RunEvent::Rankings(_)
                | RunEvent::Saved(_) => {}
            }
        }
    }

    fn death(self, exit: ExitStatus, asked: bool, silent: Option<Duration>) -> Death {
        let memory_kill = self.kills.happened();
        Death { words: self.words, last_line: self.last_line, exit, asked, silent, memory_kill }
    }

    /// A process that has ended receives no signal, and its number is not reused before it was waited for.
    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(Err(cause)) = pid.map(|pid| kill_process(pid, signal)) {
            tracing::warn!(%cause, job = %self.hold.key.id, "a training process takes no signal");
        }
    }
}

/// Removes the folder of a job that the database has.
fn leave(folder: &Path) {
    if folder.exists()
        && let Err(cause) = discard_folder(folder)
    {
        tracing::warn!(%cause, place = %folder.display(), "what was fetched for a job stays until the next start");
    }
}

/// Waits until the given time; indefinitely if there is none.
pub async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => future::pending().await,
    }
}

/// Whether the job still exists after storing; never resolves if nothing is being stored.
async fn stored(storing: &mut Option<Storing>) -> bool {
    match storing {
        Some(storing) => storing.done.as_mut().await,
        None => future::pending().await,
    }
}

/// The events together with the ranking images that the process left in its folder; a job continues without them.
async fn with_pictures(slot: &Slot, key: &JobKey, events: Vec<RunEvent>) -> Vec<RunEvent> {
    let mut all = Vec::with_capacity(events.len());
    for event in events {
        let RunEvent::Rankings(Rankings { epoch, .. }) = event else {
            all.push(event);
            continue;
        };
        let folder = slot.settings.job_folder(key.id);
        let fetched = spawn_blocking(move || rankings::fetch(&folder, epoch)).await;
        match fetched.unwrap_or_else(|cause| Err(io::Error::other(cause))) {
            Ok(rankings) => all.push(RunEvent::Rankings(rankings)),
            Err(cause) => tracing::warn!(%cause, job = %key.id, "rankings of a job are lost"),
        }
    }
    all
}

/// `begun`: the steps after which the run begins, if the process has reported that.
fn store(begun: Option<u64>, events: &[RunEvent], edit: &mut Edit, log: &Mutex<Log>) -> Result<(), Refused> {
    if !matches!(edit.job().state, JobState::Running | JobState::Cancelling) {
        return Err(Refused::Active);
    }
    if let Some(steps) = begun {
        edit.begin(steps);
    }
    for event in events {
        if let RunEvent::Log(line) = event
            && let Err(cause) = log.lock().unwrap_or_else(PoisonError::into_inner).write(line)
        {
            tracing::warn!(%cause, job = %edit.job().key.id, "a line of a job's log is lost");
        }
        edit.report(event.clone());
    }
    Ok(())
}
