//! The training loop: epochs of batches, rates, checkpoints. It does not know who is watching.

use std::ops::ControlFlow;
use std::time::Instant;

use super::checkpoint::{Checkpoints, DamagedCheckpoint, Newest, Progress};
use super::fit_error::FitError;
use super::learn::{Learner, LearnerState, LossTerms, Samples, Source};
use super::loader::in_order;
use super::random::{Purpose, stream};
use super::ranked_lists::RankedLists;
use super::schedule::{Rates, Schedule};
use super::validation::{Validation, ValidationScores};
use crate::evaluate::Summary;

/// How long and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    pub seed: u64,
    pub schedule: Schedule,
    /// Epochs between checkpoints; the last epoch always leaves one.
    pub checkpoint_epochs: u32,
    /// Epochs between evaluations, the first of which is before any step and the last at the end; 0: none.
    pub validation_epochs: u32,
    /// Threads that make batches.
    pub loaders: usize,
}

/// What happened in a run, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum FitEvent {
    /// A checkpoint that is not what was once written: the run goes on from an earlier one, or starts anew.
    PassedOver(DamagedCheckpoint),
    /// The run starts, or goes on after these steps.
    Started {
        steps: u64,
        epochs: u32,
    },
    Step {
        progress: Progress,
        steps_in_epoch: u64,
        terms: LossTerms,
        rates: Rates,
        images_per_second: f64,
        /// To the end of the run, at the pace that this process has had.
        seconds_left: f64,
    },
    EpochDone {
        epoch: u32,
        /// Over the epoch's steps that this process took; absent where an earlier process took them all.
        means: Option<Means>,
    },
    /// What the weights at the end of an epoch are worth; epoch 0 is before the first step.
    Evaluated {
        epoch: u32,
        /// Steps since the start.
        steps: u64,
        summaries: Vec<Summary>,
        /// At the first, second, fourth, eighth ... and the last of a run.
        sample: Option<RankedLists>,
    },
    CheckpointSaved {
        progress: Progress,
    },
}

/// What the steps of an epoch had on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Means {
    pub loss: f64,
    pub accuracy: f64,
}

/// What a run is made of but for the learner.
#[derive(Clone, Copy, Debug)]
pub struct FitInputs<'a, S> {
    pub plan: &'a Plan,
    pub source: &'a S,
    pub validation: Option<&'a Validation>,
    pub checkpoints: &'a Checkpoints,
}

/// Trains to the end of the plan, from the newest checkpoint if there is one, and returns the final state.
///
/// `report` hears every event and may break, which leaves a checkpoint where the run stands. A run that was killed
/// and started again takes the same steps, bit for bit, as one that was not.
///
/// # Errors
/// See [`FitError`]; what the checkpoints hold is then still good.
pub fn fit<S: Source>(
    inputs: &FitInputs<S>,
    learner: &mut impl Learner,
    report: &mut dyn FnMut(FitEvent) -> ControlFlow<()>,
) -> Result<LearnerState, FitError> {
    let FitInputs { plan, validation, checkpoints, .. } = *inputs;
    let mut progress = Progress { epoch: 1, steps_of_epoch: 0, steps: 0 };
    let Newest { found, damaged } = checkpoints.newest()?;
    let mut stopped = false;
    for checkpoint in damaged {
        stopped |= report(FitEvent::PassedOver(checkpoint)).is_break();
    }
    if let Some((found, state)) = found {
        learner.restore(state)?;
        progress = found;
    }
    let started = FitEvent::Started { steps: progress.steps, epochs: plan.schedule.epochs };
    stopped |= report(started).is_break();
    if let (Some(validation), 0, 1..) = (validation, progress.steps, plan.validation_epochs) {
        let ValidationScores { summaries, sample } = validation.evaluate(learner, plan.loaders)?;
        stopped |= report(FitEvent::Evaluated { epoch: 0, steps: 0, summaries, sample }).is_break();
    }
    let mut pace = Pace { started: Instant::now(), steps: 0 };
    while !stopped && progress.epoch <= plan.schedule.epochs {
        stopped = run_epoch(inputs, learner, &mut progress, &mut pace, report)?.is_break();
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
        if stopped || ended.is_some_and(|epoch| plan.is_due(epoch, plan.checkpoint_epochs)) {
            save(checkpoints, progress, metric, &learner.state())?;
            stopped |= report(FitEvent::CheckpointSaved { progress }).is_break();
        }
    }
    if progress.epoch <= plan.schedule.epochs { Err(FitError::Stopped) } else { Ok(learner.state()) }
}

impl Plan {
    /// Whether something that happens every so many epochs happens after this one.
    fn is_due(&self, epoch: u32, period: u32) -> bool {
        period > 0 && (epoch.is_multiple_of(period) || epoch == self.schedule.epochs)
    }

    /// Whether rankings are shown after this epoch, at whose end there is an evaluation: a long run shows hardly more
    /// of them than a short one.
    fn is_shown(&self, epoch: u32) -> bool {
        epoch == self.schedule.epochs || (epoch / self.validation_epochs).is_power_of_two()
    }
}

/// Saves a state that a run can go on from.
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

/// How fast this process has been.
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

/// The rest of an epoch; afterwards `progress` is at the start of the next one unless the run was stopped.
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
    let (mut sum, mut taken) = (LossTerms::default(), 0_u32);
    let mut last = Instant::now();
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
            let images_per_second = images as f64 / last.elapsed().as_secs_f64();
            last = Instant::now();
            progress.steps += 1;
            progress.steps_of_epoch += 1;
            sum.total += terms.total;
            sum.accuracy += terms.accuracy;
            taken += 1;
            pace.steps += 1;
            let steps_in_epoch = items.len() as u64;
            let step = FitEvent::Step {
                progress: *progress,
                steps_in_epoch,
                terms,
                rates,
                images_per_second,
                seconds_left: pace.seconds_left(*progress, steps_in_epoch, plan.schedule.epochs),
            };
            if report(step).is_break() { ControlFlow::Break(Ok(())) } else { ControlFlow::Continue(()) }
        },
    );
    match flow {
        ControlFlow::Break(Err(cause)) => Err(cause),
        ControlFlow::Break(Ok(())) => Ok(ControlFlow::Break(())),
        ControlFlow::Continue(()) => {
            *progress = Progress { epoch: epoch + 1, steps_of_epoch: 0, ..*progress };
            let count = f64::from(taken);
            let means =
                (taken > 0).then(|| Means { loss: sum.total / count, accuracy: sum.accuracy / count });
            Ok(report(FitEvent::EpochDone { epoch, means }))
        }
    }
}

/// One step on a batch that could be read, and the images in it.
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
    let terms = learner.step(&batch, rates, &mut random)?;
    if terms.total.is_finite() {
        Ok((terms, batch.len()))
    } else {
        let (step, what) = (steps_of_epoch + 1, format!("its loss is {}", terms.total));
        Err(FitError::Diverged { epoch, step, what, checkpoint: inputs.checkpoints.newest_place()? })
    }
}

#[cfg(test)]
mod tests;
