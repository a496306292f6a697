//! Whoever reads while a gallery is opened anew sees nothing of it.

use futures_util::FutureExt;

use super::*;
use crate::durable::faults::{Failure, FaultyDisk};
use crate::gallery::embedded::builder::GalleryBuilder;
use crate::gallery::embedded::handle::pending;
use crate::gallery::embedded::quota::Allowance;
use crate::gallery::embedded::writer::{Bounds, Published, Writer};
use crate::gallery::store::opening::read_settled;

fn enrol(writer: &mut Writer, id: &str, seed: u64) -> Result<(), StoreError> {
    let enrolment = enrolment(id, seed);
    let (job, _answered) = pending(move |batch| batch.enrol(&enrolment));
    writer.commit(&mut [job])
}

async fn found(published: &Published) -> Result<usize, StoreError> {
    let now =
        || -> (Opening, Arc<dyn GalleryReader>) { (Opening::now(published.files()), published.snapshot()) };
    let read = |snapshot: Arc<dyn GalleryReader>| async move {
        Ok(snapshot.get(&[id("a")], &Cancellation::default())?.found.len())
    };
    read_settled(now(), now, read).await
}

#[tokio::test]
async fn whoever_reads_while_the_files_are_opened_anew_sees_nothing_of_it() {
    let disk = FaultyDisk::new(1);
    let about = About::new(model(), DIMENSION, true, Time::from_nanos(0));
    let founded = GalleryBuilder::new(&disk, about, 1 << 20).expect("no failure is planned").finish(0);
    founded.expect("no failure is planned");
    let quotas = Quotas { galleries_per_tenant: 1, entries_per_gallery: 9, bytes_per_tenant: u64::MAX };
    let allowance = Arc::new(Allowance::new(quotas.bytes_per_tenant));
    // Without a cache, so that every read needs the files.
    let bounds = Bounds { cache_bytes: 0, quotas, allowance };
    let mut writer = Writer::open(Arc::new(disk.clone()), bounds).expect("whole");
    let published = Arc::clone(writer.published());
    enrol(&mut writer, "a", 1).expect("there is room");
    disk.fail_after(0, Failure::Passing);
    enrol(&mut writer, "b", 2).expect_err("there is no room");
    assert!(writer.awaits_room());
    assert_eq!(found(&published).now_or_never(), Some(Ok(1)));

    let shut = writer.shut();
    let mut reading = Box::pin(found(&published));
    assert_eq!(reading.as_mut().now_or_never(), None);
    let writer = shut.open().expect("no failure is planned");
    assert_eq!(reading.await, Ok(1));
    writer.close();
    assert_eq!(found(&published).now_or_never(), Some(Err(StoreError::Closed)));
}
