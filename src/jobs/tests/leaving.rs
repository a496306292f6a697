//! Changes of several steps whose caller leaves after the first.

use super::*;

#[tokio::test]
async fn a_job_whose_canceller_has_left_is_stopped_all_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
    std::fs::write(folder.path().join("script.sh"), STOPS).expect("writable");
    let key = add(&repository(&folder, 1000)).await.key;
    let settings = settings(folder.path(), &Arc::new(catalog(&folder)));
    let bounds = Bounds { jobs_max: 10, events_retained_max: 1000 };
    let jobs = Jobs::open(settings, bounds, Arc::new(())).await.expect("jobs");
    jobs.begin();
    let mut events = Box::pin(jobs.watch(key.clone(), WatchFrom::Oldest).await.expect("known"));
    let mut next = async || events.next().await.expect("open").expect("an event").payload;
    while !is_logged(&next().await) {}
    {
        let cancelling = std::pin::pin!(jobs.cancel(key.clone()));
        assert!(futures_util::poll!(cancelling).is_pending());
    }
    while !matches!(next().await, EventPayload::State(job) if job.state == JobState::Cancelled) {}
    jobs.drain().await;
}

#[tokio::test]
async fn a_job_whose_deleter_has_left_leaves_no_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
    let key = {
        let repository = repository(&folder, 1000);
        let key = add(&repository).await.key;
        repository.update(&key, |edit| edit.change(Change::Cancel)).await.expect("legal");
        key
    };
    let settings = settings(folder.path(), &Arc::new(catalog(&folder)));
    let bounds = Bounds { jobs_max: 10, events_retained_max: 1000 };
    let jobs = Jobs::open(settings, bounds, Arc::new(())).await.expect("jobs");
    let place = jobs.folder(key.id);
    std::fs::create_dir(&place).expect("writable");
    {
        let deleting = std::pin::pin!(jobs.delete(&key));
        assert!(futures_util::poll!(deleting).is_pending());
    }
    while place.exists() {
        tokio::task::yield_now().await;
    }
    jobs.drain().await;
}
