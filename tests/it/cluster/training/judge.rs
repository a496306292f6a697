//! Whether what happened to a job is what servers that share jobs promise: by what its processes did, what the database took,
//! and what its watchers were told.

use std::collections::{BTreeMap, BTreeSet};

use shipreid::wire::{JobState, TrainEvent, train_event};

use super::ledger::{What, Write};
use super::trail::{Deed, Did, Mark};

/// By name, with all bits.
pub type Losses = Vec<(String, u64)>;

/// All that is known of one job.
#[derive(Clone, Debug)]
pub struct History {
    /// What its processes did and servers suffered, in this order.
    pub trail: Vec<Mark>,
    /// What was committed, in this order.
    pub writes: Vec<Write>,
    /// Its events.
    pub told: Vec<Told>,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub number: u64,
    pub attempt: u32,
    pub what: Telling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Telling {
    /// With the model, once there is one.
    State(JobState, String),
    Progress(u64, Losses),
    Checkpoint(u64),
    Other,
}

/// How a job has to end.
#[derive(Clone, Debug)]
pub enum End {
    /// As one that nothing disturbed.
    Finished {
        losses: BTreeMap<u64, Losses>,
        model: String,
    },
    Cancelled,
}

/// One server's right to run the job.
#[derive(Debug)]
struct Claim<'h> {
    holder: Option<&'h String>,
    writer: &'h String,
    /// Its place among the writes.
    at: usize,
    attempt: u32,
}

impl From<&TrainEvent> for Told {
    fn from(event: &TrainEvent) -> Self {
        use train_event::Event;
        let what = match event.event.as_ref() {
            Some(Event::Job(job)) => Telling::State(job.state(), job.model.clone()),
            Some(Event::Progress(progress)) => {
                let losses = progress.losses.iter().map(|(name, loss)| (name.clone(), loss.to_bits()));
                let mut losses: Losses = losses.collect();
                losses.sort();
                Telling::Progress(progress.step, losses)
            }
            Some(Event::Checkpoint(saved)) => Telling::Checkpoint(saved.step),
            _ => Telling::Other,
        };
        Self { number: event.number, attempt: event.attempt, what }
    }
}

impl Told {
    /// Whether only the server that runs the job may write it.
    fn is_of_a_run(&self) -> bool {
        matches!(self.what, Telling::Progress(..) | Telling::Checkpoint(_))
    }
}

/// # Errors
/// What it is that must not happen.
pub fn judge(history: &History, end: &End) -> Result<(), String> {
    check_end(&history.told, end)?;
    let claims = claims(history)?;
    check_writers(history, &claims)?;
    check_processes(&history.trail)?;
    check_resumptions(history, &claims)?;
    check_steps(history)?;
    check_losses(&history.told, end)
}

/// It ends once, and its events are numbered without gaps.
fn check_end(told: &[Told], end: &End) -> Result<(), String> {
    if !told.iter().map(|told| told.number).eq(1..=told.len() as u64) {
        return Err("events are missing or doubled".into());
    }
    if !told.is_sorted_by_key(|told| told.attempt) {
        return Err("an event of an earlier attempt follows one of a later".into());
    }
    let is_end = |told: &&Told| {
        use JobState::{Cancelled, Failed, Finished};
        matches!(told.what, Telling::State(Finished | Failed | Cancelled, _))
    };
    let ends: Vec<&Told> = told.iter().filter(is_end).collect();
    let [last] = ends[..] else { return Err(format!("it has ended {} times: {ends:?}", ends.len())) };
    if last.number != told.len() as u64 {
        return Err("something has happened after its end".into());
    }
    let expected = match end {
        End::Finished { model, .. } => Telling::State(JobState::Finished, model.clone()),
        End::Cancelled => Telling::State(JobState::Cancelled, String::new()),
    };
    if last.what == expected { Ok(()) } else { Err(format!("it ends as {last:?}, not as {expected:?}")) }
}

