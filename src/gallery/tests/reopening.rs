//! Readers are unaffected when a gallery is reopened.

use std::future::ready;

use futures_util::FutureExt;

use super::*;
use crate::durable::faults::{Failure, FaultyDisk};
use crate::gallery::embedded::Snapshot;
use crate::gallery::embedded::builder::GalleryBuilder;
use crate::gallery::embedded::handle::pending;
use crate::gallery::embedded::prepared::Prepared;
use crate::gallery::embedded::quota::Allowance;
use crate::gallery::embedded::writer::{Bounds, Published, Writer};
use crate::gallery::store::opening::read_settled;

fn enrol(writer: &mut Writer, id: &str, seed: u64) -> Result<(), StoreError> {
    let enrolment = enrolment(id, seed);
    let (job, _answered) = pending(move |batch| batch.enrol(Prepared::new(&enrolment, batch.about())));
    writer.commit(&mut [job])
}

/// Reads until it succeeds; snapshots equal to `before` are closed.
async fn read(published: &Published, before: &Arc<Snapshot>) -> Result<u64, StoreError> {
    let before: Arc<dyn GalleryReader> = Arc::clone(before) as _;
    let now =
        || -> (Opening, Arc<dyn GalleryReader>) { (Opening::now(published.files()), published.snapshot()) };
    let commit = |snapshot: Arc<dyn GalleryReader>| {
        let is_closed = Arc::ptr_eq(&snapshot, &before);
        ready(if is_closed { Err(StoreError::Closed) } else { Ok(snapshot.commit()) })
    };
    read_settled(now(), now, commit).await
}

#[tokio::test]
async fn whoever_reads_while_the_files_are_opened_anew_sees_nothing_of_it() {
    let disk = FaultyDisk::new(1);
    let about = About::new(model(), DIMENSION, true, Time::from_nanos(0));
    let founded = GalleryBuilder::new(&disk, about, 1 << 20).expect("no failure is planned").finish(0);
    founded.expect("no failure is planned");
    let quotas = Quotas { galleries_per_tenant: 1, entries_per_gallery: 9, bytes_per_tenant: u64::MAX };
    let allowance = Arc::new(Allowance::new(quotas.bytes_per_tenant));
    let bounds = Bounds { cache_bytes: 1 << 20, quotas, allowance };
    let mut writer = Writer::open(Arc::new(disk.clone()), bounds, None).expect("whole");
    let published = Arc::clone(writer.published());
    enrol(&mut writer, "a", 1).expect("there is room");
    disk.fail_after(0, Failure::Passing);
    enrol(&mut writer, "b", 2).expect_err("there is no room");
    assert!(writer.awaits_room());
    let before = published.snapshot();
    let closed = Some(Err(StoreError::Closed));
    assert_eq!(read(&published, &before).now_or_never(), closed, "nothing is to be waited for yet");

    let shut = writer.shut();
    let mut reading = Box::pin(read(&published, &before));
    assert_eq!(reading.as_mut().now_or_never(), None);
    let writer = shut.open().expect("no failure is planned");
    assert_eq!(reading.await, Ok(before.commit()));
    let last = published.snapshot();
    writer.close();
    assert_eq!(read(&published, &last).now_or_never(), closed);
}
