//! What a match is asked to do.

use std::sync::Arc;

use super::calibration::Calibrator;
use super::gate::Gate;
use super::query::Query;
use crate::gallery::{Filter, Group};
use crate::reason::Removal;

/// One match: queries against the entries of a gallery that a filter admits.
#[derive(Clone, Debug)]
pub struct Plan {
    pub queries: Vec<Query>,
    /// Candidates for each query, at least 1.
    pub top_k: usize,
    pub group: Group,
    pub filter: Filter,
    pub gate: Gate,
    pub ranking: Ranking,
    pub sharing: Sharing,
    /// Of another model than the gallery's it is as good as none.
    pub calibrator: Option<Arc<Calibrator>>,
    /// Above 0 and below 1; `None`: the calibrator's.
    pub prior_unknown: Option<f64>,
    pub least: Least,
}

/// What a candidate must reach to be answered, and to be assigned to a query. The ranking and all probabilities are what
/// they are without.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Least {
    /// From -1 to 1.
    pub similarity: Option<f64>,
    /// From 0 to 1. Needs a calibrator; a candidate without probability does not reach it.
    pub probability: Option<f64>,
}

impl Least {
    /// What a candidate does not reach, if anything.
    pub fn missed(&self, similarity: f32, probability: Option<f64>) -> Option<Removal> {
        if self.similarity.is_some_and(|least| f64::from(similarity) < least) {
            return Some(Removal::MinSimilarity);
        }
        let least = self.probability?;
        probability.is_none_or(|probability| probability < least).then_some(Removal::MinProbability)
    }
}

/// What candidates are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranking {
    /// Cosine similarity.
    Cosine,
    /// k-reciprocal re-ranking of the best `depth` entries; what lies beyond follows by cosine.
    ///
    /// As in the reference program, the queries of one match are among each other's neighbours: a query has another
    /// ranking in other company.
    Reranked { depth: usize },
    /// Posterior probability from appearance, size and kinematics.
    ///
    /// A query whose modality is not known is ranked by cosine.
    Fused,
}

impl Ranking {
    /// Stable and fit for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Reranked { .. } => "reranked",
            Self::Fused => "fused",
        }
    }
}

/// Whether queries may show the same vessel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    Independent,
    /// Queries are assigned to distinct vessels jointly, by log-likelihood ratio with the chance of "none of them", or
    /// by cosine where one query is not calibrated. The assigned vessel comes first.
    DistinctVessels,
}
