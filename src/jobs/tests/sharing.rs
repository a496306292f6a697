//! Servers that share jobs: each runs once, wherever it is seen from, and goes on elsewhere when its server does not.

use super::*;
use crate::gallery::{PostgresCatalog, PostgresSettings as SharedGalleries};
use crate::holding::Holding;
use crate::jobs::follow::followed;
use crate::jobs::lease::Lease;
use crate::jobs::retries::Pauses;
use crate::jobs::store::{PostgresJobs, PostgresSettings};
use crate::postgres::trial::Trial;

/// Longer than any test, which ends holds in the database.
const LONG: Duration = Duration::from_secs(3600);
/// Trains nothing, but answers everything.
const NO_SLOTS: fn(&mut Settings) = |settings| settings.jobs_concurrent_max = 0;

async fn shared(trial: &Trial, lease: Duration) -> Arc<JobRepository> {
    let (cluster, pauses) = (trial.cluster().await, Pauses::new(Duration::ZERO));
    let bounds = Bounds { jobs_max: 100, events_retained_max: 1000 };
    followed(PostgresJobs::new(PostgresSettings { cluster, bounds, lease, pauses }))
}

/// One more server, with a folder of its own.
async fn server(trial: &Trial, script: &str, change: impl Fn(&mut Settings)) -> Stage {
    let folder = tempfile::tempdir().expect("a temporary folder");
    Stage::of(shared(trial, LONG).await, Arc::new(()), folder, script, change).await
}

/// The galleries of one more server, which holds those that a pattern admits.
async fn galleries(trial: &Trial, folder: &Path, pattern: &str) -> Catalog {
    let shared = SharedGalleries {
        cluster: trial.cluster().await,
        local_age_max: LONG,
        holding: Holding::new(vec![pattern.parse().expect("a pattern")]),
        resident_bytes_max: u64::MAX,
    };
    Arc::new(PostgresCatalog::open(&shared, folder, gallery_settings()).await.expect("a catalog"))
}

