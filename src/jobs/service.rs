//! Training jobs as the rest of the server uses them.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::Stream;
use tokio::task::spawn_blocking;

use super::chips::{self, GalleryError};
use super::event::JobEvent;
use super::follow::followed;
use super::job::{Job, JobId, JobKey, JobSpec};
use super::model_sink::ModelSink;
use super::paths::ShownPaths;
use super::report::Start;
use super::repository::JobRepository;
use super::retries::Pauses;
use super::settings::Settings;
use super::state::{Change, JobState, Refused};
use super::store::{
    AddError, Added, All, Bounds, EmbeddedJobs, FILE, Listing, Page, PostgresJobs, PostgresSettings,
    StoreError, UpdateError,
};
use super::supervisor::Supervisor;
use super::watch::{WatchError, WatchFrom, watch};
use crate::cancellation::{Stopped, spawn_cancellable};
use crate::durable::{Folder, PartialFolder, discard_folder, remove_partial};
use crate::gallery::Time;
use crate::postgres::Cluster;
use crate::train::{DataRoots, TrainConfig, TrainConfigError, TrainingInputs, Violation, check_shared};

/// The jobs of every tenant.
#[derive(Debug)]
pub struct Jobs {
    repository: Arc<JobRepository>,
    supervisor: Supervisor,
    settings: Settings,
    roots: DataRoots,
    draining: AtomicBool,
}

