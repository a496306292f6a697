//! Jobs whose process is a script: what the supervisor makes of everything that a process can do.

mod leaving;
mod starting;
mod trouble;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;

use super::event::{EventPayload, JobEvent};
use super::failure::{Failure, Reason};
use super::job::{Job, JobKey, JobSpec};
use super::model_sink::ModelSink;
use super::report::Rankings;
use super::repository::JobRepository;
use super::service::{JobRejection, Jobs};
use super::settings::Settings;
use super::state::{Change, JobState, Refused, StateName};
use super::store::{Added, Bounds, JobStore};
use super::supervisor::Supervisor;
use super::watch::{WatchError, WatchFrom, watch};
use crate::arithmetic::Pace;
use crate::durable::Folder;
use crate::embedding::ModelDigest;
use crate::gallery::{
    Catalog, EmbeddedCatalog, EmbeddedSettings, GalleryName, ImportBounds, NewGallery, QueueSettings, Quotas,
};
use crate::processor::Processor;

const ALIVE: &str = "echo '\"alive\"'";
/// Stops as a training process does.
const STOPS: &str = r#"
    sleep 100000 >/dev/null 2>&1 &
    trap 'kill $!; echo "{\"saved\":{\"step\":5,\"best\":false}}"; echo "\"stopped\""; exit 0' TERM
    echo 'ready' >&2
    wait
"#;

fn settings(folder: &Path, galleries: &Arc<EmbeddedCatalog>) -> Settings {
    Settings {
        folder: folder.to_owned(),
        program: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand_in.sh")),
        jobs_concurrent_max: 1,
        device: "cpu".into(),
        threads: 1,
        nice: 0,
        memory_bytes_max: 0,
        silence_max: Duration::from_secs(3600),
        grace: Duration::from_secs(3600),
        attempts_max: 2,
        data_roots: vec![],
        galleries: Arc::clone(galleries) as Catalog,
        pace: |_| None,
    }
}

/// A server's jobs, without the server.
struct Stage {
    folder: tempfile::TempDir,
    repository: Arc<JobRepository>,
    supervisor: Supervisor,
    galleries: Arc<EmbeddedCatalog>,
}

impl Stage {
    async fn new(script: &str) -> Self {
        Self::with(script, |_| {}).await
    }

