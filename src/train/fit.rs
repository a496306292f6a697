//! The training loop: epochs of batches, rates, checkpoints. It does not depend on how events are reported.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::checkpoint::{
    Checkpoints, DamagedCheckpoint, Newest, Progress, checkpoint_bytes, parse_checkpoint,
};
use super::fit_error::FitError;
use super::learn::{LearnError, Learner, LearnerState, LossTerms, Samples, Source};
use super::loader::in_order;
use super::peers::Peers;
use super::random::{Purpose, stream};
use super::ranked_lists::RankedLists;
use super::schedule::{Rates, Schedule};
use super::validation::{Validation, ValidationScores};
use crate::evaluate::Summary;

/// Duration and intervals of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    pub seed: u64,
    pub schedule: Schedule,
    /// Epochs between checkpoints; the last epoch always writes one.
    pub checkpoint_epochs: u32,
    /// Epochs between evaluations. The first evaluation precedes the first step and the last is at
    /// the end. 0: none.
    pub validation_epochs: u32,
    /// Threads that prepare batches.
    pub loaders: usize,
}

/// The events of a run, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum FitEvent {
    /// A checkpoint differs from what was written: the run resumes from an earlier one, or starts over.
    PassedOver(DamagedCheckpoint),
    /// The run starts, or resumes after these steps.
    Started {
        steps: u64,
        epochs: u32,
    },
    /// It resumes with another number of processes: its steps are no longer those of an uninterrupted run.
    OtherWorldSize {
        steps: u64,
        before: usize,
        now: usize,
    },
    Step {
        progress: Progress,
        steps_in_epoch: u64,
        terms: LossTerms,
        rates: Rates,
        /// Of all processes together.
        images_per_second: f64,
        /// Until the end of the run, at the pace of this process.
        seconds_left: f64,
        /// Processes that take the step.
        processes: usize,
        /// The part of the step in which this process averaged gradients with the others.
        all_reduce_seconds: f64,
    },
    EpochDone {
        epoch: u32,
        /// Over the epoch's steps in this process; absent if an earlier process completed them all.
        means: Option<Means>,
    },
    /// The evaluation of the weights at the end of an epoch; epoch 0 is before the first step.
    Evaluated {
        epoch: u32,
        /// Steps since the start.
        steps: u64,
        summaries: Vec<Summary>,
        /// At the first, second, fourth, eighth ... and the last evaluation of a run.
        sample: Option<RankedLists>,
    },
    CheckpointSaved {
        progress: Progress,
    },
}

/// What a run that resumes with another number of processes says.
pub fn other_world_size(before: usize, now: usize) -> String {
    format!("resuming with {now} processes instead of {before}: not the steps of an uninterrupted run")
}

/// Averages over the steps of an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Means {
    pub loss: f64,
    pub accuracy: f64,
    /// Of all processes together.
    pub images_per_second: f64,
    /// The share of the time in which this process averaged gradients with others; 0 without any.
    pub all_reduce_share: f64,
}

/// The parts of a run other than the learner.
#[derive(Clone, Copy, Debug)]
pub struct FitInputs<'a, S> {
    pub plan: &'a Plan,
    pub source: &'a S,
    pub validation: Option<&'a Validation>,
    /// Of rank 0; the others neither read nor write any.
    pub checkpoints: &'a Checkpoints,
    pub peers: &'a dyn Peers,
}

/// Trains to the end of the plan, resuming from the newest checkpoint if there is one, and returns
/// the final state.
///
/// `report` receives every event and may break, in which case a checkpoint is written at the current step. A
/// run that was killed and restarted takes the same steps, bit for bit, as an uninterrupted one.
///
/// # Errors
/// See [`FitError`]; the checkpoints remain valid.
pub fn fit<S: Source>(
    inputs: &FitInputs<S>,
    learner: &mut impl Learner,
    report: &mut dyn FnMut(FitEvent) -> ControlFlow<()>,
) -> Result<LearnerState, FitError> {
    let FitInputs { plan, validation, checkpoints, peers, .. } = *inputs;
    // Rank 0 evaluates for all.
    let validation = validation.filter(|_| peers.leads());
    let Resumed { mut progress, mut stopped } = resume(inputs, learner, report)?;
    if let (Some(validation), 0, 1..) = (validation, progress.steps, plan.validation_epochs) {
        let ValidationScores { summaries, sample } = validation.evaluate(learner, plan.loaders)?;
        stopped |= report(FitEvent::Evaluated { epoch: 0, steps: 0, summaries, sample }).is_break();
    }
    let mut pace = Pace { started: Instant::now(), steps: 0 };
    while !peers.any(stopped)? && progress.epoch <= plan.schedule.epochs {
        let flow = run_epoch(inputs, learner, &mut progress, &mut pace, report)?;
        stopped = peers.any(flow.is_break())?;
        let ended = (progress.steps_of_epoch == 0).then_some(progress.epoch - 1);
        let mut metric = None;
        if let Some((epoch, validation)) = ended.zip(validation)
            && plan.is_due(epoch, plan.validation_epochs)
        {
            let ValidationScores { summaries, sample } = validation.evaluate(learner, plan.loaders)?;
            metric = summaries.first().map(|summary| summary.mean_average_precision);
            let sample = sample.filter(|_| plan.is_shown(epoch));
            stopped |=
                report(FitEvent::Evaluated { epoch, steps: progress.steps, summaries, sample }).is_break();
        }
        let is_due = stopped || ended.is_some_and(|epoch| plan.is_due(epoch, plan.checkpoint_epochs));
        if is_due && peers.leads() {
            save(checkpoints, progress, metric, &learner.state())?;
            stopped |= report(FitEvent::CheckpointSaved { progress }).is_break();
        }
    }
    if progress.epoch <= plan.schedule.epochs { Err(FitError::Stopped) } else { Ok(learner.state()) }
}

