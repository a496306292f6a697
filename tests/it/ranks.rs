//! Training in several processes, by the command line and by a server.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::runs::{drawn_training_set, events, model_line, training};
use crate::training::{TrainingFolder, Watcher, at_step, is_gone, signal, start};
use shipreid::wire::JobState;

const RANKS: [&str; 4] = ["--processes", "2", "--silence-max", "4"];

fn together(root: &Path, out: &str) -> Command {
    let mut command = training(root, out);
    command.args(RANKS).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// The process that this one has started.
fn rank_1(rank_0: impl Display) -> Option<i32> {
    let children = format!("/proc/{rank_0}/task/{rank_0}/children");
    fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()
}

/// Sends a signal to rank 1 after this many steps; returns what rank 0 then says.
fn disturb(root: &Path, out: &str, steps: usize, kind: libc::c_int) -> String {
    let run = together(root, out).spawn().unwrap();
    let disturbed = loop {
        if events(root, out).lines().count() >= steps
            && let Some(rank_1) = rank_1(run.id())
        {
            break rank_1;
        }
        std::thread::yield_now();
    };
    signal(disturbed, kind);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    // No rank outlives the run.
    while !is_gone(disturbed) {
        std::thread::yield_now();
    }
    said(&output)
}

#[test]
fn two_ranks_of_which_one_is_killed_or_stopped_resume_with_the_same_steps() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let undisturbed = together(root.path(), "whole").output().unwrap();
    assert!(undisturbed.status.success(), "{}", said(&undisturbed));
    let expected = events(root.path(), "whole");
    assert_eq!(expected.lines().count(), 16);
    assert!(root.path().join("whole/rank-1.log").exists());

    let mut steps: Vec<usize> = (0..2).map(|_| rand::random_range(1..=12)).collect();
    steps.sort_unstable();
    for (steps, signal) in steps.iter().zip([libc::SIGKILL, libc::SIGSTOP]) {
        let reason = disturb(root.path(), "disturbed", *steps, signal);
        assert!(reason.contains("rank 1 has ended or hangs"), "{reason}");
    }
    let resumed = together(root.path(), "disturbed").output().unwrap();
    assert_eq!(events(root.path(), "disturbed"), expected, "disturbed at {steps:?}");
    assert_eq!(model_line(&resumed.stdout), model_line(&undisturbed.stdout), "disturbed at {steps:?}");
}

#[test]
fn a_run_resumes_with_another_number_of_processes_and_records_that() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let short = together(root.path(), "out").args(["--set", "schedule.epochs=2"]).output().unwrap();
    assert!(short.status.success(), "{}", said(&short));
    let alone = training(root.path(), "out").arg("--force").stderr(Stdio::piped()).output().unwrap();
    assert!(alone.status.success(), "{}", said(&alone));
    assert!(said(&alone).contains("resuming with 1 processes instead of 2"), "{}", said(&alone));
    let events = events(root.path(), "out");
    let known: BTreeSet<String> = events.lines().map(|line| line.replace(' ', "")).collect();
    let change = r#"{"before":2,"event":"world_size","now":1,"step":4}"#;
    assert!(known.contains(change), "{events}");
    assert_eq!(events.lines().count(), 17);
}

#[test]
fn processes_that_cannot_share_a_batch_are_refused() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let three =
        training(root.path(), "out").args(["--processes", "3"]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(three.status.code(), Some(2));
    assert!(said(&three).contains("batch.images gives no batch"), "{}", said(&three));
    let lost = training(root.path(), "out").env("RANK", "1").stderr(Stdio::piped()).output().unwrap();
    assert_eq!(lost.status.code(), Some(2));
    assert!(said(&lost).contains("WORLD_SIZE is not set, though RANK is"), "{}", said(&lost));
}

#[tokio::test]
async fn a_job_of_two_processes_outlives_the_death_of_either() {
    let place = TrainingFolder::new();
    let (server, client) = place.serve(&["training.processes=2", "training.heartbeat_seconds_max=20"]).await;
    let mut undisturbed = Watcher::default();
    let job = start(&client, place.config(0)).await;
    undisturbed.watch(&client, &job, |_| false).await;
    assert_eq!(undisturbed.last_job().state(), JobState::Finished, "{:?}", undisturbed.last_job());

    let mut watcher = Watcher::default();
    let job = start(&client, place.config(0)).await;
    watcher.watch(&client, &job, at_step(4)).await;
    let follower = rank_1(place.process(&job)).expect("rank 0 has started it");
    signal(follower, libc::SIGKILL);
    watcher.watch(&client, &job, at_step(9)).await;
    let leader = place.process(&job);
    let orphan = rank_1(leader).expect("rank 0 has started it");
    signal(leader, libc::SIGKILL);
    watcher.watch(&client, &job, |_| false).await;
    assert!([follower, leader, orphan].into_iter().all(is_gone));
    let attempts: BTreeSet<u32> = watcher.states().into_iter().map(|(attempt, _)| attempt).collect();
    assert_eq!(attempts, BTreeSet::from([1, 2, 3]));
    assert_eq!(watcher.losses(), undisturbed.losses());
    assert_eq!(watcher.last_job().model, undisturbed.last_job().model);
    server.terminate();
}