    async fn with(script: &str, change: impl Fn(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        JobStore::create(&Folder(folder.path().to_owned())).expect("writable");
        Self::on(folder, script, change).await
    }

    async fn on(folder: tempfile::TempDir, script: &str, change: impl Fn(&mut Settings)) -> Self {
        Self::kept_by(Arc::new(()), folder, script, change).await
    }

    async fn kept_by(
        model_sink: Arc<dyn ModelSink>,
        folder: tempfile::TempDir,
        script: &str,
        change: impl Fn(&mut Settings),
    ) -> Self {
        std::fs::write(folder.path().join("script.sh"), script).expect("writable");
        let (repository, galleries) = (repository(&folder, 1000), Arc::new(catalog(&folder)));
        let mut settings = settings(folder.path(), &galleries);
        change(&mut settings);
        let supervisor =
            Supervisor::start(Arc::clone(&repository), settings, model_sink).await.expect("a supervisor");
        supervisor.begin();
        Self { folder, repository, supervisor, galleries }
    }

    async fn order(&self) -> JobKey {
        let key = add(&self.repository).await.key;
        self.supervisor.look().await;
        key
    }

    async fn cancel(&self, key: &JobKey) {
        self.repository.update(key, |edit| edit.change(Change::Cancel)).await.expect("legal");
        self.supervisor.stop(key.clone()).await;
    }

    /// Waits until an event for which `until` holds, or the job has ended.
    async fn watch(&self, key: &JobKey, until: impl Fn(&EventPayload) -> bool) -> Vec<JobEvent> {
        let events =
            watch(Arc::clone(&self.repository), key.clone(), WatchFrom::Oldest).await.expect("known");
        let mut events = std::pin::pin!(events);
        let mut seen = Vec::new();
        while let Some(event) = events.next().await {
            let event = event.expect("an event");
            let reached = until(&event.what);
            seen.push(event);
            if reached {
                break;
            }
        }
        seen
    }

    async fn ended(&self, key: &JobKey) -> (Job, Vec<JobEvent>) {
        let events = self.watch(key, |_| false).await;
        (self.repository.get(key).await.expect("readable").expect("known"), events)
    }

    async fn failure(&self) -> (Reason, String, u32) {
        let (job, _) = self.ended(&self.order().await).await;
        match job.state {
            JobState::Failed(failure) => (failure.reason, failure.message, job.attempt),
            other => panic!("{other:?}"),
        }
    }
}

fn catalog(folder: &tempfile::TempDir) -> EmbeddedCatalog {
    let settings = EmbeddedSettings {
        cache_bytes: 1 << 20,
        queue: QueueSettings { operations_max: 1, bytes_max: 1 << 20 },
        quotas: Quotas { galleries_per_tenant: 1, entries_per_gallery: 1, bytes_per_tenant: 1 << 20 },
        imports: ImportBounds { image_bytes_max: 1 << 20, bytes_max: 8 << 20 },
    };
    EmbeddedCatalog::open(&folder.path().join("galleries"), settings).expect("a catalog")
}

fn repository(folder: &tempfile::TempDir, events_retained_max: u64) -> Arc<JobRepository> {
    let bounds = Bounds { jobs_max: 10, events_retained_max };
    let store = JobStore::open(Box::new(Folder(folder.path().to_owned())), bounds).expect("a store");
    Arc::new(JobRepository::new(store).expect("readable"))
}

async fn add(repository: &Arc<JobRepository>) -> Job {
    match repository.add("default".into(), JobSpec::default()).await {
        Ok(Added::New(job)) => job,
        other => panic!("{other:?}"),
    }
}

fn states(events: &[JobEvent]) -> Vec<(u32, StateName)> {
    let states = events.iter().filter_map(|event| match &event.what {
        EventPayload::State(job) => Some((event.attempt, job.state.name())),
        _ => None,
    });
    states.collect()
}

fn logged(events: &[JobEvent]) -> Vec<&str> {
    let lines = events.iter().filter_map(|event| match &event.what {
        EventPayload::Log(line) => Some(line.as_str()),
        _ => None,
    });
    lines.collect()
}

fn is_logged(what: &EventPayload) -> bool {
    matches!(what, EventPayload::Log(_))
}

fn is_running(what: &EventPayload) -> bool {
    matches!(what, EventPayload::State(job) if job.state == JobState::Running)
}

#[tokio::test]
async fn a_process_is_heard_out_to_its_end_whatever_else_it_writes() {
    let model = ModelDigest::new([0xab; 32]);
    let script = format!(
        r#"
        echo '{{"begun":{{"steps":0}}}}'
        echo 'not of the protocol'
        echo '{{"progress":{{"step":1,"steps_total":1,"epoch":1,"epochs_total":1,"losses":{{"total":0.5}},
            "accuracy":null,"learning_rate":0.1,"images_per_second":3.0,"seconds_left":0.0,"step_seconds":1.0}}}}' |
            tr -d '\n'
        echo
        echo 'for people' >&2
        echo '{{"sync":{{"number":7}}}}'
        read stored
        echo "stored $stored" >&2
        printf '{{"finished":{{"model":"{model}"}}}}\nlast'
        "#
    );
    let stage = Stage::new(&script).await;
    let (job, events) = stage.ended(&stage.order().await).await;
    assert_eq!(job.state, JobState::Finished { model });
    let mut lines = logged(&events);
    lines.sort_unstable();
    assert_eq!(lines, ["for people", "last", "not of the protocol", "stored 7"]);
    assert_eq!(job.progress.map(|progress| progress.step), Some(1));
    assert!(events.iter().map(|event| event.number).eq(1..=events.len() as u64));
    let log = std::fs::read_to_string(stage.folder.path().join("job-1/log.txt")).expect("a log");
    assert!(log.contains("for people\n") && log.contains("stored 7\n"), "{log}");
}

#[tokio::test]
async fn rankings_become_an_event_and_a_job_goes_on_without_those_that_cannot_be_read() {
    let model = ModelDigest::new([1; 32]);
    let script = format!(
        r#"
        echo '{{"rankings":{{"epoch":0}}}}'
        echo '{{"sync":{{"number":1}}}}'
        read stored
        printf 'a picture' > rankings.png
        echo '{{"rankings":{{"epoch":1}}}}'
        echo '{{"sync":{{"number":2}}}}'
        read stored
        head -c 2097153 /dev/zero > rankings.png
        echo '{{"rankings":{{"epoch":2}}}}'
        echo '{{"finished":{{"model":"{model}"}}}}'
        "#
    );
    let stage = Stage::new(&script).await;
    let (job, events) = stage.ended(&stage.order().await).await;
    assert_eq!(job.state, JobState::Finished { model });
    let shown = events.into_iter().filter_map(|event| match event.what {
        EventPayload::Rankings(rankings) => Some(rankings),
        _ => None,
    });
    assert_eq!(shown.collect::<Vec<_>>(), [Rankings { epoch: 1, png: b"a picture".to_vec() }]);
}

