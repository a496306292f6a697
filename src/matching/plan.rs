//! The parameters of a match.

use std::sync::Arc;

use super::calibration::Calibrator;
use super::gate::Gate;
use super::query::Query;
use crate::gallery::{About, Filter, Group};
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
    /// Ignored if it is of another model than the gallery's, or of an ensemble.
    pub calibrator: Option<Arc<Calibrator>>,
    /// Above 0 and below 1; `None`: the calibrator's.
    pub prior_unknown: Option<f64>,
    pub least: Least,
}

/// The minimum that a candidate must reach to be returned, and to be assigned to a query. It does not affect the
/// ranking or the probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Least {
    /// From -1 to 1.
    pub similarity: Option<f64>,
    /// From 0 to 1. Needs a calibrator; a candidate without a probability does not reach it.
    pub probability: Option<f64>,
}

impl Least {
    /// Which minimum a candidate does not reach, if any.
    pub fn missed(&self, similarity: f32, probability: Option<f64>) -> Option<Removal> {
        if self.similarity.is_some_and(|least| f64::from(similarity) < least) {
            return Some(Removal::MinSimilarity);
        }
        let least = self.probability?;
        probability.is_none_or(|probability| probability < least).then_some(Removal::MinProbability)
    }
}

/// The criterion that candidates are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranking {
    /// Cosine similarity.
    Cosine,
    /// The ranked lists of an ensemble's members by cosine, fused: the one criterion of galleries whose model is an
    /// ensemble, and of no others.
    ReciprocalRank,
    /// k-reciprocal re-ranking of the best `depth` entries, followed by the others by cosine.
    ///
    /// As in the reference program, the queries of one match are among each other's neighbours, so the ranking of a
    /// query depends on the other queries.
    Reranked { depth: usize },
    /// Posterior probability from appearance, size and kinematics.
    ///
    /// A query of unknown modality is ranked by cosine.
    Fused,
    /// As [`Self::Fused`] for queries whose modality is calibrated with those of all entries that take part, and by
    /// cosine for the others: evidence that leaves out the looks of some candidates would put them last.
    FusedWhereCalibrated,
}

impl Ranking {
    /// The criterion in a gallery where a request names none.
    pub fn unless_named(about: &About, calibrator: Option<&Calibrator>) -> Self {
        match (about.composition, calibrator) {
            (Some(_), _) => Self::ReciprocalRank,
            (None, Some(_)) => Self::FusedWhereCalibrated,
            (None, None) => Self::Cosine,
        }
    }

    /// Whether evidence other than cosine decides, at least for some queries.
    pub fn weighs_evidence(self) -> bool {
        matches!(self, Self::Fused | Self::FusedWhereCalibrated)
    }

    /// Stable and suitable for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::ReciprocalRank => "reciprocal_rank",
            Self::Reranked { .. } => "reranked",
            Self::Fused | Self::FusedWhereCalibrated => "fused",
        }
    }
}

/// Whether queries may show the same vessel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    Independent,
    /// Queries are assigned to distinct vessels jointly, by log-likelihood ratio including the chance of "none of
    /// them", or by cosine if one of the queries is not calibrated. The assigned vessel comes first.
    DistinctVessels,
}
