//! Jobs whose process is a script: how the supervisor handles everything that a process can do.

mod attempts;
mod checking;
mod leaving;
mod retrying;
mod sharing;
mod starting;
mod stopping;
mod trouble;
mod watching;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::event::{EventPayload, JobEvent};
use super::failure::Failure;
use super::job::{Job, JobKey, JobSpec};
use super::model_sink::ModelSink;
use super::report::RunEvent;
use super::repository::JobRepository;
use super::service::Jobs;
use super::settings::Settings;
use super::state::{Change, JobState, Refused, StateName};
use super::store::{Added, Bounds, EmbeddedJobs};
use super::supervisor::Supervisor;
use super::watch::{WatchFrom, watch};
use crate::durable::Folder;
use crate::embedding::ModelDigest;
use crate::gallery::{
    Catalog, EmbeddedCatalog, EmbeddedSettings, GalleryName, ImportBounds, NewGallery, QueueSettings, Quotas,
};
use crate::reason::FailureReason;

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
        processes: 1,
        nice: 0,
        memory_bytes_max: 0,
        silence_max: Duration::from_secs(3600),
        grace: Duration::from_secs(3600),
        attempts_max: 2,
        lease: Duration::from_secs(3600),
        retry_pause: Duration::ZERO,
        data_roots: vec![],
        galleries: Arc::clone(galleries) as Catalog,
        pace: |_| None,
    }
}

/// The jobs of a server, without the server.
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
        EmbeddedJobs::create(&Folder(folder.path().to_owned())).expect("writable");
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
        let repository = repository(&folder, 1000);
        Self::of(repository, model_sink, folder, script, change).await
    }

    async fn of(
        repository: Arc<JobRepository>,
        model_sink: Arc<dyn ModelSink>,
        folder: tempfile::TempDir,
        script: &str,
        change: impl Fn(&mut Settings),
    ) -> Self {
        std::fs::write(folder.path().join("script.sh"), script).expect("writable");
        let galleries = Arc::new(catalog(&folder));
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

    /// Waits for an event for which `until` holds, or for the end of the job.
    async fn watch(&self, key: &JobKey, until: impl Fn(&EventPayload) -> bool) -> Vec<JobEvent> {
        let events =
            watch(Arc::clone(&self.repository), key.clone(), WatchFrom::Oldest).await.expect("known");
        let mut events = std::pin::pin!(events);
        let mut seen = Vec::new();
        while let Some(event) = events.next().await {
            let event = event.expect("an event");
            let reached = until(&event.payload);
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

    async fn failure(&self) -> (FailureReason, String, u32) {
        let (job, _) = self.ended(&self.order().await).await;
        match job.state {
            JobState::Failed(failure) => (failure.reason, failure.message, job.attempt),
            other => panic!("{other:?}"),
        }
    }
}

fn catalog(folder: &tempfile::TempDir) -> EmbeddedCatalog {
    EmbeddedCatalog::open(&folder.path().join("galleries"), gallery_settings()).expect("a catalog")
}

fn gallery_settings() -> EmbeddedSettings {
    EmbeddedSettings {
        cache_bytes: 1 << 20,
        queue: QueueSettings { operations_max: 1, bytes_max: 1 << 20 },
        quotas: Quotas { galleries_per_tenant: 1, entries_per_gallery: 1, bytes_per_tenant: 1 << 20 },
        imports: ImportBounds { image_bytes_max: 1 << 20, bytes_max: 8 << 20 },
    }
}

fn repository(folder: &tempfile::TempDir, events_retained_max: u64) -> Arc<JobRepository> {
    let bounds = Bounds { jobs_max: 10, events_retained_max };
    let store = EmbeddedJobs::open(Box::new(Folder(folder.path().to_owned())), bounds).expect("a store");
    Arc::new(JobRepository::new(store).expect("readable"))
}

async fn add(repository: &Arc<JobRepository>) -> Job {
    match repository.add("default".into(), JobSpec::default()).await {
        Ok(Added::New(job)) => job,
        other => panic!("{other:?}"),
    }
}

fn states(events: &[JobEvent]) -> Vec<(u32, StateName)> {
    let states = events.iter().filter_map(|event| match &event.payload {
        EventPayload::State(job) => Some((event.attempt, job.state.name())),
        _ => None,
    });
    states.collect()
}

fn logged(events: &[JobEvent]) -> Vec<&str> {
    let lines = events.iter().filter_map(|event| match &event.payload {
        EventPayload::Run(RunEvent::Log(line)) => Some(line.as_str()),
        _ => None,
    });
    lines.collect()
}

fn is_logged(payload: &EventPayload) -> bool {
    matches!(payload, EventPayload::Run(RunEvent::Log(_)))
}

fn is_running(payload: &EventPayload) -> bool {
    matches!(payload, EventPayload::State(job) if job.state == JobState::Running)
}
