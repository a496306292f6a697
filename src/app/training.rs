//! From the configuration's `[training]` to jobs that go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::cores;
use crate::config::{Config, Training};
use crate::gallery::Shelf;
use crate::jobs::{Bounds, Jobs, Settings};

/// Folder of the jobs within the data folder.
const JOBS: &str = "jobs";
/// This program, also after another one has taken its place on disk.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Opens the jobs under the data folder, beside the galleries; without a data folder there are neither.
///
/// # Errors
/// The job store or a data root cannot be used.
pub async fn open_jobs(config: &Config, shelf: Option<Arc<Shelf>>) -> anyhow::Result<Option<Arc<Jobs>>> {
    let Some(shelf) = shelf else { return Ok(None) };
    // A training process has the same working directory, but its instructions shall not depend on that.
    let data_dir = std::path::absolute(&config.store.data_dir)?;
    let Training { jobs_max, events_retained_max, .. } = config.training;
    let bounds = Bounds { jobs_max, events_retained_max };
    let jobs = Jobs::open(settings(&config.training, &data_dir, shelf), bounds).await;
    Ok(Some(Arc::new(jobs.context("the training jobs cannot be opened")?)))
}

fn settings(training: &Training, data_dir: &Path, galleries: Arc<Shelf>) -> Settings {
    Settings {
        folder: data_dir.join(JOBS),
        program: match training.program.as_str() {
            "" => PathBuf::from(THIS_PROGRAM),
            program => PathBuf::from(program),
        },
        jobs_concurrent_max: training.jobs_concurrent_max,
        device: training.device.clone(),
        threads: if training.threads == 0 { cores() } else { training.threads },
        nice: training.nice,
        memory_bytes_max: training.memory_bytes_max,
        silence_max: Duration::from_secs_f64(training.heartbeat_seconds_max),
        grace: Duration::from_secs_f64(training.cancel_grace_seconds),
        attempts_max: training.attempts_max,
        data_roots: training.data_roots.clone(),
        galleries,
    }
}
