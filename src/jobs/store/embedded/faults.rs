//! Power failures, killed processes and failing disks: acknowledged writes survive, and every event is stored once.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::durable::faults::{Failure, FaultyDisk};
use crate::evaluate::Evaluation;
use crate::jobs::event::JobEvent;
use crate::jobs::failure::Failure as Cause;
use crate::jobs::report::{RunEvent, SavedCheckpoint};
use crate::jobs::state::{Change, Refused};
use crate::reason::FailureReason;

const SEEDS: u64 = 400;
const BOUNDS: Bounds = Bounds { jobs_max: 6, events_retained_max: 9 };

/// Jobs as they should be, with their events.
type Model = BTreeMap<JobId, (Job, Vec<JobEvent>)>;

/// A store on a failing disk, and its expected content.
struct Trial {
    disk: FaultyDisk,
    random: ChaCha8Rng,
    clock: i64,
    model: Model,
    /// The content if a redo that was not acknowledged was applied nevertheless.
    perhaps: Option<Model>,
    /// New jobs must not get a lower number.
    next_id: u64,
}

#[derive(Clone, Debug)]
enum JobWrite {
    Log(usize),
    Change(Change),
    Evaluated(u32),
    Saved(u64),
}

impl JobWrite {
    fn apply(&self, edit: &mut Edit) -> Result<(), Refused> {
        match self {
            Self::Log(lines) => (0..*lines).for_each(|line| edit.log(format!("line {line}"))),
            Self::Change(change) => edit.change(change.clone())?,
            Self::Evaluated(epoch) => edit.report(RunEvent::Evaluated(Evaluation {
                protocol: "all".into(),
                epoch: *epoch,
                mean_average_precision: 0.5,
                ..Evaluation::default()
            })),
            Self::Saved(step) => edit.report(RunEvent::Saved(SavedCheckpoint { step: *step, best: false })),
        }
        Ok(())
    }
}

impl Trial {
    fn new(seed: u64) -> Self {
        let disk = FaultyDisk::new(seed);
        EmbeddedJobs::create(&disk).expect("no failure is planned");
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { disk, random, clock: 0, model: Model::new(), perhaps: None, next_id: 1 }
    }

    /// From opening the store to a killed process or a power failure.
    fn live(&mut self) {
        if self.random.random_bool(0.7) {
            let lasts = if self.random.random() { Failure::Lasting } else { Failure::Passing };
            self.disk.fail_after(self.random.random_range(0..60), lasts);
        }
        if let Some(store) = self.open() {
            for _ in 0..self.random.random_range(1..12) {
                if self.perhaps.is_some() {
                    break;
                }
                self.clock += 1;
                match self.random.random_range(0..10) {
                    0..2 => self.add(&store),
                    2 => self.delete(&store),
                    _ => self.update(&store),
                }
            }
            self.disk.cut();
        }
        if self.random.random() { self.disk.restart_machine() } else { self.disk.restart_process() }
    }

    fn open(&mut self) -> Option<EmbeddedJobs> {
        match EmbeddedJobs::open(Box::new(self.disk.clone()), BOUNDS) {
            Ok(store) => {
                self.settle(&store);
                Some(store)
            }
            Err(StoreError::Unavailable(_)) => None,
            Err(other) => panic!("{other}"),
        }
    }

    /// Checks that the store is in one of the permitted states, and expects that one from now on.
    fn settle(&mut self, store: &EmbeddedJobs) {
        let Ok(All { jobs, damaged }) = store.all() else { return };
        assert_eq!(damaged, []);
        let found: Vec<(JobId, u64)> = jobs.iter().map(|job| (job.key.id, job.last_event)).collect();
        let ends =
            |model: &Model| model.iter().map(|(id, (job, _))| (*id, job.last_event)).collect::<Vec<_>>();
        if let Some(perhaps) = self.perhaps.take()
            && found == ends(&perhaps)
        {
            self.model = perhaps;
        }
        assert_eq!(found, ends(&self.model), "acknowledged jobs and events");
        for (id, (job, events)) in &self.model {
            assert_eq!(store.get(&job.key).expect("readable").as_ref(), Some(job), "{id}");
            let kept = &events[events.len().saturating_sub(BOUNDS.events_retained_max as usize)..];
            let replay = store.events(&job.key, kept[0].number, 100).expect("readable").expect("known");
            let complete = job.state.is_ended();
            assert_eq!(replay, Replay::Events { events: kept.to_vec(), complete }, "{id}");
        }
    }

