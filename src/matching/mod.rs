//! Identifies the known ship that a sighting shows: gates, evidence, rankings and probabilities on top of a gallery's
//! search.

mod answer;
mod assignment;
mod calibration;
mod doubt;
mod evidence;
#[cfg(test)]
mod fixture;
mod fusion;
mod gate;
mod plan;
mod posterior;
mod query;
mod ranks;
mod reranking;
mod screening;
mod session;
mod sphere;
#[cfg(test)]
mod tests;

pub use answer::{Candidate, MatchError, Matched, check_ranking, match_queries};
pub use assignment::{Alternative, Choice, assign};
pub use calibration::{
    Appearance, Bin, CalibrateError, Calibration, Calibrator, CalibratorError, CalibratorParts, FitSettings,
    FittedData, HeldOut, Judges, Labelled, PairCalibration, PairReport, Reliability, SizeCalibration,
    Skipped, calibrate, check_prior_unknown, reliability, reliability_diagram,
};
pub use doubt::Doubt;
pub use evidence::{Evidence, Kinematics, ModalityPair, Outline, Resemblance, SizeModel, Spread};
pub use gate::{Gate, GateQuery, Leg, Trace, Verdict};
pub use plan::{Least, Plan, Ranking, Sharing};
pub use posterior::{Posterior, Prior, Unjudged, posterior};
pub use query::{Query, QueryError, QueryImage, Tracklet};
pub use ranks::{FusedRank, fuse_ranks};
pub use sphere::great_circle_m;
