//! Which checkpoints are kept, and which are used to resume.

use super::*;
use crate::weights::tensors::HostTensor;

fn at(steps: u64) -> Progress {
    Progress { epoch: 1, steps_of_epoch: 0, steps }
}

fn state(value: f32) -> LearnerState {
    let tensor = |value| HostTensor { shape: vec![2], values: vec![value, -value] };
    LearnerState {
        weights: [("weight".to_owned(), tensor(value))].into(),
        optimizer: [("momentum".to_owned(), tensor(value + 1.0))].into(),
        steps: value as u32,
    }
}

#[test]
fn the_newest_and_the_best_stay() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = Checkpoints::open(folder.path(), 2, true).expect("writable");
    let mut left = Vec::new();
    for (steps, metric) in [(1, Some(0.2)), (2, Some(0.5)), (3, None), (4, Some(0.5)), (5, Some(0.1))] {
        checkpoints.save(at(steps), metric, &LearnerState::default()).expect("writable");
        let all = checkpoints.all().expect("readable");
        left = all.iter().filter_map(|folder| Some(read_progress(folder).ok()?.progress.steps)).collect();
    }
    assert_eq!(left, [2, 4, 5]);
}

#[test]
fn the_best_is_delivered_where_it_stays_and_is_better_than_the_last() {
    let better = |metrics: &[Option<f64>], keep_best: bool| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let checkpoints = Checkpoints::open(folder.path(), 2, keep_best).expect("writable");
        for (steps, metric) in (1..).zip(metrics) {
            checkpoints.save(at(steps), *metric, &state(steps as f32)).expect("writable");
        }
        checkpoints.better_than_last().expect("readable").map(|(progress, found)| {
            assert_eq!(found, state(progress.steps as f32));
            progress.steps
        })
    };
    for (metrics, keep_best, expected) in [
        (&[Some(0.2), Some(0.7), Some(0.3), Some(0.4), Some(0.1)][..], true, Some(2)),
        (&[Some(0.2), Some(0.7), Some(0.3)], false, None),
        (&[Some(0.2), Some(0.3)], true, None),
        (&[Some(0.3), Some(0.3)], true, None),
        (&[None, None], true, None),
        (&[], true, None),
    ] {
        assert_eq!(better(metrics, keep_best), expected, "{metrics:?}");
    }
}

#[test]
fn a_best_checkpoint_that_is_damaged_is_not_delivered() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = Checkpoints::open(folder.path(), 2, true).expect("writable");
    let best = checkpoints.save(at(1), Some(0.9), &state(1.0)).expect("writable");
    checkpoints.save(at(2), Some(0.1), &state(2.0)).expect("writable");
    std::fs::write(best.join(WEIGHTS), "no tensors").expect("writable");
    assert!(checkpoints.better_than_last().expect("readable").is_none());
}

#[test]
fn whichever_byte_of_a_checkpoint_is_flipped_no_other_numbers_are_taken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = Checkpoints::open(folder.path(), 1, false).expect("writable");
    checkpoints.save(at(1), None, &state(1.0)).expect("writable");
    let newest = checkpoints.save(at(2), Some(0.5), &state(2.0)).expect("writable");
    for file in [WEIGHTS, OPTIMIZER, PROGRESS] {
        let path = newest.join(file);
        let bytes = fs::read(&path).expect("readable");
        for place in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << (place % 8);
            fs::write(&path, flipped).expect("writable");
            let Newest { found, damaged, .. } = checkpoints.newest().expect("readable");
            match &damaged[..] {
                [] => assert_eq!(found, Some((at(2), state(2.0))), "{file}, byte {place}"),
                [one] => {
                    assert_eq!(found, Some((at(1), state(1.0))), "{file}, byte {place}");
                    assert_eq!(one.name, "checkpoint-0000000002");
                    assert!(one.cause.starts_with(file), "{}", one.cause);
                }
                more => panic!("{more:?}"),
            }
        }
        fs::write(&path, bytes).expect("writable");
    }
}

#[test]
fn a_checkpoint_of_an_earlier_release_is_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = Checkpoints::open(folder.path(), 2, false).expect("writable");
    let place = checkpoints.save(at(3), None, &state(3.0)).expect("writable");
    let text = "format = 1\noptimizer_steps = 3\n\n[progress]\nepoch = 1\nsteps_of_epoch = 0\nsteps = 3\n";
    fs::write(place.join(PROGRESS), text).expect("writable");
    let Newest { found, damaged, .. } = checkpoints.newest().expect("readable");
    assert_eq!((found, damaged), (Some((at(3), state(3.0))), vec![]));
}
