//! Histories of simulated jobs, with and without faults, by which the judge itself is judged.

use std::collections::BTreeMap;

use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::wire::JobState;

use super::judge::{End, History, Losses, Telling, Told, judge};
use super::ledger::{What, Write};
use super::trail::{Deed, Did, Mark};

const JOB: u64 = 7;
const SERVERS: usize = 3;
const STEPS: u64 = 20;
/// Between two checkpoints.
const EPOCH: u64 = 4;
/// Attempts that may fail; the next one finishes.
const ATTEMPTS: u32 = 4;
const MODEL: &str = "sha256:model";
const SEEDS: u64 = 60;

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// A process takes a step while that of a later attempt runs.
    TwoAtOnce,
    /// An attempt has two processes.
    TwoProcesses,
    /// A server that has lost the job writes an event.
    StaleEvent,
    /// A server that never had the job writes what only its holder may.
    WriteOfAnother,
    /// An attempt begins before the last checkpoint.
    LostCheckpoint,
    /// A checkpoint is told of that the database does not have.
    UnkeptCheckpoint,
    LostEvents,
    DoubledEvent,
    /// A step is told that its process has not taken.
    UntakenStep,
    OtherLosses,
    OtherModel,
    EndedTwice,
    NeverEnded,
}

fn losses(step: u64) -> Losses {
    vec![("total".into(), step.wrapping_mul(0x9E37_79B9))]
}

fn end() -> End {
    End::Finished { losses: (1..=STEPS).map(|step| (step, losses(step))).collect(), model: MODEL.into() }
}

fn holder(server: usize) -> String {
    format!("holder {server}")
}

fn writer(server: usize) -> String {
    format!("server-{server}")
}

/// A job that is run by servers as they promise.
struct Simulation {
    random: ChaCha8Rng,
    history: History,
    term: i64,
    attempt: u32,
    /// The steps of the last checkpoint.
    saved: u64,
    /// A process whose server was stopped, before its next step.
    orphan: Option<(Deed, u64)>,
}

impl Simulation {
    fn run(seed: u64) -> History {
        let mut simulation = Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            history: History { trail: vec![], writes: vec![], told: vec![] },
            term: 0,
            attempt: 1,
            saved: 0,
            orphan: None,
        };
        simulation.state(JobState::Queued, 0);
        while !simulation.attempt() {
            simulation.take_over();
        }
        simulation.history
    }

    /// One attempt. Returns whether it has finished.
    fn attempt(&mut self) -> bool {
        let server = self.server();
        self.state(JobState::Running, server);
        self.term += 1;
        self.write(What::Claim, server);
        let pid = self.random.random_range(100..1_000_000);
        let deed = Deed { job: JOB, attempt: self.attempt, server, pid, did: Did::Started };
        // A server that claims a job is awake, and has ended what was left of an earlier one.
        self.history.trail.push(Mark::Woken { server });
        self.orphan.take_if(|(orphan, _)| orphan.server == server);
        self.does(deed, Did::Started);
        self.does(deed, Did::Begun(self.saved));
        let fails = self.attempt <= ATTEMPTS && self.random.random_ratio(3, 4);
        let mut left = if fails { self.random.random_range(0..2 * EPOCH) } else { STEPS };
        for step in self.saved + 1..=STEPS {
            if left == 0 {
                self.fail(deed, step);
                return false;
            }
            left -= 1;
            self.step(deed, step);
        }
        self.does(deed, Did::Ended);
        self.tell(Telling::State(JobState::Finished, MODEL.into()), server, None);
        true
    }

    fn step(&mut self, deed: Deed, step: u64) {
        if let Some((orphan, its_step)) = self.orphan.take() {
            self.does(orphan, Did::Step(its_step));
            let goes_on = its_step < STEPS && self.random.random_ratio(2, 3);
            self.orphan = goes_on.then_some((orphan, its_step + 1));
        }
        self.does(deed, Did::Step(step));
        self.tell(Telling::Progress(step, losses(step)), deed.server, Some(deed.server));
        if self.random.random_ratio(1, 5) {
            self.write(What::Renewal, deed.server);
        }
        if step.is_multiple_of(EPOCH) {
            self.does(deed, Did::Saved(step));
            self.write(What::Checkpoint(step), deed.server);
            self.saved = step;
            self.tell(Telling::Checkpoint(step), deed.server, Some(deed.server));
        }
    }

    /// Its server dies, or is stopped.
    fn fail(&mut self, deed: Deed, step: u64) {
        if self.random.random() {
            self.history.trail.push(Mark::Suspended { server: deed.server });
            self.orphan = Some((deed, step));
        } else {
            self.does(deed, Did::Ended);
        }
    }

    fn take_over(&mut self) {
        let server = self.server();
        self.term += 1;
        self.state(JobState::Interrupted, server);
        self.attempt += 1;
        self.state(JobState::Queued, server);
    }

    fn server(&mut self) -> usize {
        self.random.random_range(0..SERVERS)
    }

    fn does(&mut self, deed: Deed, did: Did) {
        self.history.trail.push(Mark::Process(Deed { did, ..deed }));
    }

    fn state(&mut self, state: JobState, server: usize) {
        self.tell(Telling::State(state, String::new()), server, None);
    }

    fn tell(&mut self, what: Telling, server: usize, held_by: Option<usize>) {
        let number = self.history.told.len() as u64 + 1;
        self.history.told.push(Told { number, attempt: self.attempt, what });
        let write = Write {
            what: What::Event(number),
            term: self.term,
            holder: held_by.map(holder),
            writer: writer(server),
        };
        self.history.writes.push(write);
    }

    fn write(&mut self, what: What, server: usize) {
        let write = Write { what, term: self.term, holder: Some(holder(server)), writer: writer(server) };
        self.history.writes.push(write);
    }
}

