//! The training loop: epochs of batches, rates, checkpoints. It does not know who is watching.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use super::checkpoint::{CheckpointError, Checkpoints, Progress};
use super::learn::{LearnError, Learner, LearnerState, LossTerms, Samples};
use super::loader::in_order;
use super::random::{Purpose, stream};
use super::schedule::{Rates, Schedule};
use super::validation::Validation;
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

/// Where batches come from.
pub trait Source: Sync {
    /// One batch of an epoch, by place in the data set.
    type Item: Sync;

    /// The batches of an epoch, the same for the same seed.
    fn epoch(&self, seed: u64, epoch: u32) -> Vec<Self::Item>;

    /// Reads and augments a batch; its random numbers derive from seed, epoch and sample alone.
    ///
    /// # Errors
    /// A file that cannot be used, by name.
    fn batch(&self, item: &Self::Item, seed: u64, epoch: u32) -> Result<Samples, String>;
}

/// What happened in a run, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
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
    /// Mean of the terms over the epoch's steps that this process took.
    EpochDone {
        epoch: u32,
        mean_loss: f64,
        mean_accuracy: f64,
    },
    /// What the weights at the end of an epoch are worth; epoch 0 is before the first step.
    Evaluated {
        epoch: u32,
        /// Steps since the start.
        steps: u64,
        summaries: Vec<Summary>,
    },
    CheckpointSaved {
        progress: Progress,
    },
}

/// Why a run ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    #[error("the run was stopped")]
    Stopped,
    #[error(transparent)]
    Learn(#[from] LearnError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{0}")]
    Data(String),
    #[error("epoch {0} has no batch")]
    EmptyEpoch(u32),
    /// What the checkpoints hold is from before.
    #[error(
        "the run diverged at step {step} of epoch {epoch}: {what}; {}",
        .checkpoint.as_ref().map_or_else(
            || "there is no checkpoint from before".to_owned(),
            |path| format!("the last good checkpoint is {}", path.display()),
        )
    )]
    Diverged { epoch: u32, step: u64, what: String, checkpoint: Option<PathBuf> },
}

/// What a run is made of but for the learner.
#[derive(Clone, Copy, Debug)]
pub struct Course<'a, S> {
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
    course: &Course<S>,
    learner: &mut impl Learner,
    report: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<LearnerState, FitError> {
    let Course { plan, validation, checkpoints, .. } = *course;
    let mut progress = Progress { epoch: 1, steps_of_epoch: 0, steps: 0 };
    if let Some((found, state)) = checkpoints.newest()? {
        learner.restore(state)?;
        progress = found;
    }
    let started = Event::Started { steps: progress.steps, epochs: plan.schedule.epochs };
    let mut stopped = report(started).is_break();
    if let (Some(validation), 0, 1..) = (validation, progress.steps, plan.validation_epochs) {
        let summaries = validation.evaluate(learner, plan.loaders)?;
        stopped |= report(Event::Evaluated { epoch: 0, steps: 0, summaries }).is_break();
    }
    let mut pace = Pace { started: Instant::now(), steps: 0 };
    while !stopped && progress.epoch <= plan.schedule.epochs {
        stopped = run_epoch(course, learner, &mut progress, &mut pace, report)?.is_break();
        let ended = (progress.steps_of_epoch == 0).then_some(progress.epoch - 1);
        let mut metric = None;
        if let Some((epoch, validation)) = ended.zip(validation)
            && plan.is_due(epoch, plan.validation_epochs)
        {
            let summaries = validation.evaluate(learner, plan.loaders)?;
            metric = summaries.first().map(|summary| summary.mean_average_precision);
            stopped |= report(Event::Evaluated { epoch, steps: progress.steps, summaries }).is_break();
        }
        if stopped || ended.is_some_and(|epoch| plan.is_due(epoch, plan.checkpoint_epochs)) {
            save(checkpoints, progress, metric, &learner.state())?;
            stopped |= report(Event::CheckpointSaved { progress }).is_break();
        }
    }
    if progress.epoch <= plan.schedule.epochs { Err(FitError::Stopped) } else { Ok(learner.state()) }
}

