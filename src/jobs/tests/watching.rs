//! Watchers that are slow, start early or stay after the end.

use super::*;
use crate::jobs::watch::WatchError;

#[tokio::test]
async fn a_watcher_reads_at_its_own_pace_and_is_told_when_it_is_too_slow() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
    let repository = repository(&folder, 200);
    let key = add(&repository).await.key;
    let log = async |count: usize| {
        let written = repository.update(&key, move |edit| {
            (0..count).for_each(|number| edit.log(number.to_string()));
            Ok::<(), Refused>(())
        });
        written.await.expect("stored");
    };
    log(150).await;
    let from = |number| watch(Arc::clone(&repository), key.clone(), WatchFrom::Number(number));
    let mut slow = std::pin::pin!(from(1).await.expect("retained"));
    for number in 1..=100 {
        assert_eq!(slow.next().await.expect("open").expect("an event").number, number);
    }
    log(300).await;
    let rest: Vec<_> = slow.collect().await;
    assert!(matches!(rest.last(), Some(Err(WatchError::Gone { oldest: 252, .. }))), "{:?}", rest.last());

    assert!(matches!(from(1).await.err(), Some(WatchError::Gone { asked: 1, oldest: 252 })));
    assert!(matches!(from(453).await.err(), Some(WatchError::Future { asked: 453, next: 452 })));
    let unknown = JobKey { id: crate::jobs::JobId::new(9), ..key.clone() };
    let unknown = watch(Arc::clone(&repository), unknown, WatchFrom::Oldest).await;
    assert!(matches!(unknown.err(), Some(WatchError::Unknown)));

    let mut next = std::pin::pin!(from(452).await.expect("the next can be waited for"));
    let (event, ()) = tokio::join!(next.next(), log(1));
    assert_eq!(event.expect("open").expect("an event").number, 452);
    let mut left = std::pin::pin!(from(453).await.expect("the next"));
    let (closed, ()) = tokio::join!(left.next(), async { repository.close() });
    assert!(matches!(closed, Some(Err(WatchError::Closing { next: 453 }))));
}

#[tokio::test]
async fn a_watch_ends_with_its_job_and_fails_with_a_deleted_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
    let repository = repository(&folder, 200);
    let key = add(&repository).await.key;
    let events = watch(Arc::clone(&repository), key.clone(), WatchFrom::Number(2)).await.expect("the next");
    let cancel = repository.update(&key, |edit| edit.change(Change::Cancel));
    let (events, cancelled) = tokio::join!(events.collect::<Vec<_>>(), cancel);
    cancelled.expect("legal");
    assert_eq!(events.len(), 1);
    let mut waiting =
        std::pin::pin!(watch(Arc::clone(&repository), key.clone(), WatchFrom::Oldest).await.expect("known"));
    assert!(waiting.next().await.expect("open").is_ok());
    repository.delete(&key, |_| Ok::<(), ()>(())).await.expect("deleted");
    // Events that were already read are still returned.
    assert!(waiting.next().await.expect("open").is_ok());
    assert!(waiting.next().await.is_none());
    let gone = watch(Arc::clone(&repository), key, WatchFrom::Oldest).await;
    assert!(matches!(gone.err(), Some(WatchError::Unknown)));
}