#[tokio::test]
async fn a_killed_process_is_started_again_until_it_has_gained_nothing_too_often() {
    use StateName::{Failed, Queued, Running};
    let script = r#"
        grep -q 'attempt 1"' job.toml && echo '{"saved":{"step":5,"best":true}}'
        kill -9 $$
    "#;
    let stage = Stage::new(script).await;
    let (job, events) = stage.ended(&stage.order().await).await;
    assert_eq!(states(&events), [(1, Queued), (1, Running), (2, Queued), (2, Running), (2, Failed)]);
    let JobState::Failed(failure) = job.state else { panic!("{:?}", job.state) };
    assert_eq!(failure.reason, Reason::KilledBySignal);
    assert!(failure.message.contains("signal 9; given up after 2 attempts"), "{}", failure.message);
    assert_eq!(logged(&events)[0], "attempt 1 failed (KILLED_BY_SIGNAL): the process was killed by signal 9");
}

#[tokio::test]
async fn a_process_that_says_why_it_fails_is_believed_and_not_started_again() {
    let stage = Stage::new(r#"echo '{"failed":{"reason":"DISK_FULL","message":"no space"}}'; exit 1"#).await;
    assert_eq!(stage.failure().await, (Reason::DiskFull, "no space".into(), 1));
}

#[tokio::test]
async fn a_process_that_ends_without_a_word_has_crashed() {
    for (script, message) in [
        ("exit 0", "the process ended with exit code 0"),
        ("echo ouch >&2; exit 101", "the process ended with exit code 101; its last words: ouch"),
        ("echo '\"stopped\"'", "a signal that the server did not send stopped the process"),
    ] {
        let stage = Stage::with(script, |settings| settings.attempts_max = 1).await;
        let (_, found, _) = stage.failure().await;
        assert!(found.starts_with(message), "{found}");
    }
    let absent = Stage::with("", |settings| settings.program = "/nowhere/at/all".into()).await;
    let (reason, _, attempts) = absent.failure().await;
    assert_eq!((reason, attempts), (Reason::NotStarted, 2));
}

#[tokio::test]
async fn a_process_that_is_silent_for_too_long_is_killed() {
    let hung = |settings: &mut Settings| {
        settings.silence_max = Duration::from_millis(300);
        settings.attempts_max = 1;
    };
    let stage = Stage::with(&format!("{ALIVE}; exec sleep 100000"), hung).await;
    let (reason, message, _) = stage.failure().await;
    assert_eq!((reason, message.as_str()), (Reason::Hung, message.as_str()));
    assert!(message.starts_with("nothing was heard of the process for 0.3 s"), "{message}");
}

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
    let events = stage.watch(&key, |what| matches!(what, EventPayload::State(job) if job.attempt == 2)).await;
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

/// Has no room until somebody makes some.
#[derive(Debug, Default)]
struct Full(AtomicBool);

impl ModelSink for Full {
    fn keep(&self, folder: &Path, model: ModelDigest) -> Result<(), Failure> {
        assert!(folder.ends_with("job-1/model") && model == ModelDigest::new([1; 32]));
        match self.0.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(Failure::new(Reason::ModelNotKept, "there are enough")),
        }
    }
}

#[tokio::test]
async fn a_job_whose_model_finds_no_room_fails_and_finishes_when_there_is_some() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    JobStore::create(&Folder(folder.path().to_owned())).expect("writable");
    let (full, model) = (Arc::new(Full::default()), ModelDigest::new([1; 32]));
    let script = format!(r#"echo '{{"finished":{{"model":"{model}"}}}}'"#);
    let stage = Stage::kept_by(full.clone(), folder, &script, |_| {}).await;
    let key = stage.order().await;
    let (job, _) = stage.ended(&key).await;
    assert_eq!(job.state, JobState::Failed(Failure::new(Reason::ModelNotKept, "there are enough")));
    assert_eq!(job.attempt, 1, "trying again makes no room");

    full.0.store(true, Ordering::Relaxed);
    stage.repository.update(&key, |edit| edit.change(Change::Resume)).await.expect("legal");
    stage.supervisor.look().await;
    assert_eq!(stage.ended(&key).await.0.state, JobState::Finished { model });
}

