//! Watching a training job from a terminal: live, across lost connections, until it ends or the user leaves.

use std::time::Duration;

use shipreid::client::{ClientError, Followed, Follower, state_name};
use shipreid::wire::train_event::Event;
use shipreid::wire::{
    CheckpointChoice, DeliveredCheckpoint, EvaluationResult, JobState, StartingPoint, TensorShape,
    TrainEvent, TrainProgress, TrainingJob,
};
use tokio::signal;

use super::training_bar::{Step, TrainingBar};
use super::{FAILED, Failure, output};

/// Exit code after a job that was cancelled.
const CANCELLED: u8 = 3;
/// Exit code after Ctrl-C, as in shells.
pub const INTERRUPTED: u8 = 130;

/// A notification for the watcher.
pub enum Notice<'a> {
    Event(&'a TrainEvent),
    /// The connection is lost; it is retried after a delay.
    Lost {
        cause: &'a str,
        wait: Duration,
    },
    /// The connection is restored.
    Back,
}

/// How a watch ended.
pub enum Watched {
    /// The job has ended.
    Ended(Box<TrainingJob>),
    /// The last requested event was reported.
    Read,
    /// Ctrl-C.
    Left,
}

/// When a watch ends.
#[derive(Clone, Copy)]
pub enum Until {
    End,
    Event(u64),
}

/// Calls `see` for every event of a job.
///
/// # Errors
/// The server refuses permanently.
pub async fn watch(
    follower: &mut Follower,
    until: Until,
    see: &mut dyn FnMut(Notice),
) -> Result<Watched, ClientError> {
    let mut lost = false;
    loop {
        if let Until::Event(last) = until
            && follower.next_event() > last
        {
            return Ok(Watched::Read);
        }
        let followed = tokio::select! {
            followed = follower.next() => followed?,
            // Without a handler for it, Ctrl-C ends the process.
            Ok(()) = signal::ctrl_c() => return Ok(Watched::Left),
        };
        match followed {
            Followed::Lost { cause, wait } => {
                if !lost {
                    see(Notice::Lost { cause: &cause, wait });
                }
                lost = true;
            }
            Followed::Event(event) => {
                if std::mem::take(&mut lost) {
                    see(Notice::Back);
                }
                see(Notice::Event(&event));
            }
            Followed::Ended(job) => return Ok(Watched::Ended(job)),
        }
    }
}

/// The starting point of a job, for people.
pub fn lines_of_start(start: &StartingPoint) -> Vec<String> {
    let StartingPoint { path, tensors_taken, tensors_kept, blocks_taken, blocks_total, .. } = start;
    let mut lines = vec![format!(
        "starts from {path}: {tensors_taken} tensors taken, {tensors_kept} kept, {blocks_taken} of {blocks_total} blocks"
    )];
    if !start.weights.is_empty() || !start.prefix.is_empty() {
        lines.push(format!(
            "its weights are under \"{}\", names begin with \"{}\"",
            start.weights, start.prefix
        ));
    }
    if !start.warning.is_empty() {
        lines.push(format!("warning: {}", start.warning));
    }
    lines.extend(start.untaken.iter().map(|tensor| {
        let shape = |shape: &Option<TensorShape>| shape.as_ref().map(|shape| format!("{:?}", shape.lengths));
        let found = shape(&tensor.found).map(|found| format!(" {found}")).unwrap_or_default();
        let expected =
            shape(&tensor.expected).map(|expected| format!(", not {expected}")).unwrap_or_default();
        format!("not taken: {}{found}{expected}: {}", tensor.name, tensor.reason)
    }));
    let more = start.untaken_total.saturating_sub(u32::try_from(start.untaken.len()).unwrap_or(u32::MAX));
    if more > 0 {
        lines.push(format!("not taken: {more} more, which the log of the job lists"));
    }
    if !start.kept.is_empty() {
        let more = tensors_kept.saturating_sub(u32::try_from(start.kept.len()).unwrap_or(u32::MAX));
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        lines.push(format!("kept as they were: {}{more}", start.kept.join(", ")));
    }
    lines
}

