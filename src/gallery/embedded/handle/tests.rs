//! What callers of a gallery see while its writer is slow, dead or out of room.

use std::sync::mpsc as blocking;

use futures_util::FutureExt;

use super::*;
use crate::cancellation::Cancellation;
use crate::durable::faults::{Failure, FaultyDisk};
use crate::gallery::catalog::Quotas;
use crate::gallery::embedded::builder::GalleryBuilder;
use crate::gallery::embedded::quota::Allowance;
use crate::gallery::embedded::writer::Bounds;
use crate::gallery::entry::Time;
use crate::gallery::filter::Filter;
use crate::gallery::store::About;
use crate::gallery::tests::{DIMENSION, enrolment, id, model, target};

const SETTINGS: QueueSettings = QueueSettings { operations_max: 2, bytes_max: 100 << 10 };

fn gallery(disk: &FaultyDisk) -> Arc<EmbeddedGallery> {
    with_queue(disk, SETTINGS)
}

fn with_queue(disk: &FaultyDisk, settings: QueueSettings) -> Arc<EmbeddedGallery> {
    let quotas = Quotas { galleries_per_tenant: 1, entries_per_gallery: 100, bytes_per_tenant: u64::MAX };
    let allowance = Arc::new(Allowance::new(quotas.bytes_per_tenant));
    let bounds = Bounds { cache_bytes: 1 << 20, quotas, allowance };
    let writer = Writer::open(Arc::new(disk.clone()), bounds, None).expect("whole");
    EmbeddedGallery::start(writer, settings).expect("a thread")
}

fn new_disk() -> FaultyDisk {
    let disk = FaultyDisk::new(1);
    let about = About::new(model(), DIMENSION, true, Time::from_nanos(0));
    let founded = GalleryBuilder::new(&disk, about, 1 << 20).expect("no failure is planned").finish(0);
    founded.expect("no failure is planned");
    disk
}

#[tokio::test]
async fn a_gallery_whose_disk_is_full_is_read_only_until_it_is_opened_again() {
    let disk = new_disk();
    let full = gallery(&disk);
    full.enrol(enrolment("a", 1)).await.expect("there is room");
    disk.fail_after(0, Failure::Passing);
    let refused = full.enrol(enrolment("b", 2)).await.expect_err("there is no room");
    assert_eq!(refused, full.delete(Selector::Ids(vec![id("a")])).await.expect_err("read-only"));
    assert_eq!(refused.to_string(), "the gallery is read-only: writing chips.redb: no storage space");
    assert_eq!(full.info().read_only.as_deref(), Some("writing chips.redb: no storage space"));

    let snapshot = full.snapshot();
    assert_eq!(
        snapshot.list(&Filter::default(), None, 9, &Cancellation::default()).expect("readable").entries.len(),
        1
    );
    let row = snapshot.find(&id("a")).expect("readable").expect("there");
    assert!(snapshot.embedding(row).is_ok() && snapshot.chip(row).expect("readable").is_some());
    full.close();

    let again = gallery(&disk);
    assert_eq!(again.info().read_only, None);
    assert_eq!(again.enrol(enrolment("b", 2)).await, Ok(Enrolled::Created));
    again.close();
}

#[tokio::test]
async fn a_full_queue_lets_callers_wait_and_a_closed_one_answers_at_once() {
    let gallery = gallery(&new_disk());
    let (go, wait) = blocking::channel::<()>();
    let mut slow = Box::pin(gallery.run(0, move |_| Ok(wait.recv().is_ok())));
    assert!(slow.as_mut().now_or_never().is_none());
    // The writer may already have taken the slow operation, which makes room for one more.
    let mut others: Vec<_> =
        (0..8).map(|seed| Box::pin(gallery.enrol(enrolment(&seed.to_string(), seed)))).collect();
    assert!(others.iter_mut().all(|other| other.as_mut().now_or_never().is_none()));
    let queue = gallery.queue.read().expect("nobody panicked").clone().expect("open");
    assert_eq!(queue.capacity(), 0);
    drop(queue);
    go.send(()).expect("it waits");
    assert_eq!(slow.await, Ok(true));
    for other in others {
        assert_eq!(other.await, Ok(Enrolled::Created));
    }
    gallery.close();
    assert_eq!(gallery.enrol(enrolment("late", 9)).now_or_never(), Some(Err(StoreError::Closed)));
    assert_eq!(gallery.info().entries, 8);
}

