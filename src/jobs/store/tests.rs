//! What the store keeps, lists, replays and refuses.

use std::path::Path;

use super::super::failure::Failure;
use super::super::report::{Progress, Rankings, RunEvent, SavedCheckpoint};
use super::super::state::{Change, JobState, Refused};
use super::tables::REPLAY_BYTES;
use super::*;
use crate::durable::Folder;
use crate::durable::faults::{Failure as Fault, FaultyDisk};
use crate::evaluate::Evaluation;
use crate::gallery::GalleryName;
use crate::reason::FailureReason;

pub(super) const NOW: Time = Time::from_nanos(1);
/// Stores as releases wrote them, by schema version.
const RELEASED: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jobs-1"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jobs-2"),
];
const BOUNDS: Bounds = Bounds { jobs_max: 3, events_retained_max: 5 };

pub(super) struct Place {
    pub store: JobStore,
    pub folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        JobStore::create(&Folder(folder.path().to_owned())).expect("writable");
        Self { store: open(&folder), folder }
    }

    pub fn reopened(self) -> Self {
        drop(self.store);
        Self { store: open(&self.folder), folder: self.folder }
    }
}

pub(super) fn open(folder: &tempfile::TempDir) -> JobStore {
    JobStore::open(Box::new(Folder(folder.path().to_owned())), BOUNDS).expect("a store")
}

pub(super) fn order(config: &str, request_id: Option<&str>) -> JobSpec {
    let request_id = request_id.map(str::to_owned);
    JobSpec { config_toml: config.into(), request_id, ..JobSpec::default() }
}

pub(super) fn add(store: &JobStore, tenant: &str, order: JobSpec) -> Job {
    match store.add(&tenant.into(), order, NOW) {
        Ok(Added::New(job)) => job,
        other => panic!("a new job, not {other:?}"),
    }
}

fn events(store: &JobStore, key: &JobKey, from: u64) -> Replay {
    store.events(key, from, 3).expect("readable").expect("known")
}

#[test]
fn jobs_are_found_again_newest_first_and_by_their_tenant_only() {
    let place = Place::new();
    let jobs: Vec<Job> = (0..3).map(|_| add(&place.store, "a", order("x", None))).collect();
    let other = add(&place.store, "b", order("x", None));
    let running = place.store.update(&jobs[1].key, NOW, |edit| edit.change(Change::Start)).expect("legal");
    let Place { store, .. } = &place.reopened();
    let list = |states: &[StateName], before: Option<JobId>, limit| {
        let listing = Listing { states: states.to_vec(), before, limit };
        let page = store.list(&"a".into(), &listing).expect("readable");
        (page.jobs.iter().map(|job| job.key.id).collect::<Vec<_>>(), page.more)
    };
    let ids: Vec<JobId> = jobs.iter().map(|job| job.key.id).collect();
    assert_eq!(list(&[], None, 2), (vec![ids[2], ids[1]], true));
    assert_eq!(list(&[], Some(ids[1]), 2), (vec![ids[0]], false));
    assert_eq!(list(&[StateName::Queued], None, 9), (vec![ids[2], ids[0]], false));
    assert_eq!(store.get(&running.key).expect("readable"), Some(running));
    let foreign = JobKey { tenant: "a".into(), id: other.key.id };
    assert_eq!(store.get(&foreign).expect("readable"), None);
    assert_eq!(store.all().expect("readable").jobs.len(), 4);
}

#[test]
fn a_request_id_starts_one_job() {
    let Place { store, .. } = &Place::new();
    let first = add(store, "a", order("x", Some("r")));
    let again = store.add(&"a".into(), order("x", Some("r")), NOW);
    assert_eq!(again.expect("known"), Added::Known(first.clone()));
    let other = store.add(&"a".into(), order("y", Some("r")), NOW);
    assert!(matches!(other, Err(AddError::OtherOrder(id)) if id == first.key.id));
    assert_ne!(add(store, "b", order("y", Some("r"))).key.id, first.key.id);
    store.delete(&first.key, |_| Ok::<(), ()>(())).expect("deleted");
    let second = add(store, "a", order("y", Some("r")));
    assert!(second.key.id > first.key.id, "numbers are never used again");
}

