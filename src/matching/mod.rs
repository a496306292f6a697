//! Which known ship a sighting shows: gates, evidence, rankings and probabilities over a gallery's search.

mod assignment;
mod calibration;
mod evidence;
#[cfg(test)]
mod fixture;
mod gate;
mod posterior;
mod sphere;

pub use assignment::{Alternative, Choice, assign};
pub use calibration::{
    Appearance, Bin, CalibrateError, Calibration, Calibrator, CalibratorError, CalibratorParts, FitSettings,
    HeldOut, Labelled, PairCalibration, PairReport, Reliability, SizeCalibration, Skipped, calibrate,
    check_prior_unknown, reliability, reliability_diagram,
};
pub use evidence::{Evidence, Kinematics, ModalityPair, Outline, SizeModel, Spread};
pub use gate::{Asked, Gate, Leg, Reason, Trace, Verdict};
pub use posterior::{Posterior, Prior, Unjudged, posterior};
pub use sphere::great_circle_m;
