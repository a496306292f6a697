//! Jobs that are cancelled, wait for a slot, or whose server stops.

use super::*;
use crate::reason::FailureReason;

#[tokio::test]
async fn a_cancelled_job_stops_with_a_checkpoint_and_can_go_on() {
    use StateName::{Cancelled, Cancelling, Queued, Running};
    let stage = Stage::new(STOPS).await;
    let key = stage.order().await;
    stage.watch(&key, is_logged).await;
    stage.cancel(&key).await;
    let (job, events) = stage.ended(&key).await;
    assert_eq!(states(&events), [(1, Queued), (1, Running), (1, Cancelling), (1, Cancelled)]);
    assert_eq!((job.saved_steps, job.fruitless), (5, 0));
    stage.repository.update(&key, |edit| edit.change(Change::Resume)).await.expect("legal");
    stage.supervisor.look().await;
    let events =
        stage.watch(&key, |payload| matches!(payload, EventPayload::State(job) if job.attempt == 2)).await;
    assert_eq!(states(&events).last(), Some(&(2, Queued)));
    stage.supervisor.drain().await;
}

#[tokio::test]
async fn a_process_that_does_not_stop_is_killed_after_its_grace() {
    let script = format!("trap '' TERM; {ALIVE}; echo deaf >&2; exec sleep 100000");
    let stage = Stage::with(&script, |settings| settings.grace = Duration::from_millis(200)).await;
    let key = stage.order().await;
    stage.watch(&key, is_logged).await;
    stage.cancel(&key).await;
    let (job, _) = stage.ended(&key).await;
    assert_eq!(job.state, JobState::Cancelled);
}

#[tokio::test]
async fn as_many_jobs_run_as_there_are_slots_and_a_waiting_one_can_be_cancelled() {
    let stage = Stage::with(STOPS, |settings| settings.jobs_concurrent_max = 2).await;
    let keys = [stage.order().await, stage.order().await, stage.order().await, stage.order().await];
    for key in &keys[..2] {
        stage.watch(key, is_running).await;
    }
    let state = async |key: &JobKey| stage.repository.get(key).await.expect("readable").expect("known").state;
    assert_eq!(state(&keys[2]).await, JobState::Queued);
    stage.cancel(&keys[2]).await;
    assert_eq!(state(&keys[2]).await, JobState::Cancelled);
    stage.cancel(&keys[0]).await;
    stage.watch(&keys[3], is_running).await;
    assert_eq!(state(&keys[1]).await, JobState::Running);
    stage.supervisor.drain().await;
    assert_eq!(state(&keys[3]).await, JobState::Interrupted);
}

#[tokio::test]
async fn a_server_that_goes_down_interrupts_its_jobs_and_resumes_them_at_its_next_start() {
    use StateName::{Finished, Interrupted, Queued, Running};
    let stage = Stage::new(STOPS).await;
    let key = stage.order().await;
    stage.watch(&key, is_running).await;
    stage.supervisor.drain().await;
    let Stage { folder, repository, supervisor, galleries } = stage;
    drop((repository, supervisor));
    galleries.close();
    let model = ModelDigest::new([1; 32]);
    let stage = Stage::on(folder, &format!(r#"echo '{{"finished":{{"model":"{model}"}}}}'"#), |_| {}).await;
    let (_, events) = stage.ended(&key).await;
    let expected = [(1, Queued), (1, Running), (1, Interrupted), (2, Queued), (2, Running), (2, Finished)];
    assert_eq!(states(&events), expected);
}

#[tokio::test]
async fn a_job_with_which_the_server_dies_again_and_again_is_given_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
    let key = {
        let repository = repository(&folder, 1000);
        let key = add(&repository).await.key;
        repository.update(&key, |edit| edit.change(Change::Start)).await.expect("legal");
        key
    };
    // A server that was killed, twice.
    let (mut stage, mut reached) = (None, vec![]);
    let mut folder = Some(folder);
    for _ in 0..2 {
        let on =
            Stage::on(folder.take().expect("a folder"), "sleep 100000 >/dev/null 2>&1 & wait", |_| {}).await;
        let job = on.repository.get(&key).await.expect("readable").expect("known");
        reached.push(job.state.name());
        if job.state.is_ended() {
            stage = Some(on);
            break;
        }
        on.watch(&key, |payload| matches!(payload, EventPayload::State(job) if job.attempt == 2 && job.state == JobState::Running)).await;
        let Stage { folder: place, repository, supervisor, .. } = on;
        // A killed server leaves a running job behind.
        let copy = tempfile::tempdir().expect("a temporary folder");
        drop((repository, supervisor));
        std::fs::copy(place.path().join(crate::jobs::JOB_STORE), copy.path().join(crate::jobs::JOB_STORE))
            .expect("a copy");
        folder = Some(copy);
    }
    let stage = stage.expect("given up");
    let (job, _) = stage.ended(&key).await;
    let JobState::Failed(failure) = job.state else { panic!("{:?}", job.state) };
    assert_eq!(failure.reason, FailureReason::ServerLost);
    assert_eq!(reached, [StateName::Queued, StateName::Failed]);
}
