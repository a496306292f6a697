//! The effect of a failed start on a job that ran when the server stopped.

use super::*;
use crate::jobs::store::StoreError;

#[tokio::test]
async fn a_start_that_is_interrupted_costs_a_job_no_attempt() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
    let galleries = Arc::new(catalog(&folder));
    let key = {
        let repository = repository(&folder, 1000);
        let key = add(&repository).await.key;
        repository.update(&key, |edit| edit.change(Change::Start)).await.expect("legal");
        key
    };
    for _ in 0..3 {
        let repository = repository(&folder, 1000);
        let settings = settings(folder.path(), &galleries);
        let supervisor =
            Supervisor::start(Arc::clone(&repository), settings, Arc::new(())).await.expect("starts");
        supervisor.look().await;
        // Anything that the look has started would be stopped by this, and would report it.
        supervisor.drain().await;
        let job = repository.get(&key).await.expect("readable").expect("known");
        assert_eq!((job.state, job.attempt, job.fruitless), (JobState::Queued, 2, 1));
    }
    galleries.close();
    let model = ModelDigest::new([1; 32]);
    let stage = Stage::on(folder, &format!(r#"echo '{{"finished":{{"model":"{model}"}}}}'"#), |_| {}).await;
    assert_eq!(stage.ended(&key).await.0.state, JobState::Finished { model });
}

#[tokio::test]
async fn folders_of_deleted_jobs_go_and_no_other_does() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let galleries = Arc::new(catalog(&place));
    let folder = place.path().join("jobs");
    let bounds = Bounds { jobs_max: 9, events_retained_max: 100 };
    std::fs::create_dir(&folder).expect("writable");
    EmbeddedJobs::create(&Folder(folder.clone())).expect("writable");
    let keys = {
        let store = EmbeddedJobs::open(Box::new(Folder(folder.clone())), bounds).expect("a store");
        let keys = [(); 2].map(|()| {
            match store.add(&"default".into(), JobSpec::default(), crate::gallery::Time::from_nanos(1)) {
                Ok(Added::New(job)) => job.key,
                other => panic!("{other:?}"),
            }
        });
        // As left by a server that was killed before it removed the folder.
        store.delete(&keys[1], |_| Ok::<(), ()>(())).expect("deleted");
        keys
    };
    for id in [1, 2, 9] {
        std::fs::create_dir(folder.join(format!("job-{id}"))).expect("writable");
    }
    let jobs = Jobs::open(settings(&folder, &galleries), bounds, Arc::new(())).await.expect("jobs");
    let left = [1, 2, 9].map(|id| folder.join(format!("job-{id}")).exists());
    assert_eq!(left, [true, false, true]);
    jobs.get(&keys[0]).await.expect("it is there");
}

#[tokio::test]
async fn folders_of_jobs_without_a_store_are_named_and_kept() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let galleries = Arc::new(catalog(&place));
    let folder = place.path().join("jobs");
    let bounds = Bounds { jobs_max: 9, events_retained_max: 100 };
    std::fs::create_dir_all(folder.join("job-1")).expect("writable");
    let open = async || Jobs::open(settings(&folder, &galleries), bounds, Arc::new(())).await;
    let refused = open().await.expect_err("a store is missing");
    assert!(matches!(refused.downcast_ref(), Some(StoreError::Damaged(_))), "{refused}");
    let left: Vec<_> =
        std::fs::read_dir(&folder).expect("there").map(|entry| entry.expect("there").file_name()).collect();
    assert_eq!(left, ["job-1"]);
    std::fs::remove_dir(folder.join("job-1")).expect("writable");
    open().await.expect("nothing is missed");
}
