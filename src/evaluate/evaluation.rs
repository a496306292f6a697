//! The evaluation of a training after an epoch, as reported, stored with its job and kept with its model.

use serde::{Deserialize, Serialize};

use super::protocol::Summary;

/// The evaluation, in one protocol, of the weights at the end of an epoch.
///
/// Serde's names are those of a model's `provenance.toml`; the tags are those of the job store.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// "all", "o2s", "s2o" or "o2o".
    #[prost(string, tag = "1")]
    pub protocol: String,
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    #[serde(rename = "mAP")]
    #[prost(double, tag = "3")]
    pub mean_average_precision: f64,
    /// Share of counted queries with a hit among the first 1, 5 and 10.
    #[serde(rename = "R1")]
    #[prost(double, tag = "4")]
    pub hit_within_1: f64,
    #[serde(rename = "R5")]
    #[prost(double, tag = "5")]
    pub hit_within_5: f64,
    #[serde(rename = "R10")]
    #[prost(double, tag = "6")]
    pub hit_within_10: f64,
    /// Queries with a match; only these count. At least 1.
    #[prost(uint32, tag = "7")]
    pub queries_with_a_match: u32,
}

impl Evaluation {
    /// `None` if no query counts, because the mean is then undefined.
    pub fn after_epoch(epoch: u32, summary: &Summary) -> Option<Self> {
        (summary.queries_with_a_match > 0).then(|| Self {
            protocol: summary.protocol.to_owned(),
            epoch,
            mean_average_precision: summary.mean_average_precision,
            hit_within_1: summary.hit_within_1,
            hit_within_5: summary.hit_within_5,
            hit_within_10: summary.hit_within_10,
            queries_with_a_match: u32::try_from(summary.queries_with_a_match).unwrap_or(u32::MAX),
        })
    }
}