/// Why a job was rejected.
#[derive(Debug, thiserror::Error)]
pub enum JobRejection {
    /// Invalid TOML or an unknown key.
    #[error("the configuration cannot be read: {0}")]
    Syntax(String),
    /// Every invalid value.
    #[error("the configuration starts no run: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
    #[error(transparent)]
    Gallery(#[from] GalleryError),
    #[error("the server is shutting down")]
    Draining,
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Add(#[from] AddError),
}

/// Why an operation on a job was refused.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("there is no such job")]
    Unknown,
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the server is shutting down")]
    Draining,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Jobs {
    /// Opens the jobs in `settings.folder`, which is created if missing. `model_sink` receives their models. Jobs that
    /// were running or waiting are run once the server [begins](Self::begin).
    ///
    /// # Errors
    /// The store or a data root cannot be used.
    pub async fn open(
        settings: Settings,
        bounds: Bounds,
        model_sink: Arc<dyn ModelSink>,
    ) -> anyhow::Result<Self> {
        let folder = settings.folder.clone();
        let opened = spawn_blocking(move || open_repository(&folder, bounds));
        let repository = Arc::new(opened.await??);
        Self::of(repository, settings, model_sink).await
    }

    /// The same for the jobs that all servers of a database share. `settings.folder` has what this server needs of those
    /// that it runs, and nothing else.
    ///
    /// # Errors
    /// The folder or a data root cannot be used.
    pub async fn share(
        settings: Settings,
        bounds: Bounds,
        model_sink: Arc<dyn ModelSink>,
        cluster: Cluster,
    ) -> anyhow::Result<Self> {
        let folder = settings.folder.clone();
        spawn_blocking(move || clear(&folder)).await??;
        let (lease, pauses) = (settings.lease, Pauses::new(settings.retry_pause));
        let store = PostgresJobs::new(PostgresSettings { cluster, bounds, lease, pauses });
        Self::of(followed(store), settings, model_sink).await
    }

    async fn of(
        repository: Arc<JobRepository>,
        settings: Settings,
        model_sink: Arc<dyn ModelSink>,
    ) -> anyhow::Result<Self> {
        let data_roots = settings.data_roots.clone();
        let roots = spawn_blocking(move || DataRoots::under(&data_roots)).await??;
        let supervisor = Supervisor::start(Arc::clone(&repository), settings.clone(), model_sink).await?;
        Ok(Self { repository, supervisor, settings, roots, draining: AtomicBool::new(false) })
    }

    /// Runs waiting jobs from now on; called once everything else that can fail at startup has succeeded.
    pub fn begin(&self) {
        self.supervisor.begin();
    }

    /// Checks an order and its training data without starting anything; returns the job as it would be, and its
    /// starting point.
    ///
    /// # Errors
    /// Everything that prevents it from being started.
    pub async fn check(
        &self,
        tenant: Arc<str>,
        order: JobSpec,
    ) -> Result<(Job, Option<Start>), JobRejection> {
        let start = self.validate(&tenant, &order).await?;
        let key = JobKey { tenant, id: JobId::new(0) };
        Ok((Job::new(key, order, Time::now()), start))
    }

    /// Starts a job, or finds the one that the same request id has started with the same order.
    ///
    /// # Errors
    /// See [`JobRejection`]; then no job was created.
    pub async fn order(&self, tenant: Arc<str>, order: JobSpec) -> Result<Job, JobRejection> {
        if self.draining.load(Ordering::Acquire) {
            return Err(JobRejection::Draining);
        }
        self.validate(&tenant, &order).await?;
        let added = self.repository.add(tenant, order).await;
        self.supervisor.look().await;
        match added? {
            Added::New(job) | Added::Known(job) => Ok(job),
        }
    }

    /// # Errors
    /// The job does not exist, or the store cannot be used.
    pub async fn get(&self, key: &JobKey) -> Result<Job, JobError> {
        self.repository.get(key).await?.ok_or(JobError::Unknown)
    }

    /// Newest first.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn list(&self, tenant: Arc<str>, listing: Listing) -> Result<Page, StoreError> {
        self.repository.list(tenant, listing).await
    }

    /// The events of a job from a number on, until it has ended.
    ///
    /// # Errors
    /// The job or the event does not exist.
    pub async fn watch(
        &self,
        key: JobKey,
        from: WatchFrom,
    ) -> Result<impl Stream<Item = Result<JobEvent, WatchError>> + Send + use<>, WatchError> {
        watch(Arc::clone(&self.repository), key, from).await
    }

    /// Asks a job to stop with a checkpoint; it is killed if it does not stop in time.
    ///
    /// # Errors
    /// It has finished or failed. A job that is already cancelled stays cancelled.
    pub async fn cancel(&self, key: JobKey) -> Result<Job, JobError> {
        let (repository, supervisor) = (Arc::clone(&self.repository), self.supervisor.clone());
        to_its_end(async move {
            let job = repository.update(&key, |edit| edit.change(Change::Cancel)).await?;
            supervisor.stop(key).await;
            Ok::<_, JobError>(job)
        })
        .await
    }

    /// Resumes a job that was cancelled, has failed or was interrupted from its last checkpoint.
    ///
    /// # Errors
    /// It waits, runs or has finished.
    pub async fn resume(&self, key: &JobKey) -> Result<Job, JobError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(JobError::Draining);
        }
        let job = self.repository.update(key, |edit| edit.change(Change::Resume)).await?;
        self.supervisor.look().await;
        Ok(job)
    }

    /// Removes a job that has ended, or is damaged, with its events, checkpoints and model.
    ///
    /// # Errors
    /// It has not ended.
    pub async fn delete(&self, key: &JobKey) -> Result<(), JobError> {
        let ended = |job: &Job| if job.state.is_ended() { Ok(()) } else { Err(job.state.refusal()) };
        let (repository, key, folder) =
            (Arc::clone(&self.repository), key.clone(), self.settings.job_folder(key.id));
        to_its_end(async move {
            repository.delete(&key, ended).await?;
            match spawn_blocking(move || discard(&folder)).await {
                Ok(Ok(())) => repository.forget(key.id).await?,
                Ok(Err(cause)) => {
                    tracing::warn!(%cause, job = %key.id, "the folder of a deleted job stays until the next start");
                }
                // The runtime is being shut down, and the next start completes it.
                Err(_) => {}
            }
            Ok::<_, JobError>(())
        })
        .await
    }

    /// The folder of a job, which contains the model of a finished one.
    pub fn folder(&self, id: JobId) -> PathBuf {
        self.settings.job_folder(id)
    }

    /// Stops every job with a checkpoint, to be resumed at the next start, then ends every watch.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.supervisor.drain().await;
        self.repository.close();
    }

    /// Validates values, data set and starting point, and returns a description of the latter.
    async fn validate(&self, tenant: &str, order: &JobSpec) -> Result<Option<Start>, JobRejection> {
        let config = TrainConfig::read(&order.config_toml, &[]).map_err(|cause| match cause {
            TrainConfigError::Syntax(cause) => JobRejection::Syntax(cause),
            TrainConfigError::Invalid(violations) => JobRejection::Invalid(violations),
        })?;
        let gallery = match &order.gallery {
            Some(name) => Some(chips::gallery(&*self.settings.galleries, tenant, name).await?),
            None => None,
        };
        let roots = self.roots.clone();
        let processes = self.settings.processes;
        let (pace, paths) = (self.settings.pace, ShownPaths::of_job(&self.settings, &self.settings.folder));
        let checked = spawn_cancellable(None, move |cancellation| {
            let start = match gallery {
                None => TrainingInputs::check(&config, &roots, cancellation),
                Some(gallery) => {
                    let census =
                        chips::census(&*gallery.snapshot(), cancellation).map_err(GalleryError::from)?;
                    TrainingInputs::check_kept(&config, &census, &roots, cancellation)
                }
            };
            let unshared = check_shared(&config, processes).err();
            match (start, pace(&config).and_then(|pace| config.too_slow(&pace)).or(unshared)) {
                (Ok(start), None) => Ok(start.map(|start| Start::new(&config.start.path, &start))),
                (start, slow) => {
                    let violations = start.err().unwrap_or_default().into_iter().chain(slow);
                    let shown = violations.map(|violation| Violation {
                        problem: paths.relative(&violation.problem),
                        ..violation
                    });
                    Err(JobRejection::Invalid(shown.collect()))
                }
            }
        });
        checked.await.unwrap_or(Err(JobRejection::Draining))
    }
}

