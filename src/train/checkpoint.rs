//! Where a run stands, on disk: one folder a checkpoint, whole or absent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::learn::LearnerState;
use crate::durable::{remove_partial, write_folder};
use crate::weights::native::{NativeError, read_tensors, tensor_bytes};

const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const PROGRESS: &str = "progress.toml";
const PREFIX: &str = "checkpoint-";
const FORMAT: u32 = 1;

/// What has been done of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Counts from 1.
    pub epoch: u32,
    /// Steps of that epoch that are done.
    pub steps_of_epoch: u64,
    /// Steps since the start.
    pub steps: u64,
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    /// Older ones are removed.
    keep: usize,
    /// Whether the one with the highest metric stays however old it is.
    keep_best: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    optimizer_steps: u32,
    /// What validation said, more being better.
    metric: Option<f64>,
    progress: Progress,
}

/// A checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Tensors(#[from] NativeError),
    #[error("{path}: {cause}")]
    Progress { path: PathBuf, cause: String },
}

impl Checkpoints {
    /// Those in `folder`, which is made if need be; what a killed writer left behind is removed.
    ///
    /// # Errors
    /// The folder cannot be made, read or tidied.
    pub fn open(folder: &Path, keep: usize, keep_best: bool) -> Result<Self, CheckpointError> {
        let opened = fs::create_dir_all(folder).and_then(|()| remove_partial(folder));
        opened.map_err(|cause| CheckpointError::Io { path: folder.to_owned(), cause })?;
        Ok(Self { folder: folder.to_owned(), keep: keep.max(1), keep_best })
    }

    /// Writes a checkpoint durably, then removes what need not be kept.
    ///
    /// # Errors
    /// It cannot be written; earlier ones are untouched.
    pub fn save(
        &self,
        progress: Progress,
        metric: Option<f64>,
        state: &LearnerState,
    ) -> Result<PathBuf, CheckpointError> {
        let folder = self.place(progress.steps);
        let failed = |cause| CheckpointError::Io { path: folder.clone(), cause };
        let written = Written { format: FORMAT, optimizer_steps: state.steps, metric, progress };
        let progress = toml::to_string(&written).expect("progress is a table");
        if folder.exists() {
            // A run that was resumed from an older checkpoint comes by here once more, with the same numbers.
            fs::remove_dir_all(&folder).map_err(failed)?;
        }
        let files: [(&str, &[u8]); 3] = [
            (WEIGHTS, &tensor_bytes(&state.weights)),
            (OPTIMIZER, &tensor_bytes(&state.optimizer)),
            (PROGRESS, progress.as_bytes()),
        ];
        write_folder(&folder, &files).map_err(failed)?;
        self.remove_old()?;
        Ok(folder)
    }

    fn remove_old(&self) -> Result<(), CheckpointError> {
        let all = self.all()?;
        let best = if self.keep_best { best(&all) } else { None };
        for old in &all[..all.len().saturating_sub(self.keep)] {
            if Some(old) != best {
                fs::remove_dir_all(old).map_err(|cause| CheckpointError::Io { path: old.clone(), cause })?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint that can be read; a damaged one is passed over with a warning.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn newest(&self) -> Result<Option<(Progress, LearnerState)>, CheckpointError> {
        for folder in self.all()?.iter().rev() {
            match read(folder) {
                Ok(found) => return Ok(Some(found)),
                Err(cause) => tracing::warn!(%cause, "a damaged checkpoint is passed over"),
            }
        }
        Ok(None)
    }

    /// Where the newest checkpoint that can be read lies.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn newest_place(&self) -> Result<Option<PathBuf>, CheckpointError> {
        Ok(self.all()?.into_iter().rev().find(|folder| read(folder).is_ok()))
    }

    /// Whether the checkpoint after these steps has the highest metric of those that are kept.
    pub fn is_best(&self, steps: u64) -> bool {
        let best = self.all().ok().and_then(|all| best(&all).cloned());
        best == Some(self.place(steps))
    }

    fn place(&self, steps: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{steps:010}"))
    }

    /// Oldest first.
    fn all(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let failed = |cause| CheckpointError::Io { path: self.folder.clone(), cause };
        let entries = fs::read_dir(&self.folder).map_err(failed)?;
        let paths = entries.map(|entry| Ok(entry.map_err(failed)?.path()));
        let mut paths = paths.collect::<Result<Vec<_>, CheckpointError>>()?;
        paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)));
        paths.sort();
        Ok(paths)
    }
}

/// The one with the highest metric, the earliest of equals.
fn best(checkpoints: &[PathBuf]) -> Option<&PathBuf> {
    let measured = checkpoints.iter().filter_map(|folder| {
        let metric = read_progress(folder).ok()?.metric?;
        Some((metric, folder))
    });
    measured.rev().max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, folder)| folder)
}

fn read(folder: &Path) -> Result<(Progress, LearnerState), CheckpointError> {
    let written = read_progress(folder)?;
    let state = LearnerState {
        weights: read_tensors(&folder.join(WEIGHTS))?,
        optimizer: read_tensors(&folder.join(OPTIMIZER))?,
        steps: written.optimizer_steps,
    };
    Ok((written.progress, state))
}

fn read_progress(folder: &Path) -> Result<Written, CheckpointError> {
    let path = folder.join(PROGRESS);
    let text =
        fs::read_to_string(&path).map_err(|cause| CheckpointError::Io { path: path.clone(), cause })?;
    let malformed = |cause: String| CheckpointError::Progress { path: path.clone(), cause };
    let written: Written = toml::from_str(&text).map_err(|cause| malformed(cause.message().to_owned()))?;
    if written.format != FORMAT {
        return Err(malformed(format!("format {}, this program reads format {FORMAT}", written.format)));
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_and_the_best_stay() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let checkpoints = Checkpoints::open(folder.path(), 2, true).expect("writable");
        let mut left = Vec::new();
        for (steps, metric) in [(1, Some(0.2)), (2, Some(0.5)), (3, None), (4, Some(0.5)), (5, Some(0.1))] {
            let progress = Progress { epoch: 1, steps_of_epoch: 0, steps };
            checkpoints.save(progress, metric, &LearnerState::default()).expect("writable");
            let all = checkpoints.all().expect("readable");
            left = all.iter().filter_map(|folder| Some(read_progress(folder).ok()?.progress.steps)).collect();
        }
        assert_eq!(left, [2, 4, 5]);
    }
}
