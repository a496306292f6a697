//! What a file does beside what every store does: released schemas, full disks.

use std::path::Path;

use super::*;
use crate::durable::Folder;
use crate::durable::faults::{Failure as Fault, FaultyDisk};
use crate::evaluate::Evaluation;
use crate::gallery::GalleryName;
use crate::jobs::report::{Progress, Rankings, RunEvent, SavedCheckpoint};
use crate::jobs::state::{Change, JobState};

pub(super) const NOW: Time = Time::from_nanos(1);
/// Stores as releases wrote them, by schema version.
const RELEASED: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jobs-1"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jobs-2"),
];
const BOUNDS: Bounds = Bounds { jobs_max: 3, events_retained_max: 5 };

pub(super) struct Place {
    pub store: EmbeddedJobs,
    pub folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
        Self { store: open(&folder), folder }
    }

    pub fn reopened(self) -> Self {
        drop(self.store);
        Self { store: open(&self.folder), folder: self.folder }
    }
}

pub(super) fn open(folder: &tempfile::TempDir) -> EmbeddedJobs {
    EmbeddedJobs::open(Box::new(Folder(folder.path().to_owned())), BOUNDS).expect("a store")
}

pub(super) fn order(config: &str, request_id: Option<&str>) -> JobSpec {
    let request_id = request_id.map(str::to_owned);
    JobSpec { config_toml: config.into(), request_id, ..JobSpec::default() }
}

pub(super) fn add(store: &EmbeddedJobs, tenant: &str, order: JobSpec) -> Job {
    match store.add(&tenant.into(), order, NOW) {
        Ok(Added::New(job)) => job,
        other => panic!("a new job, not {other:?}"),
    }
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
    let refused = EmbeddedJobs::open(Box::new(Folder(place.folder.path().to_owned())), BOUNDS);
    assert!(refused.expect_err("later").to_string().contains("schema 3"));
}

#[test]
fn a_full_disk_is_named_and_keeps_nobody_from_reading() {
    let disk = FaultyDisk::new(1);
    EmbeddedJobs::create(&disk).expect("writable");
    let store = EmbeddedJobs::open(Box::new(disk.clone()), BOUNDS).expect("a store");
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
    let second = EmbeddedJobs::open(Box::new(disk.clone()), BOUNDS).expect("a store");
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

/// A finished job with every kind of event, and a waiting one.
pub(super) fn eventful(folder: &Path) -> (EmbeddedJobs, [JobKey; 2]) {
    let bounds = Bounds { events_retained_max: 100, ..BOUNDS };
    EmbeddedJobs::create(&Folder(folder.to_owned())).expect("writable");
    let store = EmbeddedJobs::open(Box::new(Folder(folder.to_owned())), bounds).expect("a store");
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
pub(super) fn known(store: &EmbeddedJobs, key: &JobKey) -> (Option<Job>, Option<Replay>) {
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