/// The checkpoint of a job's model, for people.
pub fn line_of_delivered(delivered: &DeliveredCheckpoint) -> String {
    let DeliveredCheckpoint { epoch, step, evaluation, .. } = delivered;
    let choice = match delivered.choice() {
        CheckpointChoice::Best => "the best by validation",
        CheckpointChoice::Last => "the last one",
        CheckpointChoice::Unspecified => "chosen as a newer server knows",
    };
    let scores =
        evaluation.as_ref().map_or_else(String::new, |EvaluationResult { protocol, map, .. }| {
            format!(": mAP ({protocol}) {:.1} %", map * 100.0)
        });
    format!("the model has the checkpoint after epoch {epoch} (step {step}), {choice}{scores}")
}

/// The live bar of a job, with one line per epoch and per evaluation.
pub struct Screen {
    bar: TrainingBar,
    epoch: Epoch,
    state: Option<(JobState, u32)>,
}

/// The steps of an epoch seen so far.
#[derive(Default)]
struct Epoch {
    number: u32,
    steps: u32,
    losses: f64,
    accuracies: Option<f64>,
}

impl Screen {
    pub fn new() -> Self {
        Self { bar: TrainingBar::new(), epoch: Epoch::default(), state: None }
    }

    pub fn show(&mut self, notice: Notice) {
        match notice {
            Notice::Event(event) => self.event(event),
            Notice::Lost { cause, wait } => {
                let seconds = wait.as_secs_f64();
                self.bar.line(&format!("connection lost: {cause}; retrying in {seconds:.1} s"));
            }
            Notice::Back => self.bar.line("reconnected"),
        }
    }

    pub fn finish(&mut self) {
        self.close_epoch();
        self.bar.finish();
    }

    fn event(&mut self, event: &TrainEvent) {
        match &event.event {
            Some(Event::Job(job)) => self.job(job),
            Some(Event::Progress(progress)) => self.progress(progress),
            Some(Event::Evaluation(result)) => {
                self.close_epoch();
                let EvaluationResult { protocol, epoch, map, rank1, rank5, rank10, .. } = result;
                self.bar.evaluation(*epoch, protocol, [*map, *rank1, *rank5, *rank10]);
            }
            Some(Event::Checkpoint(saved)) if saved.best => {
                self.bar.line(&format!("step {}: a checkpoint is saved, the best so far", saved.step));
            }
            Some(Event::StartingPoint(start)) => {
                lines_of_start(start).iter().for_each(|line| self.bar.line(line));
            }
            Some(Event::DeliveredCheckpoint(delivered)) => {
                self.close_epoch();
                self.bar.line(&line_of_delivered(delivered));
            }
            Some(Event::Checkpoint(_) | Event::LogLine(_) | Event::Rankings(_)) | None => {}
        }
    }

    fn job(&mut self, job: &TrainingJob) {
        if self.state.replace((job.state(), job.attempt)) == Some((job.state(), job.attempt)) {
            return;
        }
        self.close_epoch();
        let attempt = if job.attempt > 1 { format!(", attempt {}", job.attempt) } else { String::new() };
        self.bar.line(&format!("{} is {}{attempt}", job.job_id, state_name(job.state())));
    }

    fn progress(&mut self, progress: &TrainProgress) {
        let loss = progress.losses.get("total").copied().unwrap_or(f64::NAN);
        if progress.epoch != self.epoch.number {
            self.close_epoch();
            self.epoch.number = progress.epoch;
        }
        self.epoch.add(loss, progress.accuracy);
        let left = progress.remaining.and_then(|left| Duration::try_from(left).ok());
        self.bar.show(&Step {
            epoch: progress.epoch,
            position: progress.step,
            length: progress.steps_total,
            loss,
            rate: progress.learning_rate,
            images_per_second: progress.images_per_second,
            seconds_left: left.unwrap_or_default().as_secs_f64(),
        });
    }

