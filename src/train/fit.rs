//! The training loop: epochs of batches, rates, checkpoints. It does not know who is watching.

use std::ops::ControlFlow;
use std::time::Instant;

use super::checkpoint::{CheckpointError, Checkpoints, Progress};
use super::learn::{LearnError, Learner, LearnerState, LossTerms, Samples};
use super::loader::in_order;
use super::random::{Purpose, stream};
use super::schedule::{Rates, Schedule};

/// How long and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    pub seed: u64,
    pub schedule: Schedule,
    /// Epochs between checkpoints; the last epoch always leaves one.
    pub checkpoint_epochs: u32,
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
    },
    /// Mean of the terms over the epoch's steps that this process took.
    EpochDone {
        epoch: u32,
        mean_loss: f64,
        mean_accuracy: f64,
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
    #[error("the loss of step {step} of epoch {epoch} is {loss}; the newest checkpoint is from before")]
    Diverged { epoch: u32, step: u64, loss: f64 },
}

/// Trains to the end of the plan, from the newest checkpoint if there is one, and returns the final state.
///
/// `report` hears every event and may break, which leaves a checkpoint where the run stands. A run that was killed
/// and started again takes the same steps, bit for bit, as one that was not.
///
/// # Errors
/// See [`FitError`]; what the checkpoints hold is then still good.
pub fn fit<S: Source>(
    plan: &Plan,
    source: &S,
    learner: &mut impl Learner,
    checkpoints: &Checkpoints,
    report: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<LearnerState, FitError> {
    let mut progress = Progress { epoch: 1, steps_of_epoch: 0, steps: 0 };
    if let Some((found, state)) = checkpoints.newest()? {
        learner.restore(state)?;
        progress = found;
    }
    let started = Event::Started { steps: progress.steps, epochs: plan.schedule.epochs };
    let mut stopped = report(started).is_break();
    while !stopped && progress.epoch <= plan.schedule.epochs {
        stopped = run_epoch(plan, source, learner, &mut progress, report)?.is_break();
        let ended = progress.steps_of_epoch == 0;
        let due = (progress.epoch - 1).is_multiple_of(plan.checkpoint_epochs.max(1))
            || progress.epoch > plan.schedule.epochs;
        if stopped || (ended && due) {
            checkpoints.save(progress, &learner.state())?;
            stopped |= report(Event::CheckpointSaved { progress }).is_break();
        }
    }
    if progress.epoch <= plan.schedule.epochs { Err(FitError::Stopped) } else { Ok(learner.state()) }
}

/// The rest of an epoch; afterwards `progress` is at the start of the next one unless the run was stopped.
fn run_epoch<S: Source>(
    plan: &Plan,
    source: &S,
    learner: &mut impl Learner,
    progress: &mut Progress,
    report: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, FitError> {
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
            let (terms, images) = match take_step(plan, learner, progress, rates, batch) {
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
            let step = Event::Step {
                progress: *progress,
                steps_in_epoch: items.len() as u64,
                terms,
                rates,
                images_per_second,
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
fn take_step(
    plan: &Plan,
    learner: &mut impl Learner,
    progress: &Progress,
    rates: Rates,
    batch: Result<Samples, String>,
) -> Result<(LossTerms, usize), FitError> {
    let batch = batch.map_err(FitError::Data)?;
    let Progress { epoch, steps_of_epoch, .. } = *progress;
    let mut random = stream(plan.seed, epoch, steps_of_epoch, Purpose::StochasticDepth);
    let terms = learner.step(&batch, rates, &mut random)?;
    if terms.total.is_finite() {
        Ok((terms, batch.len()))
    } else {
        Err(FitError::Diverged { epoch, step: steps_of_epoch + 1, loss: terms.total })
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::chip::{ChipSize, Modality};
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
        let schedule = Schedule { base: 0.1, warm_up_epochs: 2, epochs: 5 };
        Plan { seed: 9, schedule, checkpoint_epochs: 2, loaders }
    }

    /// Trains until `stop` says so, and returns the losses.
    fn run(
        folder: &std::path::Path,
        plan: &Plan,
        source: &Numbers,
        stop: impl Fn(u64) -> bool,
    ) -> (Vec<u64>, Result<LearnerState, FitError>) {
        let checkpoints = Checkpoints::open(folder, 2).expect("writable");
        let mut losses = Vec::new();
        let outcome = fit(plan, source, &mut Linear::default(), &checkpoints, &mut |event| match event {
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
}
