//! What a run reports on its way: where it starts, its progress, what it is worth, what it has saved.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::train::StartingPoint;

/// Tensors that an event lists; the log of the job has all of them.
const UNTAKEN_MAX: usize = 64;

/// What a starting point gave the network.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct Start {
    /// As the configuration names it.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Keys in the file that led to the weights.
    #[prost(string, tag = "2")]
    pub weights: String,
    /// What stood before every name there.
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
}

/// A tensor of a starting point that the network does not take.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct UntakenTensor {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Nothing where it is no tensor that is read.
    #[prost(message, optional, tag = "2")]
    pub found: Option<Shape>,
    /// That of the network's tensor of this name.
    #[prost(message, optional, tag = "3")]
    pub expected: Option<Shape>,
    #[prost(string, tag = "4")]
    pub reason: String,
}

/// Lengths of a tensor's axes; none of a single number.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct Shape {
    #[prost(uint64, repeated, tag = "1")]
    pub lengths: Vec<u64>,
}

impl Start {
    /// `path` is what the configuration says.
    pub fn new(path: &Path, start: &StartingPoint) -> Self {
        let StartingPoint { origin, fit } = start;
        let shape =
            |lengths: &Vec<usize>| Shape { lengths: lengths.iter().map(|length| *length as u64).collect() };
        let untaken = fit.untaken.iter().take(UNTAKEN_MAX).map(|tensor| UntakenTensor {
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
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A step that was taken, and how far that is.
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
    /// By name; "total" is always there.
    #[prost(btree_map = "string, double", tag = "5")]
    pub losses: BTreeMap<String, f64>,
    /// Share of the batch that the classifier gets right.
    #[prost(double, optional, tag = "6")]
    pub accuracy: Option<f64>,
    #[prost(double, tag = "7")]
    pub learning_rate: f64,
    #[prost(double, tag = "8")]
    pub images_per_second: f64,
    /// To the end of the run.
    #[prost(double, tag = "9")]
    pub seconds_left: f64,
    /// From the end of the step before to the end of this one.
    #[prost(double, tag = "10")]
    pub step_seconds: f64,
}

/// What the weights at the end of an epoch are worth in one protocol.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
pub struct Evaluation {
    #[prost(string, tag = "1")]
    pub protocol: String,
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    #[prost(double, tag = "3")]
    pub map: f64,
    /// Share of counted queries with a hit among the first 1, 5 and 10.
    #[prost(double, tag = "4")]
    pub rank1: f64,
    #[prost(double, tag = "5")]
    pub rank5: f64,
    #[prost(double, tag = "6")]
    pub rank10: f64,
    /// Queries with a match, which are those that count.
    #[prost(uint32, tag = "7")]
    pub valid_queries: u32,
}

/// Queries of the test set with what was found for each.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Rankings {
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    /// At most 2 MiB.
    #[prost(bytes = "vec", tag = "2")]
    pub png: Vec<u8>,
}

/// A checkpoint from which the run can go on.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct Saved {
    #[prost(uint64, tag = "1")]
    pub step: u64,
    /// Whether it is worth most of those that are kept.
    #[prost(bool, tag = "2")]
    pub best: bool,
}
