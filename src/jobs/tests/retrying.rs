//! Attempts that fail immediately, on a paused clock that advances when the runtime is idle.

use tokio::time::Instant;

use super::*;

/// A pause of the maximum length.
const MINUTE: Duration = Duration::from_secs(60);

/// No process starts, since files are in the way of the jobs' folders; the server treats that as temporary. It uses no
/// other thread before it notices, so that the clock does not advance in the meantime.
async fn without_folders(attempts_max: u32) -> Stage {
    let stage = Stage::with("", |settings| {
        settings.attempts_max = attempts_max;
        settings.retry_pause = MINUTE;
    });
    let stage = stage.await;
    for job in ["job-1", "job-2"] {
        std::fs::write(stage.folder.path().join(job), "").expect("writable");
    }
    stage
}

fn is_tried_again(payload: &EventPayload) -> bool {
    matches!(payload, EventPayload::State(job) if (job.attempt, &job.state) == (2, &JobState::Queued))
}

#[tokio::test(start_paused = true)]
async fn attempts_that_fail_at_once_are_spaced() {
    use StateName::{Failed, Queued, Running};
    let begun = Instant::now();
    let stage = without_folders(4).await;
    let (_, events) = stage.ended(&stage.order().await).await;
    let tried = |attempt, end| [(attempt, Queued), (attempt, Running)].into_iter().chain(end);
    let states_expected: Vec<_> =
        (1..=3).flat_map(|attempt| tried(attempt, None)).chain(tried(4, Some((4, Failed)))).collect();
    assert_eq!(states(&events), states_expected);
    let took = begun.elapsed();
    assert!((3 * MINUTE..5 * MINUTE).contains(&took), "three pauses, not {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_in_a_pause_is_cancelled_at_once_and_starts_at_once_when_it_is_resumed() {
    let stage = without_folders(9).await;
    let key = stage.order().await;
    stage.watch(&key, is_tried_again).await;
    let paused = Instant::now();
    stage.cancel(&key).await;
    let (job, _) = stage.ended(&key).await;
    assert_eq!(job.state, JobState::Cancelled);
    stage.repository.update(&key, |edit| edit.change(Change::Resume)).await.expect("legal");
    stage.supervisor.look().await;
    let runs = |payload: &EventPayload| matches!(payload, EventPayload::State(job) if (job.attempt, &job.state) == (3, &JobState::Running));
    stage.watch(&key, runs).await;
    assert!(paused.elapsed() < MINUTE);
}

#[tokio::test(start_paused = true)]
async fn a_server_does_not_wait_for_a_pause_when_it_shuts_down_and_other_jobs_do_not_either() {
    let stage = without_folders(9).await;
    let key = stage.order().await;
    stage.watch(&key, is_tried_again).await;
    let paused = Instant::now();
    let other = stage.order().await;
    stage.watch(&other, is_running).await;
    stage.supervisor.drain().await;
    assert!(paused.elapsed() < MINUTE);
    let job = stage.repository.get(&key).await.expect("readable").expect("known");
    assert_eq!((job.state, job.attempt), (JobState::Queued, 2));
}