    fn add(&mut self, store: &EmbeddedJobs) {
        let request_id = Some(format!("r{}", self.random.random_range(0..8)));
        let order = JobSpec { request_id: request_id.clone(), ..JobSpec::default() };
        let known = self.model.values().find(|(job, _)| job.order.request_id == request_id);
        let known = known.map(|(job, _)| job.clone());
        let now = Time::from_nanos(self.clock);
        match store.add(&"a".into(), order.clone(), now) {
            Ok(Added::Known(job)) => assert_eq!(Some(job), known),
            Ok(Added::New(job)) => {
                assert_eq!(known, None);
                assert!(job.key.id.number() >= self.next_id, "numbers are never used again");
                self.next_id = job.key.id.number() + 1;
                record(&mut self.model, &Edit::created(Job { last_event: 0, ..job }, now));
            }
            Err(AddError::Full { .. }) => assert_eq!(self.model.len(), BOUNDS.jobs_max),
            Err(AddError::Store(StoreError::Unavailable(_))) => {}
            Err(AddError::Store(StoreError::Pending(_))) => {
                let id = JobId::new(self.next_id);
                let key = JobKey { tenant: "a".into(), id };
                let mut perhaps = self.model.clone();
                record(&mut perhaps, &Edit::created(Job::new(key, order, now), now));
                self.pend(store, perhaps);
                self.next_id += u64::from(self.model.contains_key(&id));
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn update(&mut self, store: &EmbeddedJobs) {
        let Some(key) = self.any() else { return };
        let work = self.work();
        let now = Time::from_nanos(self.clock);
        let mut edit = Edit::new(self.model[&key.id].0.clone(), now);
        let expected = work.apply(&mut edit);
        match store.update(&key, now, |edit| work.apply(edit)) {
            Ok(job) => {
                expected.expect("the store takes what is legal only");
                assert_eq!(job, *edit.job());
                record(&mut self.model, &edit);
            }
            Err(UpdateError::Refused(refused)) => assert_eq!(expected, Err(refused)),
            Err(UpdateError::Store(StoreError::Unavailable(_))) => {}
            Err(UpdateError::Store(StoreError::Pending(_))) => {
                let mut perhaps = self.model.clone();
                record(&mut perhaps, &edit);
                self.pend(store, perhaps);
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn delete(&mut self, store: &EmbeddedJobs) {
        let Some(key) = self.any() else { return };
        let mut without = self.model.clone();
        without.remove(&key.id);
        match store.delete(&key, |_| Ok::<(), Refused>(())) {
            Ok(_) => self.model = without,
            Err(UpdateError::Store(_)) => {
                // Whether it was written shows when the store can be used again.
                self.perhaps = Some(without);
                self.settle(store);
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// A write that failed is applied if the store can be used again before the process is killed.
    fn pend(&mut self, store: &EmbeddedJobs, perhaps: Model) {
        if store.heal().is_ok() {
            self.model = perhaps;
            self.settle(store);
            return;
        }
        // It cannot be used: the content is undetermined until the next process opens it.
        self.perhaps = Some(perhaps);
        self.disk.cut();
    }

    fn any(&mut self) -> Option<JobKey> {
        let count = self.model.len();
        if count == 0 {
            return None;
        }
        let chosen = self.random.random_range(0..count);
        self.model.values().nth(chosen).map(|(job, _)| job.key.clone())
    }

    fn work(&mut self) -> JobWrite {
        match self.random.random_range(0..10) {
            0..4 => JobWrite::Log(self.random.random_range(1..6)),
            4 => JobWrite::Evaluated(self.random.random_range(1..4)),
            5 => JobWrite::Saved(self.random.random_range(1..100)),
            6 => JobWrite::Change(Change::Start),
            7 => JobWrite::Change(Change::Cancel),
            8 => JobWrite::Change(Change::Resume),
            _ => JobWrite::Change(Change::Fail(Cause::new(FailureReason::Hung, "silent"))),
        }
    }
}

fn record(model: &mut Model, edit: &Edit) {
    let (job, happened, occurred_at) = edit.clone().into_parts();
    let first = job.last_event + 1 - happened.len() as u64;
    let events = (first..).zip(happened).map(|(number, (attempt, payload))| JobEvent {
        number,
        attempt,
        occurred_at,
        payload,
    });
    let (known, all) = model.entry(job.key.id).or_insert_with(|| (job.clone(), vec![]));
    *known = job;
    all.extend(events);
}

#[test]
fn what_is_acknowledged_survives_and_no_event_is_lost_or_doubled_whatever_the_disk_does() {
    let mut events = 0;
    for seed in 0..SEEDS {
        let mut trial = Trial::new(seed);
        for _ in 0..6 {
            trial.live();
        }
        trial.open().expect("the disk is whole");
        events += trial.model.values().map(|(_, events)| events.len()).sum::<usize>();
    }
    assert!(events > SEEDS as usize, "the trials did something: {events}");
}