impl Plan {
    /// Whether something that happens every so many epochs happens after this one.
    fn is_due(&self, epoch: u32, period: u32) -> bool {
        period > 0 && (epoch.is_multiple_of(period) || epoch == self.schedule.epochs)
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
    course: &Course<S>,
    learner: &mut impl Learner,
    progress: &mut Progress,
    pace: &mut Pace,
    report: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, FitError> {
    let Course { plan, source, .. } = *course;
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
            let (terms, images) = match take_step(course, learner, progress, rates, batch) {
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
            let step = Event::Step {
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
            let count = f64::from(taken.max(1));
            Ok(report(Event::EpochDone {
                epoch,
                mean_loss: sum.total / count,
                mean_accuracy: sum.accuracy / count,
            }))
        }
    }
}

/// One step on a batch that could be read, and the images in it.
fn take_step<S>(
    course: &Course<S>,
    learner: &mut impl Learner,
    progress: &Progress,
    rates: Rates,
    batch: Result<Samples, String>,
) -> Result<(LossTerms, usize), FitError> {
    let batch = batch.map_err(FitError::Data)?;
    let Progress { epoch, steps_of_epoch, .. } = *progress;
    let mut random = stream(course.plan.seed, epoch, steps_of_epoch, Purpose::StochasticDepth);
    let terms = learner.step(&batch, rates, &mut random)?;
    if terms.total.is_finite() {
        Ok((terms, batch.len()))
    } else {
        let (step, what) = (steps_of_epoch + 1, format!("its loss is {}", terms.total));
        Err(FitError::Diverged { epoch, step, what, checkpoint: course.checkpoints.newest_place()? })
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::chip::{Chip, ChipSize, Modality};
    use crate::embedding::Embedding;
    use crate::train::dataset::Image;
    use crate::weights::golden;
    use crate::weights::tensors::HostTensor;

    const SIZE: ChipSize = ChipSize { height: 1, width: 1 };

    /// One weight that follows its batches, with momentum and noise.
    #[derive(Clone, Default)]
    struct Linear {
        weight: f32,
        momentum: f32,
        steps: u32,
    }

    impl Learner for Linear {
        fn step(
            &mut self,
            batch: &Samples,
            rates: Rates,
            random: &mut ChaCha8Rng,
        ) -> Result<LossTerms, LearnError> {
            let target: f32 = batch.pixels.iter().sum::<f32>() + random.random::<f32>();
            let gradient = self.weight - target;
            self.momentum = 0.9 * self.momentum + gradient;
            self.weight -= rates.weights as f32 * self.momentum;
            self.steps += 1;
            Ok(LossTerms { total: f64::from(gradient * gradient), ..LossTerms::default() })
        }

        fn embed(&mut self, chips: &[Chip]) -> Result<Vec<Embedding>, LearnError> {
            let feature = |chip: &Chip| vec![1.0, f32::from(chip.pixels()[0]) / 255.0 + self.weight];
            Ok(chips.iter().map(|chip| Embedding::from_feature(feature(chip)).expect("finite")).collect())
        }

        fn state(&self) -> LearnerState {
            let scalar = |value| HostTensor { shape: vec![], values: vec![value] };
            LearnerState {
                weights: [("weight".to_owned(), scalar(self.weight))].into(),
                optimizer: [("momentum".to_owned(), scalar(self.momentum))].into(),
                steps: self.steps,
            }
        }

        fn restore(&mut self, state: LearnerState) -> Result<(), LearnError> {
            self.weight = state.weights["weight"].values[0];
            self.momentum = state.optimizer["momentum"].values[0];
            self.steps = state.steps;
            Ok(())
        }
    }

    struct Numbers {
        batches: u64,
        broken: Option<u64>,
    }

    impl Source for Numbers {
        type Item = u64;

        fn epoch(&self, _: u64, _: u32) -> Vec<u64> {
            (0..self.batches).collect()
        }

        fn batch(&self, item: &u64, seed: u64, epoch: u32) -> Result<Samples, String> {
            if self.broken == Some(*item) {
                return Err("ship.tif is broken".into());
            }
            let value = stream(seed, epoch, *item, Purpose::Augmentation).random();
            let (modalities, size_tokens) = (vec![Modality::Sar], vec![[0.0; 3]]);
            Ok(Samples { size: SIZE, pixels: vec![value; 3], modalities, size_tokens, labels: vec![0] })
        }
    }

    const NUMBERS: Numbers = Numbers { batches: 7, broken: None };

    fn plan(loaders: usize) -> Plan {
        let schedule = Schedule { base: 0.1, bias_factor: 2.0, warm_up_epochs: 2, epochs: 5 };
        Plan { seed: 9, schedule, checkpoint_epochs: 2, validation_epochs: 0, loaders }
    }

    /// Trains until `stop` says so, and returns the losses.
    fn run(
        folder: &std::path::Path,
        plan: &Plan,
        source: &Numbers,
        stop: impl Fn(u64) -> bool,
    ) -> (Vec<u64>, Result<LearnerState, FitError>) {
        let checkpoints = &Checkpoints::open(folder, 2, false).expect("writable");
        let mut losses = Vec::new();
        let course = Course { plan, source, validation: None, checkpoints };
        let outcome = fit(&course, &mut Linear::default(), &mut |event| match event {
            Event::Step { progress, terms, .. } => {
                losses.push(terms.total.to_bits());
                if stop(progress.steps) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            _ => ControlFlow::Continue(()),
        });
        (losses, outcome)
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[test]
    fn a_run_that_was_stopped_anywhere_goes_on_bit_for_bit() {
        let (losses, state) = run(folder().path(), &plan(1), &NUMBERS, |_| false);
        let state = state.expect("finished");
        assert_eq!(losses.len(), 35);
        for at in [1, 7, 8, 20, 34] {
            let folder = folder();
            let (mut first, stopped) = run(folder.path(), &plan(3), &NUMBERS, |steps| steps == at);
            assert!(matches!(stopped, Err(FitError::Stopped)));
            let (second, finished) = run(folder.path(), &plan(2), &NUMBERS, |_| false);
            first.extend(second);
            assert_eq!((first, finished.expect("finished")), (losses.clone(), state.clone()), "{at}");
        }
    }

    #[test]
    fn a_torn_checkpoint_costs_no_more_than_itself() {
        let (losses, _) = run(folder().path(), &plan(1), &NUMBERS, |_| false);
        let folder = folder();
        let (first, _) = run(folder.path(), &plan(1), &NUMBERS, |steps| steps == 30);
        assert_eq!(first[..], losses[..30]);
        let newest = folder.path().join("checkpoint-0000000030/weights.safetensors");
        std::fs::write(newest, b"torn").expect("writable");
        std::fs::create_dir(folder.path().join(".partial-checkpoint-1")).expect("writable");
        let (second, finished) = run(folder.path(), &plan(1), &NUMBERS, |_| false);
        assert!(finished.is_ok());
        assert_eq!(second[..], losses[28..], "from the checkpoint after epoch 4");
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["checkpoint-0000000030", "checkpoint-0000000035"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_and_a_loss_that_is_no_number_end_the_run() {
        let broken = Numbers { broken: Some(3), ..NUMBERS };
        let (losses, outcome) = run(folder().path(), &plan(2), &broken, |_| false);
        assert_eq!(
            (losses.len(), outcome.expect_err("broken").to_string().as_str()),
            (3, "ship.tif is broken")
        );
        let wild = Plan { schedule: Schedule { base: 1e38, ..plan(1).schedule }, ..plan(1) };
        let (_, outcome) = run(folder().path(), &wild, &NUMBERS, |_| false);
        assert!(matches!(outcome, Err(FitError::Diverged { .. })), "{outcome:?}");
        let (_, outcome) = run(folder().path(), &plan(1), &Numbers { batches: 0, broken: None }, |_| false);
        assert!(matches!(outcome, Err(FitError::EmptyEpoch(1))));
    }

    #[test]
    fn a_run_is_evaluated_on_its_way_and_at_its_end_and_says_how_long_it_takes() {
        let image = |name: &str, identity, modality| Image {
            path: golden::path("images").join(name),
            identity,
            modality,
        };
        let optical = image("0001_a_33x97_RGB.tif", 1, Modality::Optical);
        let sar = image("0003_c_25x110_SAR.tif", 1, Modality::Sar);
        let validation = Validation::new(vec![sar], vec![optical], SIZE);
        let folder = folder();
        let checkpoints = &Checkpoints::open(folder.path(), 2, false).expect("writable");
        let plan = &Plan { validation_epochs: 3, ..plan(1) };
        let course = Course { plan, source: &NUMBERS, validation: Some(&validation), checkpoints };
        let (mut evaluated, mut left) = (Vec::new(), Vec::new());
        fit(&course, &mut Linear::default(), &mut |event| {
            match event {
                Event::Evaluated { epoch, summaries, .. } => evaluated.push((epoch, summaries)),
                Event::Step { seconds_left, .. } => left.push(seconds_left),
                _ => {}
            }
            ControlFlow::Continue(())
        })
        .expect("finished");
        assert_eq!(evaluated.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [0, 3, 5]);
        let (_, summaries) = &evaluated[0];
        let names: Vec<_> = summaries.iter().map(|summary| summary.protocol).collect();
        assert_eq!(names, ["all", "s2o"]);
        assert!(left[0] > 0.0 && left.last() == Some(&0.0), "{left:?}");
    }
}