fn finishes() -> String {
    format!(r#"echo '{{"finished":{{"model":"{}"}}}}'"#, ModelDigest::new([1; 32]))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_run_every_job_once() {
    let Some(trial) = Trial::new().await else { return };
    let seen = tempfile::tempdir().expect("a temporary folder");
    let script = format!("echo run >> {}/$(basename $PWD)\n{}", seen.path().display(), finishes());
    let servers = [server(&trial, &script, |_| {}).await, server(&trial, &script, |_| {}).await];
    let mut keys = Vec::new();
    for number in 0..10 {
        keys.push(servers[number % 2].order().await);
    }
    for (number, key) in keys.iter().enumerate() {
        let (job, events) = servers[number / 2 % 2].ended(key).await;
        assert_eq!((job.state.name(), job.attempt), (StateName::Finished, 1));
        assert!(events.iter().map(|event| event.number).eq(1..=events.len() as u64));
        let runs = std::fs::read_to_string(seen.path().join(key.id.to_string())).expect("it has run");
        assert_eq!(runs, "run\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_jobs_that_cannot_run_do_not_keep_a_server_from_those_behind_them() {
    let Some(trial) = Trial::new().await else { return };
    let repository = shared(&trial, LONG).await;
    add(&repository).await;
    // Under other numbers, a record is damaged.
    trial
        .execute(&format!(
            "insert into {0}.jobs (tenant, state, created_at, last_event, record)
            select 'other', 'queued', created_at, last_event, record from {0}.jobs, generate_series(1, 450)",
            trial.schema
        ))
        .await;
    let key = add(&repository).await.key;
    let (job, _) = server(&trial, &finishes(), |_| {}).await.ended(&key).await;
    assert_eq!(job.state.name(), StateName::Finished);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_watched_cancelled_resumed_and_deleted_through_any_server() {
    use StateName::{Cancelled, Cancelling, Queued, Running};
    let Some(trial) = Trial::new().await else { return };
    let (trainer, other) = (server(&trial, STOPS, |_| {}).await, server(&trial, STOPS, NO_SLOTS).await);
    let key = other.order().await;
    other.watch(&key, is_logged).await;
    other.cancel(&key).await;
    let (job, events) = other.ended(&key).await;
    assert_eq!(states(&events), [(1, Queued), (1, Running), (1, Cancelling), (1, Cancelled)]);
    assert_eq!(job.saved_steps, 5);
    assert_eq!(trainer.ended(&key).await, (job, events));

    other.repository.update(&key, |edit| edit.change(Change::Resume)).await.expect("legal");
    let is_running_again = |payload: &EventPayload| matches!(payload, EventPayload::State(job) if job.attempt == 2 && job.state == JobState::Running);
    other.watch(&key, is_running_again).await;
    other.cancel(&key).await;
    other.ended(&key).await;
    other.repository.delete(&key, |_| Ok::<(), ()>(())).await.expect("deleted");
    assert_eq!(trainer.repository.get(&key).await.expect("reachable"), None);
}

/// Saves a checkpoint when it is stopped, and finishes where it finds one.
fn with_a_checkpoint() -> String {
    format!(
        r#"
        place=checkpoints/checkpoint-0000000005
        if [ -f $place/state ]; then echo "from $(cat $place/state)" >&2; {}; exit; fi
        sleep 100000 >/dev/null 2>&1 &
        trap 'kill $!; mkdir -p $place; echo five > $place/state
            echo "{{\"saved\":{{\"step\":5,\"best\":false}}}}"; echo "\"stopped\""; exit 0' TERM
        echo 'ready' >&2
        wait
        "#,
        finishes()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_server_goes_down_is_continued_by_another_from_its_checkpoint() {
    use StateName::{Finished, Interrupted, Queued, Running};
    let Some(trial) = Trial::new().await else { return };
    let first = server(&trial, &with_a_checkpoint(), |_| {}).await;
    let key = first.order().await;
    first.watch(&key, is_logged).await;
    let second = server(&trial, &with_a_checkpoint(), |_| {}).await;
    first.supervisor.drain().await;
    assert!(!first.folder.path().join("job-1").exists(), "what counts is in the database");
    let (_, events) = second.ended(&key).await;
    let expected = [(1, Queued), (1, Running), (1, Interrupted), (2, Queued), (2, Running), (2, Finished)];
    assert_eq!(states(&events), expected);
    assert_eq!(logged(&events), ["ready", "from five"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_lost_a_job_says_nothing_more_of_it_and_kills_its_process() {
    use StateName::{Finished, Interrupted, Queued, Running};
    let Some(trial) = Trial::new().await else { return };
    let endless = "echo $$ > ../process; while :; do echo 'from the first' >&2; sleep 0.01; done";
    let first = server(&trial, endless, |_| {}).await;
    let key = first.order().await;
    first.watch(&key, is_logged).await;
    let process = std::fs::read_to_string(first.folder.path().join("process")).expect("it has begun");
    let second = server(&trial, &format!("echo 'from the second' >&2\n{}", finishes()), |_| {}).await;
    trial.execute("update jobs set held_until = clock_timestamp() - interval '1 second'").await;
    let (job, events) = second.ended(&key).await;
    let expected = [(1, Queued), (1, Running), (1, Interrupted), (2, Queued), (2, Running), (2, Finished)];
    assert_eq!(states(&events), expected);
    assert_eq!((job.attempt, job.fruitless), (2, 1));
    for event in &events {
        let line = logged(std::slice::from_ref(event)).first().map(|line| (*line).to_owned());
        let own = if event.attempt == 1 { "from the first" } else { "from the second" };
        assert!(line.is_none_or(|line| line == own), "{event:?}");
    }
    // It ends although nobody has asked it to.
    while Path::new("/proc").join(process.trim()).exists() {
        tokio::task::yield_now().await;
    }
    first.supervisor.drain().await;
    assert_eq!(second.ended(&key).await, (job, events));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_renew_knows_by_its_own_clock_when_it_has_lost_a_job() {
    let Some(trial) = Trial::new().await else { return };
    let repository = shared(&trial, Duration::from_secs(1)).await;
    let key = add(&repository).await.key;
    let hold = repository.claim(&key).await.expect("it waits").hold;
    let lease = Lease::keep(&repository, &hold);
    trial.execute(&format!("alter role {} nologin", trial.schema)).await;
    trial.end_connections().await;
    lease.lost.cancelled().await;
    assert!(hold.until.expect("there are other servers") <= std::time::Instant::now());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_a_server_that_holds_its_gallery() {
    let Some(trial) = Trial::new().await else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let others = galleries(&trial, &folder.path().join("others"), "other*").await;
    let own = galleries(&trial, &folder.path().join("own"), "default/learn*").await;
    let name = GalleryName::new("learnt").expect("a name");
    let new =
        NewGallery { model: ModelDigest::new([1; 32]), dimension: 8, composition: None, keeps_chips: true };
    own.create("default", &name, new).await.expect("made");

    let without = server(&trial, &finishes(), |settings| settings.galleries = Arc::clone(&others)).await;
    let learns = JobSpec { gallery: Some(name), ..JobSpec::default() };
    let Ok(Added::New(waiting)) = without.repository.add("default".into(), learns).await else {
        panic!("it is a new job");
    };
    // It comes after the one that waits.
    let next = without.order().await;
    assert_eq!(without.ended(&next).await.0.state.name(), StateName::Finished);
    let waits = without.repository.get(&waiting.key).await.expect("readable").expect("known");
    assert_eq!((waits.state, waits.attempt), (JobState::Queued, 1));

    let with = server(&trial, &finishes(), |settings| settings.galleries = Arc::clone(&own)).await;
    let (job, _) = with.ended(&waiting.key).await;
    assert_eq!((job.state.name(), job.attempt), (StateName::Finished, 1));
}
