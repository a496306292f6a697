//! How jobs are run.

use std::path::PathBuf;
use std::time::Duration;

use super::job::JobId;
use crate::arithmetic::Pace;
use crate::gallery::Catalog;
use crate::train::TrainConfig;

/// A server's [`Settings::retry_pause`].
pub const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a server allows its jobs, and where they run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Each job has a folder of its own in it.
    pub folder: PathBuf,
    /// The program that is run with `train --job FOLDER`.
    pub program: PathBuf,
    /// 0: this server runs none, and leaves them to those that share them.
    pub jobs_concurrent_max: usize,
    pub device: String,
    pub threads: usize,
    /// Of one job, which train together.
    pub processes: usize,
    pub nice: i32,
    /// 0: no limit.
    pub memory_bytes_max: u64,
    /// A process that is silent for longer is killed.
    pub silence_max: Duration,
    /// A process that was asked to stop is killed after this time.
    pub grace: Duration,
    /// Consecutive attempts without a further checkpoint.
    pub attempts_max: u32,
    /// How long a job that servers share is held without a renewal.
    pub lease: Duration,
    /// Between an attempt without a further checkpoint and the next; doubles with each consecutive one.
    pub retry_pause: Duration,
    /// Folders that contain data and starting points.
    pub data_roots: Vec<PathBuf>,
    /// Galleries whose kept chips can be used for training.
    pub galleries: Catalog,
    /// The pace of a run's precision compared with f32 on `device`, if there is anything to compare.
    pub pace: fn(&TrainConfig) -> Option<Pace>,
}

impl Settings {
    pub fn job_folder(&self, id: JobId) -> PathBuf {
        self.folder.join(id.to_string())
    }
}
