//! Fits the calibrator of a run's model, on ships from which the run has not learned.

use std::collections::BTreeSet;
use std::fmt;

use super::fingerprint::fingerprint_of;
use super::fit_error::FitError;
use super::learn::Learner;
use super::validation::Validation;
use crate::embedding::ModelDigest;
use crate::matching::{
    CalibrateError, Calibration, FitSettings, HeldOut, Labelled, PairReport, Reliability, calibrate,
};

/// Digits of a model's digest in the id of its calibrator.
const ID_DIGITS: usize = 12;

/// Why a run's model has no calibrator.
#[derive(Debug, thiserror::Error)]
pub enum Uncalibrated {
    #[error("the run has learned from pairs of images, not from ships")]
    Pairs,
    #[error(
        "there are no ships from which the run has not learned: no test set, and none held out for validation"
    )]
    NothingHeldOut,
    #[error("the run has learned from every ship of its test set")]
    NothingNew,
    #[error(transparent)]
    Unreadable(#[from] std::io::Error),
    #[error(transparent)]
    Embedding(#[from] FitError),
    #[error(transparent)]
    Fit(#[from] CalibrateError),
}

/// The calibrator of a run's model and its quality, or why there is none, in lines for display.
#[derive(Clone, Copy, Debug)]
pub struct CalibrationReport<'c>(pub &'c Result<Calibration, Uncalibrated>);

/// What is calibrated, and on which images.
#[derive(Clone, Copy, Debug)]
pub struct HeldOutShips<'a> {
    pub model: ModelDigest,
    pub validation: &'a Validation,
    /// Identities from which the run has learned.
    pub learned: &'a BTreeSet<i64>,
    /// Threads that read images.
    pub loaders: usize,
}

impl HeldOutShips<'_> {
    /// Embeds the ships with a learner that has the model's weights, and fits on most of them; the rest measures the fit.
    ///
    /// # Errors
    /// There are too few ships, or an image cannot be read or embedded.
    pub fn calibrate(self, learner: &mut impl Learner) -> Result<Calibration, Uncalibrated> {
        let new = self.validation.without(self.learned);
        if new.is_empty() {
            return Err(Uncalibrated::NothingNew);
        }
        let images: Vec<Labelled> = new.labelled(learner, self.loaders)?;
        let mut id = self.model.to_string();
        id.truncate(ID_DIGITS);
        let settings = FitSettings {
            id: format!("model-{id}"),
            model: self.model,
            fitted_on: "the ships on which its training was validated".into(),
            // Of the whole set, by which it is recognised.
            data_fingerprint: fingerprint_of(self.validation.images())?,
            prior_unknown: FitSettings::PRIOR_UNKNOWN,
            kinematics: None,
            held_out: FitSettings::HELD_OUT,
            seed: FitSettings::SEED,
        };
        Ok(calibrate(&images, &settings)?)
    }
}

impl CalibrationReport<'_> {
    /// At least one line.
    pub fn lines(self) -> Vec<String> {
        match self.0 {
            Err(cause) => vec![format!("no calibrator: {cause}")],
            Ok(Calibration { calibrator, pairs }) => {
                let ships = calibrator.data().map_or((0, 0), |data| (data.ships, data.ships_held_out));
                let first = format!(
                    "calibrator {}: fitted on {} ships that were not trained on, measured on {} others",
                    calibrator.id(),
                    ships.0,
                    ships.1
                );
                [first].into_iter().chain(pairs.iter().map(|pair| ReportedPair(pair).to_string())).collect()
            }
        }
    }
}

struct ReportedPair<'p>(&'p PairReport);

impl fmt::Display for ReportedPair<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PairReport { pair, same_pairs, other_pairs, skipped, size_skipped, held_out } = self.0;
        if let Some(cause) = skipped {
            return write!(f, "{pair}: not calibrated, {cause}");
        }
        write!(f, "{pair}: {same_pairs} pairs of one vessel and {other_pairs} of two")?;
        if let Some(HeldOut { appearance, with_size }) = held_out {
            let Reliability { log_loss, log_loss_of_prior, .. } = appearance;
            write!(f, "; log-loss {log_loss:.4} by looks")?;
            if let Some(Reliability { log_loss, .. }) = with_size {
                write!(f, ", {log_loss:.4} with sizes")?;
            }
            write!(f, ", {log_loss_of_prior:.4} without evidence")?;
        }
        size_skipped.as_ref().map_or(Ok(()), |cause| write!(f, "; sizes are not used: {cause}"))
    }
}

#[cfg(test)]
mod tests;