/// The claims by their terms, which only grow.
fn claims(history: &History) -> Result<BTreeMap<i64, Claim<'_>>, String> {
    let mut claims: BTreeMap<i64, Claim<'_>> = BTreeMap::new();
    let (mut term, mut attempt) = (0, 0);
    for (at, write) in history.writes.iter().enumerate() {
        if write.term < term {
            return Err(format!("{write:?} was written in term {term}"));
        }
        term = write.term;
        match write.what {
            What::Event(number) => attempt = attempt_of(history, number)?,
            What::Claim => {
                let former = claims.values().next_back();
                if former.is_some_and(|former| former.attempt >= attempt) {
                    return Err(format!("attempt {attempt} was claimed twice"));
                }
                let claim = Claim { holder: write.holder.as_ref(), writer: &write.writer, at, attempt };
                if claims.insert(term, claim).is_some() {
                    return Err(format!("term {term} was claimed twice"));
                }
            }
            What::State | What::Renewal | What::Checkpoint(_) => {}
        }
    }
    Ok(claims)
}

fn told(history: &History, number: u64) -> Result<&Told, String> {
    let told = history.told.get(number as usize - 1);
    told.ok_or_else(|| format!("event {number} was written, and is not told"))
}

fn attempt_of(history: &History, number: u64) -> Result<u32, String> {
    Ok(told(history, number)?.attempt)
}

/// What a run says is written by the server that has claimed the job, while it holds it, and by no other.
fn check_writers(history: &History, claims: &BTreeMap<i64, Claim<'_>>) -> Result<(), String> {
    let mut number = 0;
    for write in &history.writes {
        let attempt = match write.what {
            What::State | What::Claim => continue,
            What::Event(written) => {
                number += 1;
                if written != number {
                    return Err(format!("event {written} was written where {number} is next"));
                }
                let told = told(history, written)?;
                if !told.is_of_a_run() {
                    continue;
                }
                Some(told.attempt)
            }
            What::Renewal | What::Checkpoint(_) => None,
        };
        let claim =
            claims.get(&write.term).ok_or_else(|| format!("nobody has claimed the job for {write:?}"))?;
        if (claim.holder, claim.writer) != (write.holder.as_ref(), &write.writer) {
            return Err(format!("{write:?} is not of the server that holds the job, {claim:?}"));
        }
        if attempt.is_some_and(|attempt| attempt != claim.attempt) {
            return Err(format!("{write:?} is of another attempt than {claim:?}"));
        }
    }
    if number == history.told.len() as u64 { Ok(()) } else { Err(format!("{number} events were written")) }
}

/// A process of an attempt.
struct Process {
    deed: Deed,
    /// Its server was stopped while it ran, so that it may go on until that wakes and ends it.
    is_orphan: bool,
}

/// Each attempt has one process, and none does anything once a later one has started.
fn check_processes(trail: &[Mark]) -> Result<(), String> {
    let mut processes: BTreeMap<u32, Process> = BTreeMap::new();
    let mut suspended = BTreeSet::new();
    for mark in trail {
        let deed = match mark {
            Mark::Suspended { server } => {
                suspended.insert(*server);
                let theirs = processes.values_mut().filter(|process| process.deed.server == *server);
                theirs.for_each(|process| process.is_orphan = true);
                continue;
            }
            Mark::Woken { server } => {
                suspended.remove(server);
                continue;
            }
            Mark::Process(deed) => deed,
        };
        let latest = processes.last_key_value().map_or(0, |(attempt, _)| *attempt);
        match (deed.did, processes.get(&deed.attempt)) {
            (Did::Started, None) if deed.attempt > latest => {
                let is_orphan = suspended.contains(&deed.server);
                processes.insert(deed.attempt, Process { deed: *deed, is_orphan });
            }
            (Did::Started, _) => return Err(format!("{deed:?}, and an attempt not before it had started")),
            (_, Some(process)) if process.deed.pid != deed.pid => {
                return Err(format!("{deed:?}, and process {} has the attempt", process.deed.pid));
            }
            // When its output ends is noted after the fact.
            (Did::Ended, Some(_)) => {}
            (_, Some(process)) if deed.attempt == latest || process.is_orphan => {}
            (_, Some(_)) => return Err(format!("{deed:?} while attempt {latest} runs")),
            (_, None) => return Err(format!("{deed:?} of a process that has not started")),
        }
    }
    Ok(())
}

