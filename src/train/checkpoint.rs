//! The state of a run on disk: one folder per checkpoint, whole or absent.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::learn::LearnerState;
use crate::durable::{remove_partial, seal_text, unseal_text, write_folder};
use crate::weights::native::{NativeError, parse_tensors, read_tensor_bytes, tensor_bytes};
use crate::weights::tensors::NamedTensors;

const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const PROGRESS: &str = "progress.toml";
const PREFIX: &str = "checkpoint-";
const FORMAT: u32 = 1;
/// The newest one may turn out to be damaged.
const KEEP_MIN: usize = 2;

/// The progress of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Counts from 1.
    pub epoch: u32,
    /// Completed steps of that epoch.
    pub steps_of_epoch: u64,
    /// Steps since the start.
    pub steps: u64,
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    /// Number of checkpoints to keep; older ones are removed.
    keep: usize,
    /// Whether the one with the highest metric is kept regardless of age.
    keep_best: bool,
    /// Processes of the run.
    world_size: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    optimizer_steps: u32,
    /// The validation metric; higher is better.
    metric: Option<f64>,
    progress: Progress,
    /// Processes of the run that wrote it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    world_size: usize,
    /// Absent in checkpoints of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digests: Option<Digests>,
}

/// SHA-256 of the other files, in hexadecimal digits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Digests {
    weights: String,
    optimizer: String,
}

/// The checkpoint from which a run resumes.
#[derive(Debug, Default)]
pub struct Newest {
    /// The newest intact checkpoint.
    pub found: Option<(Progress, LearnerState)>,
    /// Processes of the run that wrote it.
    pub world_size: usize,
    /// Newer ones that cannot be used.
    pub damaged: Vec<DamagedCheckpoint>,
}

/// A checkpoint that differs from what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedCheckpoint {
    /// Name of its folder.
    pub name: String,
    pub cause: String,
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
    #[error("{0}: its digest is another one")]
    Digest(PathBuf),
}

impl fmt::Display for DamagedCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is damaged ({}) and passed over", self.name, self.cause)
    }
}

impl Checkpoints {
    /// The checkpoints in `folder`, which is created if necessary; leftovers of a killed writer are removed.
    /// The newest two are kept even if `keep` is smaller.
    ///
    /// # Errors
    /// If the folder cannot be created, read or cleaned up.
    pub fn open(folder: &Path, keep: usize, keep_best: bool) -> Result<Self, CheckpointError> {
        let opened = fs::create_dir_all(folder).and_then(|()| remove_partial(folder));
        opened.map_err(|cause| CheckpointError::Io { path: folder.to_owned(), cause })?;
        Ok(Self { folder: folder.to_owned(), keep: keep.max(KEEP_MIN), keep_best, world_size: 1 })
    }

    /// The same checkpoints, written by a run of several processes.
    #[must_use]
    pub fn of_world(self, world_size: usize) -> Self {
        Self { world_size, ..self }
    }

    /// Writes a checkpoint durably, then removes those that are no longer kept.
    ///
    /// # Errors
    /// If it cannot be written; earlier checkpoints are untouched.
    pub fn save(
        &self,
        progress: Progress,
        metric: Option<f64>,
        state: &LearnerState,
    ) -> Result<PathBuf, CheckpointError> {
        let folder = self.place(progress.steps);
        let failed = |cause| CheckpointError::Io { path: folder.clone(), cause };
        let (weights, optimizer) = (tensor_bytes(&state.weights), tensor_bytes(&state.optimizer));
        let digests = Some(Digests { weights: digest(&weights), optimizer: digest(&optimizer) });
        let written = Written {
            format: FORMAT,
            optimizer_steps: state.steps,
            metric,
            progress,
            world_size: self.world_size,
            digests,
        };
        let progress = seal_text(&toml::to_string(&written).expect("progress is a table"));
        if folder.exists() {
            // A run resumed from an older checkpoint reaches this step again, with the same numbers.
            fs::remove_dir_all(&folder).map_err(failed)?;
        }
        let files: [(&str, &[u8]); 3] =
            [(WEIGHTS, &weights), (OPTIMIZER, &optimizer), (PROGRESS, progress.as_bytes())];
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

    /// The newest usable checkpoint, and the newer ones that were skipped.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn newest(&self) -> Result<Newest, CheckpointError> {
        let mut damaged = Vec::new();
        for folder in self.all()?.iter().rev() {
            match read(folder) {
                Ok(found) => {
                    let world_size = read_progress(folder)?.world_size;
                    return Ok(Newest { found: Some(found), world_size, damaged });
                }
                Err(cause) => damaged.push(DamagedCheckpoint {
                    name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                    // The error already names the folder.
                    cause: cause.to_string().replace(&format!("{}/", folder.display()), ""),
                }),
            }
        }
        Ok(Newest { damaged, ..Newest::default() })
    }