/// Runs several steps to completion, even if the caller leaves after the first.
async fn to_its_end<T: Send + 'static>(steps: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(steps).await {
        Ok(done) => done,
        Err(cause) if cause.is_panic() => resume_unwind(cause.into_panic()),
        // The runtime is being shut down, and this task with it.
        Err(_) => std::future::pending().await,
    }
}

/// Opens the store in a folder that also contains the folders of its jobs. Those of deleted jobs are removed, and no
/// others: a folder unknown to the store may be all that is left of a job.
fn open_repository(folder: &Path, bounds: Bounds) -> anyhow::Result<JobRepository> {
    if !folder.join(FILE).exists() {
        if has_jobs(folder)? {
            let cause = format!(
                "{FILE} is missing, and there are folders of jobs: restore it from a copy, or move them away"
            );
            return Err(StoreError::Damaged(cause).into());
        }
        let parent = folder.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent)?;
        let partial = PartialFolder::new(folder)?;
        EmbeddedJobs::create(&Folder(partial.path().to_owned()))?;
        partial.publish()?;
    }
    remove_partial(folder)?;
    let store = EmbeddedJobs::open(Box::new(Folder(folder.to_owned())), bounds)?;
    for id in store.deleted()? {
        discard(&folder.join(id.to_string()))?;
        match store.forget(id) {
            // The next start does it.
            Err(cause) if cause.is_full() => tracing::warn!(%cause, job = %id, "a deleted job is remembered"),
            forgotten => forgotten?,
        }
    }
    let All { jobs, damaged } = store.all()?;
    for job in jobs.iter().filter(|job| matches!(job.state, JobState::Finished { .. })) {
        // Left by a server that stopped between the end of the job and this step.
        chips::discard(&folder.join(job.key.id.to_string()));
    }
    let known: HashSet<JobId> =
        jobs.iter().map(|job| job.key.id).chain(damaged.iter().map(|(key, _)| key.id)).collect();
    for entry in fs::read_dir(folder)? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse::<JobId>() else { continue };
        store.reserve(id);
        if !known.contains(&id) {
            tracing::warn!(job = %id, "a folder of a job that the store does not know is kept; remove it if nobody needs it");
        }
    }
    Ok(JobRepository::new(store)?)
}

/// Empties the folder for jobs that servers share: what counts of them is in the database.
fn clear(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    remove_partial(folder)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().parse::<JobId>().is_ok() {
            discard(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether there are folders of jobs, which cannot be identified without a store.
fn has_jobs(folder: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(folder) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        if entry?.file_name().to_string_lossy().parse::<JobId>().is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn discard(folder: &Path) -> io::Result<()> {
    match discard_folder(folder) {
        // A job that never ran has none.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        discarded => discarded,
    }
}

impl From<UpdateError<Refused>> for JobError {
    fn from(cause: UpdateError<Refused>) -> Self {
        match cause {
            UpdateError::Unknown => Self::Unknown,
            UpdateError::Refused(cause) => Self::Refused(cause),
            UpdateError::Store(cause) => Self::Store(cause),
        }
    }
}