/// The places of a history at which something holds.
fn places<T>(all: &[T], holds: impl Fn(&T) -> bool) -> Vec<usize> {
    (0..all.len()).filter(|place| holds(&all[*place])).collect()
}

fn deed_at(trail: &[Mark], place: usize) -> Deed {
    match trail[place] {
        Mark::Process(deed) => deed,
        ref other => panic!("{other:?}"),
    }
}

impl Fault {
    /// Lets it happen; `None` if it cannot in this history.
    fn happen(self, history: &mut History, random: &mut ChaCha8Rng) -> Option<()> {
        let History { trail, writes, told } = history;
        match self {
            Self::TwoAtOnce => {
                let (place, former) = second_start(trail, random)?;
                trail.insert(place + 1, Mark::Process(Deed { did: Did::Other, ..former }));
            }
            Self::TwoProcesses => {
                let begun =
                    places(trail, |mark| matches!(mark, Mark::Process(deed) if deed.did == Did::Started));
                let place = begun.into_iter().choose(random)?;
                let deed = deed_at(trail, place);
                trail.insert(place + 1, Mark::Process(Deed { pid: deed.pid + 1, ..deed }));
            }
            Self::StaleEvent => {
                let claims = places(writes, |write| write.what == What::Claim);
                let steps = places(told, |told| matches!(told.what, Telling::Progress(..)));
                let number = told[steps.into_iter().choose(random)?].number;
                let place = writes.iter().position(|write| write.what == What::Event(number))?;
                let before: Vec<usize> = claims.into_iter().filter(|claim| *claim < place).collect();
                let [.., stale, _] = before[..] else { return None };
                writes[place] = Write { what: What::Event(number), ..writes[stale].clone() };
            }
            Self::WriteOfAnother => {
                let held = places(writes, |write| matches!(write.what, What::Renewal | What::Checkpoint(_)));
                writes[held.into_iter().choose(random)?].writer = writer(SERVERS);
            }
            Self::LostCheckpoint => {
                let late = |mark: &Mark| matches!(mark, Mark::Process(Deed { did: Did::Begun(steps), .. }) if *steps > 0);
                let place = places(trail, late).into_iter().choose(random)?;
                let deed = deed_at(trail, place);
                let Did::Begun(steps) = deed.did else { unreachable!("it was chosen so") };
                trail[place] = Mark::Process(Deed { did: Did::Begun(steps - EPOCH), ..deed });
                let again = (steps - EPOCH + 1..=steps)
                    .map(|step| Mark::Process(Deed { did: Did::Step(step), ..deed }));
                drop(trail.splice(place + 1..place + 1, again));
            }
            Self::UnkeptCheckpoint => {
                let last = |write: &Write| write.what == What::Checkpoint(STEPS);
                let place = places(writes, last).into_iter().next()?;
                writes.remove(place);
            }
            Self::LostEvents => {
                let step = random.random_range(1..=STEPS);
                forget(history, |told| matches!(told.what, Telling::Progress(taken, _) if taken == step));
            }
            Self::DoubledEvent => {
                let steps = places(told, |told| matches!(told.what, Telling::Progress(..)));
                double(history, steps.into_iter().choose(random)?);
            }
            Self::UntakenStep => {
                let finished = told.last()?.attempt;
                let is_last = |mark: &Mark| matches!(mark, Mark::Process(Deed { did: Did::Step(STEPS), attempt, .. }) if *attempt == finished);
                let place = places(trail, is_last).pop()?;
                trail.remove(place);
            }
            Self::OtherLosses => {
                let step = random.random_range(1..=STEPS);
                let same = |told: &Told| matches!(told.what, Telling::Progress(taken, _) if taken == step);
                let place = places(told, same).pop()?;
                told[place].what = Telling::Progress(step, losses(step + 1));
            }
            Self::OtherModel => {
                told.last_mut()?.what = Telling::State(JobState::Finished, "sha256:other".into());
            }
            Self::EndedTwice => {
                let last = told.len() - 1;
                double(history, last);
            }
            Self::NeverEnded => {
                let last = told.len() as u64;
                forget(history, |told| told.number == last);
            }
        }
        Some(())
    }
}