/// Each attempt goes on from the last checkpoint that the database had when it was claimed, step by step, on the server that
/// has claimed it.
fn check_resumptions(history: &History, claims: &BTreeMap<i64, Claim<'_>>) -> Result<(), String> {
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    for deed in deeds(&history.trail) {
        match deed.did {
            Did::Begun(steps) => {
                let claim = claims.values().find(|claim| claim.attempt == deed.attempt);
                let claim = claim.ok_or_else(|| format!("{deed:?}, which nobody has claimed"))?;
                if *claim.writer != format!("server-{}", deed.server) {
                    return Err(format!("{deed:?}, which {claim:?} has claimed"));
                }
                let saved = history.writes[..claim.at].iter().filter_map(|write| match write.what {
                    What::Checkpoint(steps) => Some(steps),
                    _ => None,
                });
                let saved = saved.max().unwrap_or(0);
                if steps != saved {
                    return Err(format!("{deed:?}, and the last checkpoint has {saved} steps"));
                }
                next.insert(deed.attempt, steps + 1);
            }
            Did::Step(step) => match next.get_mut(&deed.attempt) {
                Some(next) if *next == step => *next += 1,
                next => return Err(format!("{deed:?} where step {next:?} is next")),
            },
            Did::Started | Did::Saved(_) | Did::Ended | Did::Other => {}
        }
    }
    Ok(())
}

/// Watchers are told of steps that the process of the same attempt has taken, each once, and of checkpoints that are there.
fn check_steps(history: &History) -> Result<(), String> {
    let taken: BTreeSet<(u32, u64)> = deeds(&history.trail)
        .filter_map(|deed| match deed.did {
            Did::Step(step) => Some((deed.attempt, step)),
            _ => None,
        })
        .collect();
    let kept = |steps: u64| history.writes.iter().any(|write| write.what == What::Checkpoint(steps));
    let mut steps = BTreeSet::new();
    for told in &history.told {
        match told.what {
            Telling::Progress(step, _) if !taken.contains(&(told.attempt, step)) => {
                return Err(format!("{told:?}, which its process has not taken"));
            }
            Telling::Progress(step, _) if !steps.insert((told.attempt, step)) => {
                return Err(format!("{told:?}, which was told before"));
            }
            Telling::Checkpoint(steps) if !kept(steps) => {
                return Err(format!("{told:?}, which the database does not have"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Every step is told, and has the same losses whenever it is repeated: those of a job that nothing disturbed, if the job has
/// finished.
fn check_losses(told: &[Told], end: &End) -> Result<(), String> {
    let mut losses: BTreeMap<u64, Losses> = BTreeMap::new();
    for told in told {
        let Telling::Progress(step, found) = &told.what else { continue };
        if losses.insert(*step, found.clone()).is_some_and(|before| before != *found) {
            return Err(format!("step {step} was repeated with other losses"));
        }
    }
    if !losses.keys().copied().eq(1..=losses.len() as u64) {
        return Err("steps are missing".into());
    }
    match end {
        End::Finished { losses: expected, .. } if *expected != losses => Err("its losses are others".into()),
        End::Finished { .. } | End::Cancelled => Ok(()),
    }
}

fn deeds(trail: &[Mark]) -> impl Iterator<Item = &Deed> {
    trail.iter().filter_map(|mark| match mark {
        Mark::Process(deed) => Some(deed),
        Mark::Suspended { .. } | Mark::Woken { .. } => None,
    })
}