#[test]
fn a_tenant_has_so_many_jobs() {
    let Place { store, .. } = &Place::new();
    let jobs: Vec<Job> = (0..3).map(|_| add(store, "a", order("x", None))).collect();
    assert!(matches!(store.add(&"a".into(), order("x", None), NOW), Err(AddError::Full { max: 3 })));
    add(store, "b", order("x", None));
    store.delete(&jobs[0].key, |_| Ok::<(), ()>(())).expect("deleted");
    add(store, "a", order("x", None));
}

#[test]
fn events_are_replayed_from_any_number_that_is_retained() {
    let place = Place::new();
    let key = add(&place.store, "a", order("x", None)).key;
    for line in ["2", "3", "4", "5", "6", "7"] {
        let logged = place.store.update(&key, NOW, |edit| {
            edit.log(line);
            Ok::<(), Refused>(())
        });
        logged.expect("stored");
    }
    let Place { store, .. } = &place.reopened();
    assert_eq!(events(store, &key, 1), Replay::Gone { oldest: 3 });
    assert_eq!(events(store, &key, 9), Replay::Future { next: 8 });
    assert_eq!(events(store, &key, 8), Replay::Events { events: vec![], complete: false });
    let numbers = |from| match events(store, &key, from) {
        Replay::Events { events, complete } => {
            (events.iter().map(|event| event.number).collect::<Vec<_>>(), complete)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(numbers(3), (vec![3, 4, 5], false));
    assert_eq!(numbers(6), (vec![6, 7], false));
    store.update(&key, NOW, |edit| edit.change(Change::Cancel)).expect("legal");
    assert_eq!(numbers(6), (vec![6, 7, 8], true));
    assert_eq!(numbers(9), (vec![], true));
    store.delete(&key, |_| Ok::<(), ()>(())).expect("deleted");
    assert_eq!(store.events(&key, 1, 3).expect("readable"), None);
}

#[test]
fn what_is_refused_changes_nothing() {
    let Place { store, .. } = &Place::new();
    let job = add(store, "a", order("x", None));
    let refused = store.update(&job.key, NOW, |edit| {
        edit.log("lost");
        edit.change(Change::Finish { model: crate::embedding::ModelDigest::new([1; 32]) })
    });
    assert!(matches!(refused, Err(UpdateError::Refused(Refused::Active))));
    let failure = || Failure::new(FailureReason::Crashed, "no");
    assert!(matches!(store.delete(&job.key, |_| Err(failure())), Err(UpdateError::Refused(_))));
    assert_eq!(store.get(&job.key).expect("readable"), Some(job.clone()));
    let unknown = JobKey { id: JobId::new(99), ..job.key };
    let updated = store.update(&unknown, NOW, |edit| edit.change(Change::Cancel));
    assert!(matches!(updated, Err(UpdateError::Unknown)));
}

#[test]
fn a_store_of_a_later_release_is_refused_by_name() {
    let place = Place::new();
    {
        let state = place.store.lock();
        let database = state.database.as_ref().expect("open");
        let write = database.begin_write().expect("writable");
        tables::put_number(&write, tables::SCHEMA_KEY, SCHEMA + 1).expect("writable");
        database.commit(write).expect("writable");
    }
    drop(place.store);
    let refused = JobStore::open(Box::new(Folder(place.folder.path().to_owned())), BOUNDS);
    assert!(refused.expect_err("later").to_string().contains("schema 3"));
}

#[test]
fn a_full_disk_is_named_and_keeps_nobody_from_reading() {
    let disk = FaultyDisk::new(1);
    JobStore::create(&disk).expect("writable");
    let store = JobStore::open(Box::new(disk.clone()), BOUNDS).expect("a store");
    let job = add(&store, "a", order("x", None));
    disk.fail_after(0, Fault::NoRoom);
    let added = store.add(&"a".into(), order("y", None), NOW);
    assert!(
        matches!(&added, Err(AddError::Store(StoreError::Unavailable(full))) if full.is_full),
        "{added:?}"
    );
    let cancelled = store.update(&job.key, NOW, |edit| edit.change(Change::Cancel));
    assert!(
        matches!(&cancelled, Err(UpdateError::Store(StoreError::Unavailable(full))) if full.is_full),
        "{cancelled:?}"
    );
    let deleted = store.delete(&job.key, |_| Ok::<(), ()>(()));
    assert!(matches!(&deleted, Err(UpdateError::Store(full)) if full.is_full()), "{deleted:?}");
    for _ in 0..2 {
        assert_eq!(store.get(&job.key).expect("readable").as_ref(), Some(&job));
        assert_eq!(store.all().expect("readable").jobs, std::slice::from_ref(&job));
    }
    // A store opened on it also reads it.
    let second = JobStore::open(Box::new(disk.clone()), BOUNDS).expect("a store");
    assert_eq!(second.get(&job.key).expect("readable").as_ref(), Some(&job));
    drop(second);
    disk.recover();
    assert_eq!(
        store.get(&job.key).expect("readable").as_ref(),
        Some(&job),
        "what was refused is not made up for"
    );
    let cancelled = store.update(&job.key, NOW, |edit| edit.change(Change::Cancel)).expect("there is room");
    assert_eq!(cancelled.state, JobState::Cancelled);
    add(&store, "a", order("y", None));
}

#[test]
fn large_events_are_replayed_few_at_a_time() {
    let place = Place::new();
    let job = add(&place.store, "a", order("x", None));
    let rankings = |epoch| Rankings { epoch, png: vec![0; REPLAY_BYTES / 2] };
    let edit = |edit: &mut Edit| -> Result<(), Refused> {
        (0..3).for_each(|epoch| edit.report(RunEvent::Rankings(rankings(epoch))));
        Ok(())
    };
    place.store.update(&job.key, NOW, edit).expect("writable");
    let numbers = |from| match events(&place.store, &job.key, from) {
        Replay::Events { events, .. } => events.iter().map(|event| event.number).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(numbers(1), [1, 2]);
    assert_eq!(numbers(3), [3]);
    assert_eq!(numbers(4), [4]);
}

/// A finished job with every kind of event, and a waiting one.
pub(super) fn eventful(folder: &Path) -> (JobStore, [JobKey; 2]) {
    let bounds = Bounds { events_retained_max: 100, ..BOUNDS };
    JobStore::create(&Folder(folder.to_owned())).expect("writable");
    let store = JobStore::open(Box::new(Folder(folder.to_owned())), bounds).expect("a store");
    let done = add(&store, "default", order("seed = 1", Some("first"))).key;
    let gallery = Some(GalleryName::new("harbour").expect("a name"));
    let waits =
        add(&store, "default", JobSpec { gallery, display_name: "second".into(), ..order("x", None) }).key;
    let losses = [("total".to_owned(), 0.1)].into();
    let progress = Progress { step: 3, steps_total: 9, losses, accuracy: Some(0.5), ..Progress::default() };
    let (protocol, mean_average_precision) = ("all".into(), 0.3);
    let evaluation = Evaluation { protocol, epoch: 1, mean_average_precision, ..Evaluation::default() };
    let model = crate::embedding::ModelDigest::new([1; 32]);
    let history = |edit: &mut Edit| {
        edit.change(Change::Start)?;
        edit.begin(0);
        edit.report(RunEvent::Progress(progress));
        edit.report(RunEvent::Evaluated(evaluation));
        edit.report(RunEvent::Rankings(Rankings { epoch: 1, png: vec![1, 2] }));
        edit.report(RunEvent::Saved(SavedCheckpoint { step: 3, best: true }));
        edit.log("a line");
        edit.change(Change::Finish { model })
    };
    store.update(&done, NOW, history).expect("legal");
    (store, [done, waits])
}

/// The job and all its events.
pub(super) fn known(store: &JobStore, key: &JobKey) -> (Option<Job>, Option<Replay>) {
    (store.get(key).expect("readable"), store.events(key, 1, 100).expect("readable"))
}

/// The store of two jobs that each schema version was released with.
#[test]
fn a_store_of_every_schema_version_opens() {
    for released in RELEASED {
        let [fresh, old] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let (expected, keys) = eventful(fresh.path());
        std::fs::copy(Path::new(released).join(FILE), old.path().join(FILE))
            .expect("the fixture is in the tree");
        // The second time, it is a store of this version.
        for _ in 0..2 {
            let store = open(&old);
            for key in &keys {
                assert_eq!(known(&store, key), known(&expected, key), "{released}");
            }
        }
        let store = open(&old);
        assert!(matches!(
            store.add(&"default".into(), order("seed = 1", Some("first")), NOW),
            Ok(Added::Known(_))
        ));
        assert_eq!(add(&store, "default", order("y", None)).key.id, JobId::new(3));
    }
}

#[test]
#[ignore = "writes the fixture of a schema version, once"]
fn write_a_store_of_this_schema_version() {
    let newest = RELEASED.last().expect("there is one");
    std::fs::create_dir_all(newest).expect("writable");
    eventful(Path::new(newest));
}