/// Where a later attempt starts, and what that before it did first, unless its server was stopped meanwhile.
fn second_start(trail: &[Mark], random: &mut ChaCha8Rng) -> Option<(usize, Deed)> {
    let starts = places(trail, |mark| matches!(mark, Mark::Process(deed) if deed.did == Did::Started));
    let pairs = starts.windows(2).filter_map(|pair| {
        let former = deed_at(trail, pair[0]);
        let was_stopped = trail[pair[0]..pair[1]].contains(&Mark::Suspended { server: former.server });
        (!was_stopped).then_some((pair[1], former))
    });
    pairs.choose(random)
}

/// Takes out events, and numbers the others anew.
fn forget(history: &mut History, is_forgotten: impl Fn(&Told) -> bool) {
    let mut numbers = BTreeMap::new();
    history.told.retain(|told| !is_forgotten(told));
    for (number, told) in (1..).zip(&mut history.told) {
        numbers.insert(told.number, number);
        told.number = number;
    }
    history.writes.retain_mut(|write| {
        let What::Event(former) = write.what else { return true };
        let number = numbers.get(&former).copied();
        write.what = What::Event(number.unwrap_or(0));
        number.is_some()
    });
}

/// Has an event twice, and numbers the others anew.
fn double(history: &mut History, place: usize) {
    let again = history.told[place].clone();
    let at =
        history.writes.iter().position(|write| write.what == What::Event(again.number)).expect("written");
    history.writes.insert(at, history.writes[at].clone());
    history.told.insert(place, again);
    for (number, told) in (1..).zip(&mut history.told) {
        told.number = number;
    }
    let events = history.writes.iter_mut().filter(|write| matches!(write.what, What::Event(_)));
    for (number, write) in (1..).zip(events) {
        write.what = What::Event(number);
    }
}

#[test]
fn histories_of_jobs_that_are_run_as_promised_are_accepted() {
    let (mut attempts, mut orphans) = (0, 0);
    for seed in 0..SEEDS {
        let history = Simulation::run(seed);
        assert_eq!(judge(&history, &end()), Ok(()), "seed {seed}");
        attempts += history.told.last().expect("its end").attempt;
        orphans += places(&history.trail, |mark| matches!(mark, Mark::Suspended { .. })).len();
    }
    assert!(attempts > 2 * SEEDS as u32 && orphans > SEEDS as usize / 2, "{attempts} {orphans}");
}

#[test]
fn a_job_that_was_not_cancelled_does_not_end_as_if_it_were() {
    assert!(judge(&Simulation::run(0), &End::Cancelled).is_err());
}

fn check_fault(fault: Fault) {
    let mut happened = 0;
    for seed in 0..SEEDS {
        let mut history = Simulation::run(seed);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        if fault.happen(&mut history, &mut random).is_some() {
            happened += 1;
            assert!(judge(&history, &end()).is_err(), "{fault:?}, seed {seed}");
        }
    }
    assert!(happened > SEEDS / 6, "{fault:?} happened {happened} times");
}

#[test]
fn a_job_that_is_run_twice_at_once_is_rejected() {
    [Fault::TwoAtOnce, Fault::TwoProcesses].into_iter().for_each(check_fault);
}

#[test]
fn writes_of_a_server_that_does_not_hold_the_job_are_rejected() {
    [Fault::StaleEvent, Fault::WriteOfAnother].into_iter().for_each(check_fault);
}

#[test]
fn a_job_that_does_not_go_on_from_its_last_checkpoint_is_rejected() {
    [Fault::LostCheckpoint, Fault::UnkeptCheckpoint].into_iter().for_each(check_fault);
}

#[test]
fn events_that_are_lost_doubled_or_made_up_are_rejected() {
    [Fault::LostEvents, Fault::DoubledEvent, Fault::UntakenStep].into_iter().for_each(check_fault);
}

#[test]
fn other_losses_and_another_model_are_rejected() {
    [Fault::OtherLosses, Fault::OtherModel].into_iter().for_each(check_fault);
}

#[test]
fn a_job_that_ends_twice_or_never_is_rejected() {
    [Fault::EndedTwice, Fault::NeverEnded].into_iter().for_each(check_fault);
}
