//! Twenty steps of two and of three ranks, compared with those of PyTorch's DistributedDataParallel, as
//! `tests/golden/ranks/record.py` recorded them.

use std::sync::Arc;

use super::*;
use crate::distributed::test_world::{each, join, launch};
use crate::train::ranks::Ranks;

const STEPS: usize = 20;
pub(super) const IMAGES: usize = 24;
const PAIRS: usize = IMAGES / 2;
const CLASSES: usize = 5;
const RATES: Rates = Rates { weights: 0.01, biases: 0.02 };
const BOUND: f64 = 1e-5;
/// Elements of a large tensor that are recorded.
const ELEMENTS: usize = 64;

/// The terms of each step's loss, and the tensors at the end.
type Learned = (Vec<Vec<f64>>, NamedTensors);

/// A hash of 32 bits.
fn mixed(number: usize) -> u64 {
    let mut number = number as u64 * 2_654_435_761 % (1 << 32);
    number ^= number >> 15;
    number = number * 2_246_822_519 % (1 << 32);
    number ^ (number >> 13)
}

fn byte(number: usize) -> f32 {
    (mixed(number) >> 24) as f32 - 128.0
}

/// Some rows of a batch that the recording made of the same integers.
pub(super) fn part(objective: &Objective, step: usize, rows: &[usize]) -> Samples {
    let pretrains = *objective == Objective::Contrastive;
    let numbers = 3 * MICRO.image.height * MICRO.image.width;
    let label = |row: usize| {
        if pretrains { row % PAIRS } else { ([0, 3, 1, 4, 2, 0][row / 4] + step) % CLASSES }
    };
    let is_sar = |row: usize| if pretrains { row >= PAIRS } else { row % 2 == 1 };
    let pixel = |row: usize, place: usize| {
        let noise = byte((step * IMAGES + row) * numbers + place);
        let pattern = byte(10_000_000 + label(row) * numbers + place);
        (noise + pattern) / 128.0
    };
    let size = |row: usize, place: usize| ((5 * row + 3 * place) % 16) as f32 / 8.0 - 1.0;
    Samples {
        size: MICRO.image,
        pixels: rows.iter().flat_map(|row| (0..numbers).map(move |place| pixel(*row, place))).collect(),
        modalities: rows
            .iter()
            .map(|row| if is_sar(*row) { Modality::Sar } else { Modality::Optical })
            .collect(),
        size_tokens: rows.iter().map(|row| [0, 1, 2].map(|place| size(*row, place))).collect(),
        labels: rows.iter().map(|row| label(*row) as i64).collect(),
    }
}

fn learn_together(objective: &Objective, ranks: usize, gathers: bool) -> Vec<Learned> {
    let (_store, places) = launch(ranks);
    let architecture = TransOssArchitecture { size_token: *objective != Objective::Contrastive, ..MICRO };
    let whole = Gradient { accumulation_steps: ranks, ..Gradient::default() };
    let parts = Teaching { gradient: whole, ..teaching(objective.clone()) }.parts(IMAGES);
    each(&places, |place| {
        let world = join(place).expect("all come");
        let learner = learner(&architecture, "micro_weights", objective.clone());
        let mut learner = learner.among(Ranks::new(Arc::new(world)), gathers);
        let losses = (0..STEPS).map(|step| {
            let part = part(objective, step, &parts[place.rank]);
            let random = &mut stream(0, 0, 0, Purpose::StochasticDepth);
            let terms = learner.step(&part, RATES, random).expect("a step");
            match objective {
                Objective::FineTune(_) => vec![terms.total, terms.identity, terms.triplet],
                Objective::Contrastive => vec![terms.total],
            }
        });
        (losses.collect(), learner.state().weights)
    })
}

/// What is recorded of a tensor: all of it, or its sum, norm and some elements.
fn check_tensor(what: &str, found: &[f32], recorded: &NamedTensors, name: &str) {
    let found: Vec<f64> = found.iter().map(|value| f64::from(*value)).collect();
    let expected = |name: &str| recorded.get(name).map(|tensor| tensor.values.clone());
    let off = |found: f64, expected: f32| (found - f64::from(expected)).abs();
    if let Some(expected) = expected(name) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let off = largest(found.iter().zip(&expected).map(|(found, expected)| off(*found, *expected)));
        return check_difference(what, off, BOUND);
    }
    let (prefix, tensor) = name.split_at(name.find(".base").map_or(0, |at| at + 1));
    let expected = expected(&format!("{prefix}digest.{tensor}")).expect("every tensor is recorded");
    let count = found.len() as f64;
    let norm = found.iter().map(|value| value * value).sum::<f64>().sqrt();
    check_difference(what, off(found.iter().sum(), expected[0]), BOUND * count);
    check_difference(what, off(norm, expected[1]), BOUND * count.sqrt());
    assert_eq!(expected.len(), 2 + ELEMENTS, "{what}");
    let elements = expected[2..].iter().enumerate();
    let elements = elements.map(|(place, expected)| off(found[place * found.len() / ELEMENTS], *expected));
    check_difference(what, largest(elements), BOUND);
}

fn check_recorded(name: &str, objective: &Objective) {
    let recorded = golden::tensors("ranks/recorded");
    for ranks in [2, 3] {
        for (gathers, kind) in [(false, "own"), (true, "gathered")] {
            let what = format!("{name}.{ranks}.{kind}");
            let learned = learn_together(objective, ranks, gathers);
            let (losses, weights) = &learned[0];
            for (other_losses, other_weights) in &learned[1..] {
                assert_eq!(other_losses, losses, "{what}");
                assert!(other_weights == weights, "{what}: ranks are alike bit for bit");
            }
            let expected = &recorded[&format!("{what}.loss")];
            assert_eq!(expected.shape, [STEPS, losses[0].len()], "{what}");
            let pairs = losses.concat().into_iter().zip(&expected.values);
            let off = largest(pairs.map(|(found, expected)| found - f64::from(*expected)));
            check_difference(&format!("{what}: losses"), off, BOUND);
            let is_learned = |name: &str| match objective {
                Objective::FineTune(_) => name != "logit_scale" && !name.starts_with("base.fc."),
                Objective::Contrastive => {
                    name == "logit_scale" || name.starts_with("base.") && !name.starts_with("base.fc.")
                }
            };
            let tensors: Vec<_> = weights.iter().filter(|(name, _)| is_learned(name)).collect();
            let of_case = recorded.keys().filter(|key| key.starts_with(&format!("{what}.")));
            assert_eq!(of_case.count(), tensors.len() + 1, "{what}: tensors and losses");
            for (name, tensor) in tensors {
                let name = format!("{what}.{name}");
                check_tensor(&name, &tensor.values, &recorded, &name);
            }
        }
    }
}

#[test]
fn fine_tuning_ranks_learn_what_pytorchs_do() {
    check_recorded("fine_tuning", &fine_tuning());
}

#[test]
fn pretraining_ranks_learn_what_pytorchs_do() {
    check_recorded("pretraining", &Objective::Contrastive);
}