    /// Prints the means of the epoch in one line.
    fn close_epoch(&mut self) {
        let Epoch { number, steps, losses, accuracies } = std::mem::take(&mut self.epoch);
        if steps > 0 {
            let mean = |sum: f64| sum / f64::from(steps);
            self.bar.epoch(number, mean(losses), accuracies.map(mean), None);
        }
    }
}

impl Epoch {
    fn add(&mut self, loss: f64, accuracy: Option<f64>) {
        self.steps += 1;
        self.losses += loss;
        if let Some(accuracy) = accuracy {
            *self.accuracies.get_or_insert(0.0) += accuracy;
        }
    }
}

/// Watches a job to its end with a live bar; the exit code reports how it ended.
///
/// # Errors
/// The server refuses, the job failed or was cancelled, or the user has left.
pub async fn watch_to_the_end(mut follower: Follower, endpoint: &str) -> Result<(), Failure> {
    let mut screen = Screen::new();
    let watched = watch(&mut follower, Until::End, &mut |notice| screen.show(notice)).await;
    screen.finish();
    match watched.map_err(refused)? {
        Watched::Ended(job) => tell_end(&job, endpoint),
        Watched::Left | Watched::Read => {
            tell_way_back(&follower, endpoint);
            Err(Failure::Told(INTERRUPTED))
        }
    }
}

/// Prints how a job ended and what can be done next.
fn tell_end(job: &TrainingJob, endpoint: &str) -> Result<(), Failure> {
    let (id, here) = (&job.job_id, at(endpoint));
    match job.state() {
        JobState::Failed => {
            output::remark(format_args!("{id} failed: {} ({})", job.failure_message, job.failure_reason));
            output::remark(format_args!(
                "  to read its log:                     shipreid jobs logs {id}{here}"
            ));
            output::remark(format_args!(
                "  to resume from its last checkpoint:  shipreid jobs resume {id}{here}"
            ));
            Err(Failure::Told(FAILED))
        }
        JobState::Cancelled => {
            output::remark(format_args!("{id} was cancelled"));
            output::remark(format_args!(
                "  to resume from its last checkpoint:  shipreid jobs resume {id}{here}"
            ));
            Err(Failure::Told(CANCELLED))
        }
        _ => {
            output::say(format_args!("{id} produced model {}", job.model));
            output::say(format_args!(
                "  to activate it:                      shipreid model activate {}{here}",
                job.model
            ));
            output::say(format_args!(
                "  for a report of the run:             shipreid jobs report {id}{here}"
            ));
            Ok(())
        }
    }
}

/// Prints how to watch the job again, which keeps running.
pub fn tell_way_back(follower: &Follower, endpoint: &str) {
    let here = at(endpoint);
    match follower.job_id() {
        Some(id) => {
            output::say(format_args!("{id} keeps running"));
            output::say(format_args!(
                "  to watch it again:                   shipreid jobs watch {id} --from {}{here}",
                follower.next_event()
            ));
            output::say(format_args!(
                "  to cancel it:                        shipreid jobs cancel {id}{here}"
            ));
        }
        None => {
            output::say("the server has not answered yet");
            output::say(format_args!("  to see whether it has the job:       shipreid jobs list{here}"));
        }
    }
}

/// A refused configuration with everything that is wrong with it, one line each.
pub fn refused(cause: ClientError) -> Failure {
    let violations = cause.violations();
    if violations.is_empty() {
        return cause.into();
    }
    for violation in &violations {
        let field = violation.field.strip_prefix("config_toml.").unwrap_or(&violation.field);
        output::remark(format_args!("{field}: {}", violation.description));
    }
    Failure::Unusable(anyhow::anyhow!("job rejected: {} invalid", count(violations.len())))
}

fn count(fields: usize) -> String {
    if fields == 1 { "one field is".into() } else { format!("{fields} fields are") }
}

/// The flag that selects the same server again.
fn at(endpoint: &str) -> String {
    if endpoint == super::ENDPOINT { String::new() } else { format!(" --endpoint {endpoint}") }
}
