//! Training in several processes, by the command line and by a server, undisturbed and with faults.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::runs::{drawn_training_set, events, model_line, training};
use crate::training::{TrainingFolder, Watcher, at_step, is_gone, signal, start};
use shipreid::wire::train_event::Event;
use shipreid::wire::{JobState, TrainRequest};

const RANKS: [&str; 4] = ["--processes", "2", "--silence-max", "4"];
/// How often each fault is tried, at random steps; once unless this is set.
const FAULTS: &str = "SHIPREID_RANK_FAULTS";
/// The seed of these steps; a fresh one unless this is set.
const SEED: &str = "SHIPREID_RANK_SEED";
/// What a rank logs once all have come.
const MET: &str = "the ranks have met";

pub fn together(root: &Path, out: &str) -> Command {
    let mut command = training(root, out);
    command.args(RANKS).stderr(Stdio::piped()).env_remove("OMP_NUM_THREADS");
    command
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// The events and the model of a run of two ranks that nothing disturbs.
pub fn undisturbed(root: &Path) -> (String, String) {
    let whole = together(root, "whole").output().unwrap();
    assert!(whole.status.success(), "{}", said(&whole));
    let expected = events(root, "whole");
    assert_eq!(expected.lines().count(), 16);
    (expected, model_line(&whole.stdout))
}

/// One of two ranks as a launcher starts them.
pub fn launched(command: &mut Command, rank: usize, port: u16) -> &mut Command {
    let number = rank.to_string();
    let place = [("RANK", number.as_str()), ("LOCAL_RANK", &number), ("WORLD_SIZE", "2")];
    command.envs(place).envs([("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")]);
    command.env("MASTER_PORT", port.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// A port that is free, unless another program takes it meanwhile.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().expect("a number"))
}

/// The process that this one has started.
fn rank_1(rank_0: impl Display) -> Option<i32> {
    let children = format!("/proc/{rank_0}/task/{rank_0}/children");
    fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()
}

/// How often rank 1 has met rank 0, by its log.
fn meetings(root: &Path, out: &str) -> usize {
    let log = fs::read_to_string(root.join(out).join("rank-1.log")).unwrap_or_default();
    log.matches(MET).count()
}

/// Sends a signal to rank 1 after this many steps, once the ranks of this attempt have met; returns what rank 0 says.
fn disturb(root: &Path, out: &str, attempt: usize, (steps, kind): (usize, libc::c_int)) -> String {
    let run = together(root, out).spawn().unwrap();
    while meetings(root, out) < attempt || events(root, out).lines().count() < steps {
        std::thread::yield_now();
    }
    let disturbed = rank_1(run.id()).expect("it has met rank 0");
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
    let (expected, model) = undisturbed(root.path());
    let seed = given(SEED).unwrap_or_else(rand::random);
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    for round in 1..=given(FAULTS).unwrap_or(1) {
        let mut steps: Vec<usize> = (0..2).map(|_| random.random_range(1..=12)).collect();
        steps.sort_unstable();
        let what = format!("{SEED}={seed}, round {round}: killed and stopped after steps {steps:?}");
        println!("{what}");
        let out = format!("disturbed-{round}");
        let faults = steps.into_iter().zip([libc::SIGKILL, libc::SIGSTOP]);
        for (attempt, fault) in (1..).zip(faults) {
            let reason = disturb(root.path(), &out, attempt, fault);
            assert!(reason.contains("rank 1 has ended or hangs"), "{what}: {reason}");
        }
        let resumed = together(root.path(), &out).output().unwrap();
        assert_eq!(events(root.path(), &out), expected, "{what}");
        assert_eq!(model_line(&resumed.stdout), model, "{what}");
        assert_eq!(meetings(root.path(), &out), 3, "{what}: the log of every attempt is kept");
    }
}

#[test]
fn processes_of_a_launcher_take_the_steps_of_those_that_the_command_starts() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let (expected, model) = undisturbed(root.path());
    let port = free_port();
    let ranks: Vec<_> = (0..2)
        .map(|rank| {
            let mut command = training(root.path(), "launched");
            // As torchrun does, unless it is set.
            launched(&mut command, rank, port).env("OMP_NUM_THREADS", "1").spawn().unwrap()
        })
        .collect();
    let ended: Vec<Output> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    assert!(ended.iter().all(|rank| rank.status.success()), "{} {}", said(&ended[0]), said(&ended[1]));
    assert_eq!(events(root.path(), "launched"), expected);
    assert_eq!(model_line(&ended[0].stdout), model);
    let epochs = said(&ended[0]);
    let of_both = |line: &&str| line.contains(" images/s, all-reduce ") && line.ends_with(" %");
    assert_eq!(epochs.lines().filter(of_both).count(), 8, "{epochs}");
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

/// What the kernel allows a process, and the priority that it has.
fn limits(process: i32) -> (String, String) {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let data = limits.lines().find(|line| line.starts_with("Max data size")).unwrap().to_owned();
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The 19th field; the second one is a name in parentheses.
    let nice = stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().to_owned();
    (data, nice)
}

#[tokio::test]
async fn a_job_of_two_processes_outlives_the_death_of_either() {
    let place = TrainingFolder::new();
    let settings = [
        "training.processes=2",
        "training.heartbeat_seconds_max=20",
        "training.nice=3",
        "training.memory_bytes_max=8589934592",
    ];
    let (server, client) = place.serve(&settings).await;
    let odd = place.config(0).replace("images = 8", "images = 12");
    let odd = client.validate_training(TrainRequest { config_toml: odd, ..TrainRequest::default() }).await;
    let refused = odd.expect_err("three identities for two processes").to_string();
    assert!(refused.contains("are not a multiple of 2 training processes"), "{refused}");

    let mut undisturbed = Watcher::default();
    let job = start(&client, place.config(0)).await;
    undisturbed.watch(&client, &job, |_| false).await;
    assert_eq!(undisturbed.last_job().state(), JobState::Finished, "{:?}", undisturbed.last_job());
    let of_both = undisturbed.events.iter().filter(|event| {
        let Some(Event::Progress(progress)) = &event.event else { return false };
        progress.processes == 2 && progress.all_reduce.is_some() && progress.images_per_second > 0.0
    });
    assert_eq!(of_both.count(), 20);
    let named =
        |event: &&Event| matches!(event, Event::LogLine(line) if line.contains("its log is rank-1.log"));
    let told = undisturbed.events.iter().filter_map(|event| event.event.as_ref());
    assert_eq!(told.filter(named).count(), 1);

    let mut watcher = Watcher::default();
    let job = start(&client, place.config(0)).await;
    watcher.watch(&client, &job, at_step(4)).await;
    let follower = rank_1(place.process(&job)).expect("rank 0 has started it");
    let [of_leader, of_follower] = [place.process(&job), follower].map(limits);
    assert_eq!(of_follower, of_leader);
    assert!(of_leader.0.contains("8589934592"), "{of_leader:?}");
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
    let log = fs::read_to_string(place.data().join("jobs").join(&job).join("rank-1.log")).unwrap();
    assert_eq!(log.matches(MET).count(), 3, "{log}");
    server.terminate();
}