#[tokio::test]
async fn a_job_with_which_the_server_dies_again_and_again_is_given_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    JobStore::create(&Folder(folder.path().to_owned())).expect("writable");
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
        on.watch(&key, |what| matches!(what, EventPayload::State(job) if job.attempt == 2 && job.state == JobState::Running)).await;
        let Stage { folder: place, repository, supervisor, .. } = on;
        // What a killed server leaves behind is a job that runs.
        let copy = tempfile::tempdir().expect("a temporary folder");
        drop((repository, supervisor));
        std::fs::copy(place.path().join(super::store::FILE), copy.path().join(super::store::FILE))
            .expect("a copy");
        folder = Some(copy);
    }
    let stage = stage.expect("given up");
    let (job, _) = stage.ended(&key).await;
    let JobState::Failed(failure) = job.state else { panic!("{:?}", job.state) };
    assert_eq!(failure.reason, Reason::ServerLost);
    assert_eq!(reached, [StateName::Queued, StateName::Failed]);
}

#[tokio::test]
async fn a_watcher_reads_at_its_own_pace_and_is_told_when_it_is_too_slow() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    JobStore::create(&Folder(folder.path().to_owned())).expect("writable");
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
    let unknown = JobKey { id: super::job::JobId::new(9), ..key.clone() };
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
    JobStore::create(&Folder(folder.path().to_owned())).expect("writable");
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
    // What had been read is still told.
    assert!(waiting.next().await.expect("open").is_ok());
    assert!(waiting.next().await.is_none());
    let gone = watch(Arc::clone(&repository), key, WatchFrom::Oldest).await;
    assert!(matches!(gone.err(), Some(WatchError::Unknown)));
}

#[tokio::test]
async fn the_chips_of_a_gallery_are_there_before_the_process_starts() {
    let script =
        r#"wc -l < chips/manifest.jsonl >&2; echo '{"failed":{"reason":"DIVERGED","message":"over"}}'"#;
    let stage = Stage::new(script).await;
    let name = GalleryName::new("harbour").expect("a name");
    let order = JobSpec { gallery: Some(name.clone()), ..JobSpec::default() };
    let ended = async || {
        let added = stage.repository.add("default".into(), order.clone()).await;
        let Ok(Added::New(job)) = added else { panic!("{added:?}") };
        stage.supervisor.look().await;
        let (job, events) = stage.ended(&job.key).await;
        let JobState::Failed(failure) = job.state else { panic!("{:?}", job.state) };
        (failure, logged(&events).into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let (failure, _) = ended().await;
    assert_eq!(failure.reason, Reason::DataMissing);
    let expected = "the gallery's chips cannot be copied: there is no gallery \"harbour\"";
    assert_eq!(failure.message, expected);
    let new = NewGallery { model: ModelDigest::new([7; 32]), dimension: 2, keeps_chips: true };
    stage.galleries.create("default", &name, new).expect("made");
    let (failure, log) = ended().await;
    assert_eq!(failure.message, "over");
    let copied =
        "learning from 0 chips of the gallery; left out: 0 entries without a vessel id, 0 without a chip";
    assert_eq!(log[..2], [copied, "0"]);
}

#[tokio::test]
async fn a_precision_that_is_too_slow_here_is_refused_beside_whatever_else_is_wrong() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut settings = settings(&folder.path().join("jobs"), &Arc::new(catalog(&folder)));
    settings.pace = |config| Some(Pace::new(config.model.precision, 0.4, Processor::here()));
    let bounds = Bounds { jobs_max: 9, events_retained_max: 100 };
    let jobs = Jobs::open(settings, bounds, Arc::new(())).await.expect("jobs");
    let fields = async |speed_min: f64| {
        let config_toml = format!(
            r#"
            seed = 1
            objective = "fine_tune"
            data = {{ root = "/nowhere", loader_threads = 1 }}
            model = {{ preset = "tiny", size_token = true, drop_path = 0.0, precision = "bf16", precision_speed_min = {speed_min} }}
            start = {{ from = "scratch" }}
            batch = {{ images = 4, images_per_identity = 2 }}
            optimizer = {{ kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }}
            schedule = {{ base_rate = 1e-3, warm_up_epochs = 1, epochs = 2 }}
            checkpoint = {{ epochs = 1, keep = 1 }}
            "#
        );
        let order = JobSpec { config_toml, ..JobSpec::default() };
        match jobs.check("default".into(), order).await {
            Err(JobRejection::Invalid(found)) => found.into_iter().map(|violation| violation.field).collect(),
            other => panic!("{other:?}"),
        }
    };
    let found: Vec<String> = fields(0.5).await;
    assert_eq!(found, ["data.root", "model.precision"]);
    assert_eq!(fields(0.3).await, ["data.root"]);
}
