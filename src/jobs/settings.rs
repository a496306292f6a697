//! How jobs are run.

use std::path::PathBuf;
use std::time::Duration;

use super::job::JobId;
use crate::arithmetic::Pace;
use crate::gallery::Catalog;
use crate::train::TrainConfig;

/// A server's [`Settings::retry_pause`].
pub const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a server allows its jobs, and where they work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Each job has a folder of its own in it.
    pub folder: PathBuf,
    /// What is run with `train --job FOLDER`.
    pub program: PathBuf,
    pub jobs_concurrent_max: usize,
    pub device: String,
    pub threads: usize,
    pub nice: i32,
    /// 0: as much as there is.
    pub memory_bytes_max: u64,
    /// A process of which nothing is heard for longer is killed.
    pub silence_max: Duration,
    /// A process that was asked to stop is killed after this time.
    pub grace: Duration,
    /// Attempts in a row without a further checkpoint.
    pub attempts_max: u32,
    /// Between an attempt without a further checkpoint and the next; twice as long after each such in a row.
    pub retry_pause: Duration,
    /// Folders under which data and starting points lie.
    pub data_roots: Vec<PathBuf>,
    /// Whose kept chips can be learned from.
    pub galleries: Catalog,
    /// How the precision of a run does beside f32 on `device`, where there is anything to compare.
    pub pace: fn(&TrainConfig) -> Option<Pace>,
}

impl Settings {
    pub fn job_folder(&self, id: JobId) -> PathBuf {
        self.folder.join(id.to_string())
    }
}
