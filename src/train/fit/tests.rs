//! Resuming, failing, diverging, evaluating: runs without libtorch.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::chip::{Chip, ChipForm, ChipSize, Modality};
use crate::embedding::Embedding;
use crate::train::dataset::Image;
use crate::train::learn::LearnError;
use crate::train::peers::Alone;
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
    /// Epoch and item whose pixels are not finite.
    poisoned: Option<(u32, u64)>,
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
        let number = stream(seed, epoch, *item, Purpose::Augmentation).random();
        let value = if self.poisoned == Some((epoch, *item)) { f32::NAN } else { number };
        let (modalities, size_tokens) = (vec![Modality::Sar], vec![[0.0; 3]]);
        Ok(Samples { size: SIZE, pixels: vec![value; 3], modalities, size_tokens, labels: vec![0] })
    }
}

const NUMBERS: Numbers = Numbers { batches: 7, broken: None, poisoned: None };

fn plan(loaders: usize) -> Plan {
    let schedule = Schedule { base: 0.1, bias_factor: 2.0, warm_up_epochs: 2, epochs: 5 };
    Plan { seed: 9, schedule, checkpoint_epochs: 2, validation_epochs: 0, loaders }
}

/// Trains until `stop` returns true, and returns the losses.
fn run(
    folder: &std::path::Path,
    plan: &Plan,
    source: &Numbers,
    stop: impl Fn(u64) -> bool,
) -> (Vec<u64>, Result<LearnerState, FitError>) {
    let checkpoints = &Checkpoints::open(folder, 2, false).expect("writable");
    let mut losses = Vec::new();
    let inputs = FitInputs { plan, source, validation: None, checkpoints, peers: &Alone };
    let outcome = fit(&inputs, &mut Linear::default(), &mut |event| match event {
        FitEvent::Step { progress, terms, .. } => {
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
fn a_damaged_checkpoint_is_told_and_the_one_before_is_taken() {
    let (losses, _) = run(folder().path(), &plan(1), &NUMBERS, |_| false);
    let folder = folder();
    run(folder.path(), &plan(1), &NUMBERS, |steps| steps == 30).1.expect_err("stopped");
    let newest = folder.path().join("checkpoint-0000000030/optimizer.safetensors");
    let mut bytes = std::fs::read(&newest).expect("readable");
    // A number for which every bit pattern is valid.
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(newest, bytes).expect("writable");
    // Of which only one is wanted.
    let checkpoints = &Checkpoints::open(folder.path(), 1, false).expect("writable");
    let (mut told, mut taken) = (Vec::new(), Vec::new());
    let inputs = FitInputs { plan: &plan(1), source: &NUMBERS, validation: None, checkpoints, peers: &Alone };
    let outcome = fit(&inputs, &mut Linear::default(), &mut |event| {
        match event {
            FitEvent::PassedOver(checkpoint) => told.push(checkpoint.to_string()),
            FitEvent::Started { steps, .. } => told.push(steps.to_string()),
            FitEvent::Step { terms, .. } => taken.push(terms.total.to_bits()),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    outcome.expect("finished");
    let damaged =
        "checkpoint-0000000030 is damaged (optimizer.safetensors: its digest is another one) and passed over";
    assert_eq!(told, [damaged, "28"]);
    assert_eq!(taken[..], losses[28..]);
}

#[test]
fn an_epoch_that_an_earlier_process_has_gone_through_has_no_means() {
    let folder = folder();
    run(folder.path(), &plan(1), &NUMBERS, |steps| steps == 7).1.expect_err("stopped");
    let checkpoints = &Checkpoints::open(folder.path(), 2, false).expect("writable");
    let inputs = FitInputs { plan: &plan(1), source: &NUMBERS, validation: None, checkpoints, peers: &Alone };
    let mut done = Vec::new();
    let outcome = fit(&inputs, &mut Linear::default(), &mut |event| {
        if let FitEvent::EpochDone { epoch, means } = event {
            done.push((epoch, means.map(|means| means.loss > 0.0)));
        }
        ControlFlow::Continue(())
    });
    outcome.expect("finished");
    assert_eq!(done[..2], [(1, None), (2, Some(true))]);
}

#[test]
fn a_file_that_cannot_be_read_and_an_epoch_without_batches_end_the_run() {
    let broken = Numbers { broken: Some(3), ..NUMBERS };
    let (losses, outcome) = run(folder().path(), &plan(2), &broken, |_| false);
    assert_eq!((losses.len(), outcome.expect_err("broken").to_string().as_str()), (3, "ship.tif is broken"));
    let (_, outcome) = run(folder().path(), &plan(1), &Numbers { batches: 0, ..NUMBERS }, |_| false);
    assert!(matches!(outcome, Err(FitError::EmptyEpoch(1))));
}

#[test]
fn a_run_that_diverges_names_the_step_and_the_last_good_checkpoint() {
    let folder = folder();
    let poisoned = Numbers { poisoned: Some((4, 2)), ..NUMBERS };
    let (losses, outcome) = run(folder.path(), &plan(2), &poisoned, |_| false);
    assert_eq!(losses.len(), 3 * 7 + 2);
    let error = outcome.expect_err("no number").to_string();
    let good = folder.path().join("checkpoint-0000000014");
    let expected = format!(
        "the run diverged at step 3 of epoch 4: its loss is NaN; the last good checkpoint is {}",
        good.display()
    );
    assert_eq!(error, expected);
    let wild = Plan { schedule: Schedule { base: 1e38, ..plan(1).schedule }, ..plan(1) };
    let (_, outcome) = run(tempfile::tempdir().expect("a folder").path(), &wild, &NUMBERS, |_| false);
    let error = outcome.expect_err("wild").to_string();
    assert!(error.ends_with("there is no checkpoint from before"), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_never_saved() {
    let folder = folder();
    let checkpoints = Checkpoints::open(folder.path(), 2, false).expect("writable");
    let state = |weight| Linear { weight, ..Linear::default() }.state();
    let progress = |steps| Progress { epoch: 2, steps_of_epoch: 0, steps };
    save(&checkpoints, progress(1), None, &state(1.0)).expect("finite");
    let error = save(&checkpoints, progress(2), None, &state(f32::INFINITY)).expect_err("infinite");
    assert!(error.to_string().contains("weight has a value that is not finite"), "{error}");
    let (found, _) = checkpoints.newest().expect("readable").found.expect("the first");
    assert_eq!(found.steps, 1);
}

#[test]
fn a_run_is_evaluated_on_its_way_and_at_its_end_and_says_how_long_it_takes() {
    let image =
        |name: &str, identity, modality| Image::plain(golden::path("images").join(name), identity, modality);
    let optical = image("0001_a_33x97_RGB.tif", 1, Modality::Optical);
    let sar = image("0003_c_25x110_SAR.tif", 1, Modality::Sar);
    let validation = Validation::new(vec![sar], vec![optical], ChipForm::reference(SIZE));
    let folder = folder();
    let checkpoints = &Checkpoints::open(folder.path(), 2, false).expect("writable");
    let plan = &Plan { validation_epochs: 3, ..plan(1) };
    let inputs =
        FitInputs { plan, source: &NUMBERS, validation: Some(&validation), checkpoints, peers: &Alone };
    let (mut evaluated, mut left) = (Vec::new(), Vec::new());
    fit(&inputs, &mut Linear::default(), &mut |event| {
        match event {
            FitEvent::Evaluated { epoch, summaries, sample, .. } => {
                assert!(sample.is_some(), "the first two and the last are shown");
                evaluated.push((epoch, summaries));
            }
            FitEvent::Step { seconds_left, .. } => left.push(seconds_left),
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

#[test]
fn few_of_many_evaluations_are_shown() {
    let plan = Plan { validation_epochs: 2, ..plan(1) };
    let plan = Plan { schedule: Schedule { epochs: 45, ..plan.schedule }, ..plan };
    let shown = (1..=45).filter(|epoch| plan.is_due(*epoch, 2) && plan.is_shown(*epoch));
    assert_eq!(shown.collect::<Vec<_>>(), [2, 4, 8, 16, 32, 45]);
}