/// Where a run starts, and whether it was stopped by then.
struct Resumed {
    progress: Progress,
    stopped: bool,
}

/// Takes up the newest checkpoint of rank 0, if there is one.
fn resume<S>(
    inputs: &FitInputs<S>,
    learner: &mut impl Learner,
    report: &mut dyn FnMut(FitEvent) -> ControlFlow<()>,
) -> Result<Resumed, FitError> {
    let FitInputs { plan, checkpoints, peers, .. } = *inputs;
    let Newest { mut found, damaged, world_size } =
        if peers.leads() { checkpoints.newest()? } else { Newest::default() };
    let mut stopped = false;
    for checkpoint in damaged {
        stopped |= report(FitEvent::PassedOver(checkpoint)).is_break();
    }
    let (before, now) = (world_size, peers.world_size());
    let is_other = found.is_some() && before != now;
    if now > 1 {
        let shared = peers.share(found.as_ref().map(checkpoint_bytes).unwrap_or_default())?;
        found = parse_checkpoint(&shared)?;
    }
    let mut progress = Progress { epoch: 1, steps_of_epoch: 0, steps: 0 };
    if let Some((found, state)) = found {
        learner.restore(state)?;
        progress = found;
    }
    let started = FitEvent::Started { steps: progress.steps, epochs: plan.schedule.epochs };
    stopped |= report(started).is_break();
    if is_other {
        stopped |= report(FitEvent::OtherWorldSize { steps: progress.steps, before, now }).is_break();
    }
    Ok(Resumed { progress, stopped })
}

impl Plan {
    /// Whether something that is due every `period` epochs is due after this one.
    fn is_due(&self, epoch: u32, period: u32) -> bool {
        period > 0 && (epoch.is_multiple_of(period) || epoch == self.schedule.epochs)
    }

    /// Whether rankings are shown after this epoch, at whose end there is an evaluation. The number of
    /// rankings grows only logarithmically with the length of the run.
    fn is_shown(&self, epoch: u32) -> bool {
        epoch == self.schedule.epochs || (epoch / self.validation_epochs).is_power_of_two()
    }
}

/// Saves a state from which a run can resume.
fn save(
    checkpoints: &Checkpoints,
    progress: Progress,
    metric: Option<f64>,
    state: &LearnerState,
) -> Result<(), FitError> {
    match state.not_finite() {
        None => Ok(checkpoints.save(progress, metric, state).map(drop)?),
        Some(name) => {
            let what = format!("{name} has a value that is not finite");
            let Progress { epoch, steps_of_epoch: step, .. } = progress;
            Err(FitError::Diverged { epoch, step, what, checkpoint: checkpoints.newest_place()? })
        }
    }
}

/// The pace of this process.
struct Pace {
    started: Instant,
    steps: u64,
}

impl Pace {
    fn seconds_left(&self, progress: Progress, steps_in_epoch: u64, epochs: u32) -> f64 {
        let later = u64::from(epochs.saturating_sub(progress.epoch)) * steps_in_epoch;
        let left = later + steps_in_epoch.saturating_sub(progress.steps_of_epoch);
        self.started.elapsed().as_secs_f64() / self.steps as f64 * left as f64
    }
}

/// The steps that this process has taken in an epoch.
struct EpochSoFar {
    steps: u32,
    images: usize,
    loss: f64,
    accuracy: f64,
    all_reduce: Duration,
    begun: Instant,
    /// The end of the step before, and what had been spent on means of gradients by then.
    last: (Instant, Duration),
}

/// How one step went.
struct StepPace {
    images_per_second: f64,
    all_reduce_seconds: f64,
}

impl EpochSoFar {
    fn begin(peers: &dyn Peers) -> Self {
        let now = Instant::now();
        let (loss, accuracy, all_reduce) = (0.0, 0.0, Duration::ZERO);
        let last = (now, peers.all_reduced());
        Self { steps: 0, images: 0, loss, accuracy, all_reduce, begun: now, last }
    }