#[tokio::test]
async fn whoever_leaves_before_the_writer_has_its_work_changes_nothing() {
    let gallery = gallery(&new_disk());
    let (go, wait) = blocking::channel::<()>();
    let mut slow = Box::pin(gallery.run(0, move |_| Ok(wait.recv().is_ok())));
    assert!(slow.as_mut().now_or_never().is_none());
    assert!(gallery.enrol(enrolment("left", 1)).now_or_never().is_none());
    assert!(gallery.begin_shadow(target(ModelDigest::new([9; 32]), DIMENSION)).now_or_never().is_none());
    go.send(()).expect("it waits");
    assert_eq!(slow.await, Ok(true));
    assert_eq!(gallery.enrol(enrolment("stays", 2)).await, Ok(Enrolled::Created));
    let info = gallery.info();
    assert_eq!((info.entries, info.following), (1, None));
    gallery.close();
}

#[tokio::test]
async fn a_follower_between_operations_leaves_them_in_one_commit_and_finds_it() {
    let gallery = with_queue(&new_disk(), QueueSettings { operations_max: 9, ..SETTINGS });
    let before = gallery.published().state().commit;
    let (go, wait) = blocking::channel::<()>();
    let mut slow = Box::pin(gallery.alone(move |_| Ok(wait.recv().is_ok())));
    assert!(slow.as_mut().now_or_never().is_none());
    let (found, finds) = blocking::channel();
    let mut first = Box::pin(gallery.enrol(enrolment("a", 1)));
    assert!(first.as_mut().now_or_never().is_none());
    let mut follower = Box::pin(gallery.follow(move |copy| {
        let entries = copy.entries();
        found.send(entries).expect("it listens");
        entries == 2
    }));
    assert!(follower.as_mut().now_or_never().is_none());
    let mut second = Box::pin(gallery.enrol(enrolment("b", 2)));
    assert!(second.as_mut().now_or_never().is_none());
    go.send(()).expect("it waits");
    assert_eq!((slow.await, follower.await), (Ok(true), Ok(())));
    assert_eq!((first.await, second.await), (Ok(Enrolled::Created), Ok(Enrolled::Created)));
    assert_eq!(gallery.published().state().commit, before + 1);
    assert_eq!(finds.try_iter().collect::<Vec<_>>(), [0, 2]);
    gallery.close();
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes() {
    let gallery = gallery(&new_disk());
    let (go, wait) = blocking::channel::<()>();
    let mut slow = Box::pin(gallery.run(99 << 10, move |_| Ok(wait.recv().is_ok())));
    assert!(slow.as_mut().now_or_never().is_none());
    let mut other = Box::pin(gallery.enrol(enrolment("a", 1)));
    assert!(other.as_mut().now_or_never().is_none());
    assert!(gallery.room.take().now_or_never().is_none(), "there is no room");
    go.send(()).expect("it waits");
    assert_eq!((slow.await, other.await), (Ok(true), Ok(Enrolled::Created)));
    // An operation larger than the whole queue takes all of its room.
    assert_eq!(gallery.run(1 << 30, |_| Ok(())).await, Ok(()));
    gallery.close();
}

#[tokio::test]
async fn a_writer_that_panics_leaves_a_gallery_that_is_read_only() {
    let gallery = gallery(&new_disk());
    gallery.enrol(enrolment("a", 1)).await.expect("enrolled");
    let panicked: Result<(), _> = gallery.run(0, |_| panic!("as planned")).await;
    let expected = StoreError::ReadOnly { reason: "its writer panicked".into() };
    assert_eq!(panicked, Err(expected.clone()));
    assert_eq!(gallery.enrol(enrolment("b", 2)).await, Err(expected));
    assert_eq!(gallery.info().entries, 1);
    gallery.close();
}
