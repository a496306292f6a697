//! A run of two ranks, one of which computes a number that is not finite.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use rand::SeedableRng;

use super::ranks_recorded::{IMAGES, part};
use super::*;
use crate::distributed::test_world::{each, join, launch};
use crate::train::checkpoint::Checkpoints;
use crate::train::fit::{FitEvent, FitInputs, Plan, fit};
use crate::train::learn::Source;
use crate::train::peers::Peers;
use crate::train::ranks::Ranks;
use crate::train::schedule::Schedule;

const EPOCHS: u32 = 4;
const STEPS_OF_EPOCH: u64 = 3;
const STEPS: u64 = EPOCHS as u64 * STEPS_OF_EPOCH;
/// How often the fault is tried, at random steps; once unless this is set.
const FAULTS: &str = "SHIPREID_RANK_FAULTS";
/// The seed of these steps; a fresh one unless this is set.
const SEED: &str = "SHIPREID_RANK_SEED";

/// One rank's part of every batch.
struct Parts {
    rows: Vec<usize>,
    /// The step, from 1, whose pixels are not numbers.
    poisoned: Option<u64>,
}

impl Source for Parts {
    type Item = u64;

    fn epoch(&self, _: u64, _: u32) -> Vec<u64> {
        (0..STEPS_OF_EPOCH).collect()
    }

    fn batch(&self, item: &u64, _: u64, epoch: u32) -> Result<Samples, String> {
        let step = u64::from(epoch - 1) * STEPS_OF_EPOCH + item;
        let mut samples = part(&fine_tuning(), step as usize, &self.rows);
        if self.poisoned == Some(step + 1) {
            samples.pixels.fill(f32::NAN);
        }
        Ok(samples)
    }
}

/// The losses of the steps that a rank has taken, with all bits, and why it ended early.
type Taken = (Vec<(u64, u64)>, Option<String>);

/// Trains, or resumes, in two ranks.
fn train(folder: &Path, poisoned: Option<(usize, u64)>) -> Vec<Taken> {
    let schedule = Schedule { base: 0.01, bias_factor: 2.0, warm_up_epochs: 1, epochs: EPOCHS };
    let plan = &Plan { seed: 1, schedule, checkpoint_epochs: 1, validation_epochs: 0, loaders: 1 };
    let (_store, places) = launch(2);
    each(&places, |place| {
        let peers = Ranks::new(Arc::new(join(place).expect("all come")));
        let mut learner = learner(&MICRO, "micro_weights", fine_tuning()).among(peers.clone(), false);
        let checkpoints = Checkpoints::open(&folder.join(place.rank.to_string()), 2, false);
        let checkpoints = &checkpoints.expect("writable").of_world(peers.world_size());
        let half = IMAGES / 2;
        let poisoned = poisoned.filter(|(rank, _)| *rank == place.rank).map(|(_, step)| step);
        let source = &Parts { rows: (place.rank * half..(place.rank + 1) * half).collect(), poisoned };
        let mut losses = Vec::new();
        let inputs = FitInputs { plan, source, validation: None, checkpoints, peers: &peers };
        let ended = fit(&inputs, &mut learner, &mut |event| {
            if let FitEvent::Step { progress, terms, .. } = event {
                losses.push((progress.steps, terms.total.to_bits()));
            }
            ControlFlow::Continue(())
        });
        (losses, ended.err().map(|cause| cause.to_string()))
    })
}

fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().expect("a number"))
}

#[test]
fn a_run_of_which_one_rank_computes_nan_resumes_with_the_same_losses() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let expected = train(&temporary.path().join("whole"), None);
    assert_eq!(expected[0], expected[1]);
    assert_eq!(expected[0].0.len() as u64, STEPS);
    let seed = given(SEED).unwrap_or_else(rand::random);
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    for round in 1..=given(FAULTS).unwrap_or(1) {
        let (rank, step) = (random.random_range(0..2), random.random_range(1..=STEPS));
        let what = format!("{SEED}={seed}, round {round}: NaN in rank {rank} at step {step}");
        println!("{what}");
        let folder = temporary.path().join(round.to_string());
        let before = (step - 1) / STEPS_OF_EPOCH * STEPS_OF_EPOCH;
        let (epoch, place) = (before / STEPS_OF_EPOCH + 1, step - before);
        let reason =
            format!("the run diverged at step {place} of epoch {epoch}: the loss of rank {rank} is NaN");
        for (losses, ended) in train(&folder, Some((rank, step))) {
            assert_eq!(losses, expected[0].0[..step as usize - 1], "{what}");
            let ended = ended.expect("it diverged");
            assert!(ended.starts_with(&reason), "{what}: {ended}");
        }
        for (losses, ended) in train(&folder, None) {
            assert_eq!(losses, expected[0].0[before as usize..], "{what}");
            assert_eq!(ended, None, "{what}");
        }
    }
}
