//! Turns the configuration's `[training]` into running jobs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use super::threads::cores;
use crate::config::{Config, ServerRole, Training};
use crate::durable::discard_folder;
use crate::embedding::ModelDigest;
use crate::gallery::Catalog;
use crate::jobs::{
    Bounds, JOB_STORE, JobFailure, JobStoreError, Jobs, ModelSink, RETRY_PAUSE, Settings, io_reason,
};
use crate::postgres::{Cluster, Fence};
use crate::reason::FailureReason;
use crate::registry::{Registry, RegistryError};
use crate::rpc::JobAccess;
#[cfg(feature = "torch")]
use crate::train::pace_on_cpu;

/// Folder of the jobs within the data folder.
const JOBS: &str = "jobs";
/// Folder within the data folder of what this server needs of shared jobs that it runs.
const SHARED_JOBS: &str = "shared-jobs";
/// Between two attempts to add a job's model to a database that cannot be used.
const ADOPT_PAUSE: Duration = Duration::from_secs(1);
/// This program, even after another one has replaced it on disk.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Opens the jobs of the database that servers share, or else those under the data folder, next to the galleries; without a
/// data folder there are neither. Their models go into the registry if there is one. A damaged store is kept as it is, and
/// everything else is served without it.
///
/// # Errors
/// The job store or a data root cannot be used.
pub async fn open_jobs(
    config: &Config,
    cluster: Option<Cluster>,
    catalog: Option<Catalog>,
    registry: Option<Arc<Registry>>,
) -> anyhow::Result<JobAccess> {
    if config.store.data_dir.is_empty() {
        return Ok(JobAccess::NoDataDir);
    }
    let trains = config.server.has(ServerRole::Train);
    let Some(catalog) = catalog.filter(|_| trains || cluster.is_some()) else {
        return Ok(JobAccess::NotServed);
    };
    // A training process has the same working directory, but its instructions must not depend on that.
    let data_dir = std::path::absolute(&config.store.data_dir)?;
    let Training { jobs_max, events_retained_max, .. } = config.training;
    let bounds = Bounds { jobs_max, events_retained_max };
    let model_sink: Arc<dyn ModelSink> = match registry {
        Some(registry) => registry,
        None => Arc::new(()),
    };
    let mut settings = settings(&config.training, &data_dir, catalog);
    if let Some(cluster) = cluster {
        settings.folder = data_dir.join(SHARED_JOBS);
        if !trains {
            settings.jobs_concurrent_max = 0;
        }
        let jobs = Jobs::share(settings, bounds, model_sink, cluster).await;
        return Ok(JobAccess::Open(Arc::new(jobs.context("the training jobs cannot be opened")?)));
    }
    match Jobs::open(settings, bounds, model_sink).await {
        Ok(jobs) => Ok(JobAccess::Open(Arc::new(jobs))),
        Err(cause) => match cause.downcast_ref() {
            Some(damage @ JobStoreError::Damaged(_)) => {
                tracing::error!(cause = %damage, "{JOBS}/{JOB_STORE} is kept as it is; no job is run");
                Ok(JobAccess::Damaged(damage.to_string().into()))
            }
            _ => Err(cause.context("the training jobs cannot be opened")),
        },
    }
}

fn settings(training: &Training, data_dir: &Path, galleries: Catalog) -> Settings {
    Settings {
        folder: data_dir.join(JOBS),
        program: match training.program.as_str() {
            "" => PathBuf::from(THIS_PROGRAM),
            program => PathBuf::from(program),
        },
        jobs_concurrent_max: training.jobs_concurrent_max,
        device: training.device.clone(),
        threads: if training.threads == 0 { cores() } else { training.threads },
        processes: training.processes,
        nice: training.nice,
        memory_bytes_max: training.memory_bytes_max,
        silence_max: Duration::from_secs_f64(training.heartbeat_seconds_max),
        grace: Duration::from_secs_f64(training.cancel_grace_seconds),
        attempts_max: training.attempts_max,
        lease: Duration::from_secs_f64(training.lease_seconds),
        retry_pause: RETRY_PAUSE,
        data_roots: training.data_roots.clone(),
        galleries,
        pace: if training.device == "cpu" { pace_on_cpu } else { |_| None },
    }
}

#[cfg(not(feature = "torch"))]
fn pace_on_cpu(_: &crate::train::TrainConfig) -> Option<crate::arithmetic::Pace> {
    None
}

impl ModelSink for Registry {
    fn keep(&self, folder: &Path, model: ModelDigest, fence: Option<Fence>) -> Result<(), JobFailure> {
        let adopted = loop {
            match self.adopt(folder, fence) {
                // A job that has trained for days does not fail for that.
                Err(cause @ RegistryError::Database(_)) => {
                    tracing::error!(%cause, %model, "a job's model waits for the database");
                    thread::sleep(ADOPT_PAUSE);
                }
                adopted => break adopted,
            }
        };
        let (digest, _) = adopted.map_err(|cause| JobFailure::new(reason(&cause), cause.to_string()))?;
        if digest != model {
            let message = format!("it said that it made model {model}, and left model {digest}");
            return Err(JobFailure::new(FailureReason::Crashed, message));
        }
        if let Err(cause) = discard_folder(folder) {
            tracing::warn!(%cause, %model, "a second copy of a model stays with the job that made it");
        }
        Ok(())
    }
}

fn reason(cause: &RegistryError) -> FailureReason {
    match cause {
        RegistryError::NoModel(_) | RegistryError::OtherCalibrator { .. } => FailureReason::Crashed,
        RegistryError::Io { cause, .. } => io_reason(cause, FailureReason::ModelNotKept),
        _ => FailureReason::ModelNotKept,
    }
}
