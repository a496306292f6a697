//! What a start costs a job that ran when the server went away, when the start comes to nothing.

use super::*;

#[tokio::test]
async fn a_start_that_is_interrupted_costs_a_job_no_attempt() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    JobStore::create(&Folder(folder.path().to_owned())).expect("writable");
    let galleries = Arc::new(shelf(&folder));
    let key = {
        let desk = desk(&folder, 1000);
        let key = add(&desk).await.key;
        desk.update(&key, |edit| edit.change(Change::Start)).await.expect("legal");
        key
    };
    for _ in 0..3 {
        let desk = desk(&folder, 1000);
        let settings = settings(folder.path(), &galleries);
        let supervisor = Supervisor::start(Arc::clone(&desk), settings, Arc::new(())).await.expect("starts");
        supervisor.look().await;
        // Whatever the look has started would be stopped by this, and would tell of it.
        supervisor.drain().await;
        let job = desk.get(&key).await.expect("readable").expect("known");
        assert_eq!((job.state, job.attempt, job.fruitless), (JobState::Queued, 2, 1));
    }
    galleries.close();
    let model = ModelDigest::new([1; 32]);
    let stage = Stage::on(folder, &format!(r#"echo '{{"finished":{{"model":"{model}"}}}}'"#), |_| {}).await;
    assert_eq!(stage.ended(&key).await.0.state, JobState::Finished { model });
}