    /// The path of the newest readable checkpoint.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn newest_place(&self) -> Result<Option<PathBuf>, CheckpointError> {
        Ok(self.all()?.into_iter().rev().find(|folder| read(folder).is_ok()))
    }

    /// The best checkpoint by validation, if the best one is kept, is not the last, and is intact.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn better_than_last(&self) -> Result<Option<(Progress, LearnerState)>, CheckpointError> {
        let all = self.all()?;
        let metric = |folder: &PathBuf| read_progress(folder).ok().and_then(|written| written.metric);
        let (Some(best), Some(last)) = (best(&all).filter(|_| self.keep_best), all.last()) else {
            return Ok(None);
        };
        // Of equals, the last one has been trained longer.
        if metric(last) >= metric(best) {
            return Ok(None);
        }
        Ok(read(best).inspect_err(|cause| tracing::warn!(%cause, "the best checkpoint is damaged")).ok())
    }

    /// Whether the checkpoint after these steps has the highest metric of the kept ones.
    pub fn is_best(&self, steps: u64) -> bool {
        let best = self.all().ok().and_then(|all| best(&all).cloned());
        best == Some(self.place(steps))
    }

    fn place(&self, steps: u64) -> PathBuf {
        self.folder.join(checkpoint_name(steps))
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

/// The name of the folder of the checkpoint after these steps.
pub fn checkpoint_name(steps: u64) -> String {
    format!("{PREFIX}{steps:010}")
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
    let digests = written.digests.as_ref();
    let state = LearnerState {
        weights: read_tensors(&folder.join(WEIGHTS), digests.map(|digests| &*digests.weights))?,
        optimizer: read_tensors(&folder.join(OPTIMIZER), digests.map(|digests| &*digests.optimizer))?,
        steps: written.optimizer_steps,
    };
    Ok((written.progress, state))
}

/// The tensors of a file; its digest is verified if known.
fn read_tensors(path: &Path, expected: Option<&str>) -> Result<NamedTensors, CheckpointError> {
    let bytes = read_tensor_bytes(path)?;
    if expected.is_some_and(|expected| expected != digest(&bytes)) {
        return Err(CheckpointError::Digest(path.to_owned()));
    }
    Ok(parse_tensors(path, &bytes)?)
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(world_size: &usize) -> bool {
    *world_size == 1
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn read_progress(folder: &Path) -> Result<Written, CheckpointError> {
    let path = folder.join(PROGRESS);
    let text =
        fs::read_to_string(&path).map_err(|cause| CheckpointError::Io { path: path.clone(), cause })?;
    let malformed = |cause: String| CheckpointError::Progress { path: path.clone(), cause };
    let text = unseal_text(&text).map_err(|cause| malformed(cause.to_string()))?;
    let written: Written = toml::from_str(text).map_err(|cause| malformed(cause.message().to_owned()))?;
    if written.format != FORMAT {
        return Err(malformed(format!("format {}, this program reads format {FORMAT}", written.format)));
    }
    Ok(written)
}

mod transfer;

pub use transfer::{checkpoint_bytes, parse_checkpoint};

#[cfg(test)]
mod tests;
