//! What a run reports: its start, progress, evaluations, rankings, checkpoints and log lines.
//!
//! These types are JSON between a training process and its server and protobuf in the job store, so field names are
//! part of the former and tags of the latter.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::evaluate::Evaluation;
use crate::train::StartingPoint;

/// Maximum number of tensors that an event lists; the log of the job has all of them.
const LISTED_MAX: usize = 64;

/// One report of a run. Tags are those of the stored event that it becomes.
#[derive(Clone, PartialEq, prost::Oneof, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunEvent {
    /// The starting point of the run, before its first step; absent if it starts from scratch.
    #[prost(message, tag = "9")]
    Started(Start),
    #[prost(message, tag = "4")]
    Progress(Progress),
    #[prost(message, tag = "5")]
    Evaluated(Evaluation),
    #[prost(message, tag = "8")]
    Rankings(Rankings),
    #[prost(message, tag = "6")]
    Saved(SavedCheckpoint),
    /// The checkpoint that the model is made of, after the last step.
    #[prost(message, tag = "10")]
    Delivered(DeliveredCheckpoint),
    /// A line for people, which is also written to the job's log file.
    #[prost(string, tag = "7")]
    Log(String),
}

impl RunEvent {
    /// The steps of the checkpoint that was saved, if it is that.
    pub fn saved_steps(&self) -> Option<u64> {
        match self {
            Self::Saved(saved) => Some(saved.step),
            _ => None,
        }
    }
}

/// What the network took from a starting point.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct Start {
    /// As the configuration names it.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Keys in the file that lead to the weights.
    #[prost(string, tag = "2")]
    pub weights: String,
    /// The prefix of every name there.
    #[prost(string, tag = "3")]
    pub prefix: String,
    #[prost(uint32, tag = "4")]
    pub tensors_taken: u32,
    /// Tensors of the network that stay as they were.
    #[prost(uint32, tag = "5")]
    pub tensors_kept: u32,
    /// Blocks of the network of which every tensor was taken.
    #[prost(uint32, tag = "6")]
    pub blocks_taken: u32,
    #[prost(uint32, tag = "7")]
    pub blocks_total: u32,
    /// The first of the file's tensors that were not taken.
    #[prost(message, repeated, tag = "8")]
    pub untaken: Vec<UntakenTensor>,
    #[prost(uint32, tag = "9")]
    pub untaken_total: u32,
    #[prost(string, tag = "10")]
    pub warning: String,
    /// The first of the network's tensors that stay as they were. Absent in reports of earlier releases.
    #[serde(default)]
    #[prost(string, repeated, tag = "11")]
    pub kept: Vec<String>,
}

/// A tensor of a starting point that the network did not take.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct UntakenTensor {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Absent if it is not a tensor that can be read.
    #[prost(message, optional, tag = "2")]
    pub found: Option<TensorShape>,
    /// The shape of the network's tensor of this name.
    #[prost(message, optional, tag = "3")]
    pub expected: Option<TensorShape>,
    #[prost(string, tag = "4")]
    pub reason: String,
}

/// Lengths of a tensor's axes; empty for a scalar.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct TensorShape {
    #[prost(uint64, repeated, tag = "1")]
    pub lengths: Vec<u64>,
}

impl Start {
    /// `path` is the path in the configuration.
    pub fn new(path: &Path, start: &StartingPoint) -> Self {
        let StartingPoint { origin, fit } = start;
        let shape = |lengths: &Vec<usize>| TensorShape {
            lengths: lengths.iter().map(|length| *length as u64).collect(),
        };
        let untaken = fit.untaken.iter().take(LISTED_MAX).map(|tensor| UntakenTensor {
            name: tensor.shown_name(),
            found: tensor.found.as_ref().map(shape),
            expected: tensor.expected.as_ref().map(shape),
            reason: tensor.reason.to_string(),
        });
        Self {
            path: path.display().to_string(),
            weights: origin.wrapper.clone(),
            prefix: origin.naming.shown_prefix(),
            tensors_taken: count(fit.loaded.len()),
            tensors_kept: count(fit.kept.len()),
            blocks_taken: count(fit.blocks.whole),
            blocks_total: count(fit.blocks.of),
            untaken: untaken.collect(),
            untaken_total: count(fit.untaken.len()),
            warning: start.warning().unwrap_or_default(),
            kept: fit.kept.iter().take(LISTED_MAX).cloned().collect(),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The checkpoint whose weights the model has.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
pub struct DeliveredCheckpoint {
    /// The epoch after which it was saved.
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    #[prost(uint64, tag = "2")]
    pub step: u64,
    /// If it was chosen as the best by validation: its evaluation, by whose mAP. Absent if it is the last one.
    #[prost(message, optional, tag = "3")]
    pub best_by: Option<Evaluation>,
}

/// A completed step, and the progress of the run.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
pub struct Progress {
    #[prost(uint64, tag = "1")]
    pub step: u64,
    #[prost(uint64, tag = "2")]
    pub steps_total: u64,
    #[prost(uint32, tag = "3")]
    pub epoch: u32,
    #[prost(uint32, tag = "4")]
    pub epochs_total: u32,
    /// By name; "total" is always present.
    #[prost(btree_map = "string, double", tag = "5")]
    pub losses: BTreeMap<String, f64>,
    /// Share of the batch that the classifier gets right.
    #[prost(double, optional, tag = "6")]
    pub accuracy: Option<f64>,
    #[prost(double, tag = "7")]
    pub learning_rate: f64,
    /// Of all processes together.
    #[prost(double, tag = "8")]
    pub images_per_second: f64,
    /// To the end of the run.
    #[prost(double, tag = "9")]
    pub seconds_left: f64,
    /// From the end of the step before to the end of this one.
    #[prost(double, tag = "10")]
    pub step_seconds: f64,
    /// Processes that took the step. Absent, as the next one, in reports of earlier releases.
    #[serde(default)]
    #[prost(uint32, tag = "11")]
    pub processes: u32,
    /// The part of the step in which the reporting process averaged gradients with the others.
    #[serde(default)]
    #[prost(double, tag = "12")]
    pub all_reduce_seconds: f64,
}

/// Queries of the test set with the results found for each.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct Rankings {
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    /// At most 2 MiB. Not part of the process's line, which is short: the server reads it from the job's folder.
    #[serde(skip)]
    #[prost(bytes = "vec", tag = "2")]
    pub png: Vec<u8>,
}

/// A checkpoint from which the run can resume.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct SavedCheckpoint {
    #[prost(uint64, tag = "1")]
    pub step: u64,
    /// Whether it is the best of those that are kept.
    #[prost(bool, tag = "2")]
    pub best: bool,
}