    /// Adds a step that has just ended.
    fn add(&mut self, terms: &LossTerms, images: usize, peers: &dyn Peers) -> StepPace {
        let now = (Instant::now(), peers.all_reduced());
        let (took, all_reduce) = (now.0.duration_since(self.last.0), now.1.saturating_sub(self.last.1));
        self.last = now;
        self.steps += 1;
        self.images += images;
        self.loss += terms.total;
        self.accuracy += terms.accuracy;
        self.all_reduce += all_reduce;
        StepPace {
            images_per_second: images as f64 / took.as_secs_f64(),
            all_reduce_seconds: all_reduce.as_secs_f64(),
        }
    }

    fn means(&self) -> Option<Means> {
        let steps = f64::from(self.steps);
        let seconds = self.last.0.duration_since(self.begun).as_secs_f64();
        (self.steps > 0).then(|| Means {
            loss: self.loss / steps,
            accuracy: self.accuracy / steps,
            images_per_second: self.images as f64 / seconds,
            all_reduce_share: self.all_reduce.as_secs_f64() / seconds,
        })
    }
}

/// The remaining steps of an epoch; afterwards `progress` is at the start of the next one unless
/// the run was stopped.
fn run_epoch<S: Source>(
    inputs: &FitInputs<S>,
    learner: &mut impl Learner,
    progress: &mut Progress,
    pace: &mut Pace,
    report: &mut dyn FnMut(FitEvent) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, FitError> {
    let FitInputs { plan, source, .. } = *inputs;
    let epoch = progress.epoch;
    let items = source.epoch(plan.seed, epoch);
    if items.is_empty() {
        return Err(FitError::EmptyEpoch(epoch));
    }
    let rates = plan.schedule.rates(epoch);
    let mut so_far = EpochSoFar::begin(inputs.peers);
    let left = &items[(progress.steps_of_epoch as usize).min(items.len())..];
    let flow = in_order(
        left,
        plan.loaders,
        |item| source.batch(item, plan.seed, epoch),
        |batch| {
            let (terms, images) = match take_step(inputs, learner, progress, rates, batch) {
                Ok(done) => done,
                Err(cause) => return ControlFlow::Break(Err(cause)),
            };
            let StepPace { images_per_second, all_reduce_seconds } = so_far.add(&terms, images, inputs.peers);
            progress.steps += 1;
            progress.steps_of_epoch += 1;
            pace.steps += 1;
            let steps_in_epoch = items.len() as u64;
            let step = FitEvent::Step {
                progress: *progress,
                steps_in_epoch,
                terms,
                rates,
                images_per_second,
                seconds_left: pace.seconds_left(*progress, steps_in_epoch, plan.schedule.epochs),
                processes: inputs.peers.world_size(),
                all_reduce_seconds,
            };
            match inputs.peers.any(report(step).is_break()) {
                Ok(false) => ControlFlow::Continue(()),
                Ok(true) => ControlFlow::Break(Ok(())),
                Err(cause) => ControlFlow::Break(Err(cause.into())),
            }
        },
    );
    match flow {
        ControlFlow::Break(Err(cause)) => Err(cause),
        ControlFlow::Break(Ok(())) => Ok(ControlFlow::Break(())),
        ControlFlow::Continue(()) => {
            *progress = Progress { epoch: epoch + 1, steps_of_epoch: 0, ..*progress };
            Ok(report(FitEvent::EpochDone { epoch, means: so_far.means() }))
        }
    }
}

/// One step on a readable batch, and the number of images that all ranks learned from.
fn take_step<S>(
    inputs: &FitInputs<S>,
    learner: &mut impl Learner,
    progress: &Progress,
    rates: Rates,
    batch: Result<Samples, String>,
) -> Result<(LossTerms, usize), FitError> {
    let batch = batch.map_err(FitError::Data)?;
    let Progress { epoch, steps_of_epoch, .. } = *progress;
    let mut random = stream(inputs.plan.seed, epoch, steps_of_epoch, Purpose::StochasticDepth);
    // Every rank drops other blocks.
    random.set_stream(inputs.peers.rank() as u64);
    let what = match learner.step(&batch, rates, &mut random) {
        Ok(terms) if terms.total.is_finite() => return Ok((terms, batch.len() * inputs.peers.world_size())),
        Ok(terms) => format!("its loss is {}", terms.total),
        Err(LearnError::NotFinite { rank, loss }) => format!("the loss of rank {rank} is {loss}"),
        Err(cause) => return Err(cause.into()),
    };
    let checkpoint = if inputs.peers.leads() { inputs.checkpoints.newest_place()? } else { None };
    Err(FitError::Diverged { epoch, step: steps_of_epoch + 1, what, checkpoint })
}

#[cfg(test)]
mod tests;
