//! From a cosine to a probability: log-likelihood ratios by logistic regression, fitted on pairs of known ships and
//! tied to the model that made their embeddings.

mod calibrator;
mod diagram;
mod fit;
mod judged;
mod logistic;
mod reliability;

pub use calibrator::{
    Appearance, Calibrator, CalibratorError, CalibratorParts, FittedData, PairCalibration, SizeCalibration,
    check_prior_unknown,
};
pub use diagram::reliability_diagram;
pub use fit::{CalibrateError, Calibration, FitSettings, HeldOut, Labelled, PairReport, Skipped, calibrate};
pub use judged::Judges;
pub use reliability::{Bin, Reliability, reliability};
