//! Learners of several processes, here on threads, compared with one learner.

use std::sync::Arc;

use super::*;
use crate::distributed::Place;
use crate::distributed::test_world::{each, join, launch};
use crate::train::ranks::Ranks;

const STEPS: usize = 20;
const IMAGES: usize = 24;

/// What a rank has after some steps: its losses, weights and statistics.
type Learned = (Vec<f64>, NamedTensors);

/// Rows and labels of a batch of 24 images.
fn rows_and_labels() -> (Vec<usize>, Vec<f32>) {
    let labels = golden::tensors("train_step")["label"].values.clone();
    ((0..IMAGES).map(|row| row % 12).collect(), [&labels[..], &labels[..]].concat())
}

fn teaching_of(objective: &Objective, accumulation_steps: usize) -> Teaching {
    let gradient = Gradient { accumulation_steps, grad_norm_max: 0.5 };
    Teaching { gradient, ..teaching(objective.clone()) }
}

fn among(objective: &Objective, place: &Place, gathers: bool) -> TorchLearner {
    let world = join(place).expect("all come");
    let learner = learner(&MICRO, "micro_weights", objective.clone());
    let mut learner = learner.among(Ranks::new(Arc::new(world)), gathers);
    learner.teaching = teaching_of(objective, 1);
    learner
}

fn part(rows: &[usize]) -> Samples {
    let (all, labels) = rows_and_labels();
    let index: Vec<usize> = rows.iter().map(|row| all[*row]).collect();
    batch(&index, &rows.iter().map(|row| labels[*row]).collect::<Vec<_>>())
}

/// Every rank learns from the rows that one learner would take as a part of its batch.
fn learn_together(objective: &Objective, ranks: usize, gathers: bool) -> Vec<Learned> {
    let (_store, places) = launch(ranks);
    let parts = teaching_of(objective, ranks).parts(IMAGES);
    each(&places, |place| {
        let mut learner = among(objective, place, gathers);
        let part = part(&parts[place.rank]);
        let losses = (0..STEPS).map(|_| step(&mut learner, &part).total).collect();
        (losses, learner.state().weights)
    })
}

fn learn_alone(objective: &Objective, accumulation_steps: usize) -> Learned {
    let mut learner = learner(&MICRO, "micro_weights", objective.clone());
    learner.teaching = teaching_of(objective, accumulation_steps);
    let whole = part(&(0..IMAGES).collect::<Vec<_>>());
    let losses = (0..STEPS).map(|_| step(&mut learner, &whole).total).collect();
    (losses, learner.state().weights)
}

fn check_equal(what: &str, together: &[Learned], alone: &Learned, with_statistics: bool) {
    let (losses, weights) = &together[0];
    for (other_losses, other_weights) in &together[1..] {
        assert_eq!(other_losses, losses, "{what}");
        assert!(other_weights == weights, "{what}: ranks are alike bit for bit");
    }
    for (number, (found, expected)) in losses.iter().zip(&alone.0).enumerate() {
        assert!((found - expected).abs() < 1e-5, "{what}: step {number}: {found} {expected}");
    }
    let is_statistic = |name: &str| name.contains("running_") || name.ends_with("num_batches_tracked");
    for (name, expected) in alone.1.iter().filter(|(name, _)| with_statistics || !is_statistic(name)) {
        let pairs = expected.values.iter().zip(&weights[name].values);
        let off = largest(pairs.map(|(expected, found)| f64::from(expected - found)));
        assert!(off < 1e-5, "{what}: {name}: {off}");
    }
}

#[test]
fn ranks_step_as_one_process_on_as_many_parts() {
    for (name, objective) in [("fine-tuning", fine_tuning()), ("pretraining", Objective::Contrastive)] {
        let before = learner(&MICRO, "micro_weights", objective.clone()).state().weights;
        for ranks in [2, 3] {
            let together = learn_together(&objective, ranks, false);
            // One process normalises part after part, so its running statistics are others.
            check_equal(&format!("{name}, {ranks} ranks"), &together, &learn_alone(&objective, ranks), false);
            assert!(together[0].1 != before, "something was learned");
        }
    }
}

#[test]
fn ranks_that_gather_features_step_as_one_process_on_the_whole_batch() {
    for (name, objective) in [("fine-tuning", fine_tuning()), ("pretraining", Objective::Contrastive)] {
        let alone = learn_alone(&objective, 1);
        for ranks in [2, 3] {
            let together = learn_together(&objective, ranks, true);
            check_equal(&format!("{name}, {ranks} ranks"), &together, &alone, true);
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_every_rank_before_the_step() {
    let (_store, places) = launch(2);
    let stopped = each(&places, |place| {
        let mut learner = among(&fine_tuning(), place, false);
        let before = learner.tensors["classifier.weight"].copy();
        let mut batch = part(&[0, 1, 2, 3, 4, 5, 6, 7]);
        if place.rank == 1 {
            batch.pixels.fill(f32::NAN);
        }
        let refused = learner.step(&batch, RATES, &mut stream(0, 0, 0, Purpose::StochasticDepth));
        assert!(learner.tensors["classifier.weight"].equal(&before), "no step was taken");
        refused
    });
    let expected = Err(LearnError::NotFinite { rank: 1, loss: "NaN".to_owned() });
    assert_eq!(stopped, [expected.clone(), expected]);
}
