//! What happens in a job, numbered without gaps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::job::Job;
use crate::gallery::Time;

/// One thing that happened in a job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent {
    /// Counts from 1.
    pub number: u64,
    pub attempt: u32,
    pub occurred_at: Time,
    pub what: Happening,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    /// The job after a change of its state.
    State(Box<Job>),
    Progress(Progress),
    Evaluated(Evaluation),
    Rankings(Rankings),
    CheckpointSaved(Saved),
    Log(String),
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
