//! A calibrator: how to weigh a cosine, sizes and the movement between two sightings as evidence of one ship. Always
//! valid; stored as a TOML file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::evidence::{Evidence, Kinematics, ModalityPair, Resemblance, SizeModel};
use super::super::gate::Leg;
use crate::embedding::ModelDigest;
use crate::message::one_line;

/// Version of the file.
const FORMAT: u32 = 1;
/// The beginning of a file.
const PREAMBLE: &str = "\
# Turns what two images of ships have in common into natural-log likelihood ratios of \"same vessel\" to \"another\":
#   appearance alone:      offset + cosine * COSINE
#   appearance and sizes:  offset + cosine * COSINE + evidence * (log-likelihood ratio of the size model)
# prior_unknown may be changed; so may [kinematics], which is assumed, not fitted, and may be left out.

";

/// Tied to the model whose cosines it was fitted on.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibrator {
    id: String,
    model: ModelDigest,
    prior_unknown: f64,
    fitted_on: String,
    data: Option<FittedData>,
    kinematics: Option<Kinematics>,
    pairs: BTreeMap<ModalityPair, PairCalibration>,
}

/// An unchecked calibrator; the layout of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    id: String,
    model: String,
    prior_unknown: f64,
    fitted_on: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<FittedData>,
    kinematics: Option<Kinematics>,
    pair: BTreeMap<ModalityPair, PairCalibration>,
}

/// The images that a calibrator was fitted on and measured with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FittedData {
    /// Names the set that they are from, as the fingerprint of a training's data names that.
    pub fingerprint: String,
    /// Ships in the fit, and ships held out to measure it.
    pub ships: u64,
    pub ships_held_out: u64,
}

/// For images from two sensors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairCalibration {
    /// Number of pairs of images that it was fitted on, of one vessel and of two.
    pub same_pairs: u64,
    pub other_pairs: u64,
    pub appearance: Appearance,
    pub size: Option<SizeCalibration>,
}

/// offset + cosine * COSINE.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Appearance {
    pub offset: f64,
    /// Above 0.
    pub cosine: f64,
}

/// offset + cosine * COSINE + evidence * (what `model` yields for the sizes), for appearance and sizes together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeCalibration {
    pub offset: f64,
    /// At least 0, as is `evidence`.
    pub cosine: f64,
    pub evidence: f64,
    pub model: SizeModel,
}

/// Why a file is not a calibrator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibratorError {
    #[error("{0}")]
    Syntax(String),
    #[error("format is {0}, this release reads {FORMAT}")]
    Format(u32),
    #[error("{field}: {cause}")]
    Value { field: String, cause: String },
}

impl From<toml::de::Error> for CalibratorError {
    fn from(cause: toml::de::Error) -> Self {
        Self::Syntax(one_line(cause.to_string().trim()))
    }
}

impl CalibratorError {
    fn value(field: impl Into<String>, cause: impl ToString) -> Self {
        Self::Value { field: field.into(), cause: cause.to_string() }
    }
}

/// The parts of a calibrator.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibratorParts {
    /// At most 256 bytes, not empty.
    pub id: String,
    pub model: ModelDigest,
    /// Prior probability that a ship is not in the gallery; above 0, below 1.
    pub prior_unknown: f64,
    /// Free text for people.
    pub fitted_on: String,
    /// `None`: not known.
    pub data: Option<FittedData>,
    pub kinematics: Option<Kinematics>,
    pub pairs: BTreeMap<ModalityPair, PairCalibration>,
}

impl Calibrator {
    /// # Errors
    /// A value is out of bounds, or there is no pair of modalities.
    pub fn new(parts: CalibratorParts) -> Result<Self, CalibratorError> {
        let CalibratorParts { id, model, prior_unknown, fitted_on, data, kinematics, pairs } = parts;
        crate::gallery::check_text(&id).map_err(|cause| CalibratorError::value("id", cause))?;
        if id.is_empty() {
            return Err(CalibratorError::value("id", "is empty"));
        }
        check_prior_unknown(prior_unknown).map_err(|cause| CalibratorError::value("prior_unknown", cause))?;
        if let Some(kinematics) = &kinematics {
            kinematics.check().map_err(|cause| CalibratorError::value("kinematics", cause))?;
        }
        if pairs.is_empty() {
            return Err(CalibratorError::value("pair", "there is none"));
        }
        for (pair, calibration) in &pairs {
            calibration.check(&format!("pair.{}", pair.name()))?;
        }
        Ok(Self { id, model, prior_unknown, fitted_on, data, kinematics, pairs })
    }

    /// Parses the output of [`Self::to_toml`].
    ///
    /// # Errors
    /// The text is not TOML, a key is missing or unknown (with its line), or a value is out of bounds.
    pub fn parse(text: &str) -> Result<Self, CalibratorError> {
        /// The one field that every format has.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = toml::from_str(text)?;
        if format != FORMAT {
            return Err(CalibratorError::Format(format));
        }
        let file: File = toml::from_str(text)?;
        let model = file.model.parse().map_err(|cause| CalibratorError::value("model", cause))?;
        Self::new(CalibratorParts {
            id: file.id,
            model,
            prior_unknown: file.prior_unknown,
            fitted_on: file.fitted_on,
            data: file.data,
            kinematics: file.kinematics,
            pairs: file.pair,
        })
    }

    /// The content of the file.
    pub fn to_toml(&self) -> String {
        let file = File {
            format: FORMAT,
            id: self.id.clone(),
            model: self.model.to_string(),
            prior_unknown: self.prior_unknown,
            fitted_on: self.fitted_on.clone(),
            data: self.data.clone(),
            kinematics: self.kinematics,
            pair: self.pairs.clone(),
        };
        format!("{PREAMBLE}{}", toml::to_string(&file).expect("numbers, texts and tables are TOML"))
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The model that it applies to.
    pub fn model(&self) -> ModelDigest {
        self.model
    }

    pub fn prior_unknown(&self) -> f64 {
        self.prior_unknown
    }

    /// What it was fitted on, where that is known.
    pub fn data(&self) -> Option<&FittedData> {
        self.data.as_ref()
    }

    /// The pairs of modalities that it judges, with what it was fitted on.
    pub fn pairs(&self) -> impl Iterator<Item = (ModalityPair, &PairCalibration)> {
        self.pairs.iter().map(|(pair, calibration)| (*pair, calibration))
    }

    pub fn pair(&self, pair: ModalityPair) -> Option<&PairCalibration> {
        self.pairs.get(&pair)
    }

    /// The evidence for a candidate. `resemblance` is `None` if the query's modality is unknown.
    ///
    /// If the pair of modalities was not calibrated, appearance is not judged; the sizes are judged by measurements on
    /// real chips.
    pub fn evidence(&self, resemblance: Option<Resemblance>, leg: Option<&Leg>) -> Evidence {
        let kinematics = leg.and_then(|leg| self.kinematics(leg));
        let Some(seen) = resemblance else { return Evidence { kinematics, ..Evidence::default() } };
        let Some(calibration) = self.pair(seen.pair) else {
            return Evidence { kinematics, ..Evidence::uncalibrated(resemblance, None) };
        };
        let appearance = calibration.appearance.log_likelihood_ratio(seen.cosine);
        let size = calibration.size.and_then(|size| size.log_likelihood_ratio(seen.cosine, seen.log_ratios));
        Evidence {
            appearance: Some(appearance),
            size: size.map(|together| together - appearance),
            kinematics,
        }
    }

    /// Evidence of the movement between two sightings; `None` if the calibrator leaves that out.
    pub fn kinematics(&self, leg: &Leg) -> Option<f64> {
        self.kinematics.map(|kinematics| kinematics.log_likelihood_ratio(leg))
    }

    /// Whether movement counts as evidence.
    pub fn weighs_kinematics(&self) -> bool {
        self.kinematics.is_some()
    }

    /// Evidence of appearance for a candidate with this cosine; 0 if the pair was not calibrated.
    pub fn appearance(&self, pair: ModalityPair, cosine: f32) -> f64 {
        self.pair(pair).map_or(0.0, |calibration| calibration.appearance.log_likelihood_ratio(cosine))
    }

    /// The largest evidence of appearance and sizes together for a candidate whose cosine is at most `cosine`.
    pub fn resemblance_max(&self, pair: ModalityPair, cosine: f32) -> f64 {
        match self.pair(pair) {
            Some(calibration) => calibration.log_likelihood_ratio_max(cosine),
            None => SizeModel::measured(pair).log_likelihood_ratio_max(),
        }
    }
}

impl PairCalibration {
    fn log_likelihood_ratio_max(&self, cosine: f32) -> f64 {
        let alone = self.appearance.log_likelihood_ratio(cosine);
        self.size.map_or(alone, |size| {
            let together = size.given(cosine) + size.evidence * size.model.log_likelihood_ratio_max();
            together.max(alone)
        })
    }

    fn check(&self, field: &str) -> Result<(), CalibratorError> {
        let error = |what: &str, cause: &str| CalibratorError::value(format!("{field}.{what}"), cause);
        let Appearance { offset, cosine } = self.appearance;
        if !(offset.is_finite() && cosine.is_finite() && cosine > 0.0) {
            return Err(error("appearance", "offset must be a number, cosine above 0"));
        }
        let Some(SizeCalibration { offset, cosine, evidence, model }) = self.size else { return Ok(()) };
        if ![offset, cosine, evidence].iter().all(|value| value.is_finite()) || cosine < 0.0 || evidence < 0.0
        {
            return Err(error("size", "offset must be a number, cosine and evidence at least 0"));
        }
        model.check().map_err(|cause| error("size.model", cause))
    }
}

impl Appearance {
    pub fn log_likelihood_ratio(&self, cosine: f32) -> f64 {
        self.offset + self.cosine * f64::from(cosine)
    }
}

impl SizeCalibration {
    /// Of appearance and sizes together; `None` if no size is known on both sides.
    pub fn log_likelihood_ratio(&self, cosine: f32, log_ratios: [Option<f64>; 2]) -> Option<f64> {
        Some(self.given(cosine) + self.evidence * self.model.log_likelihood_ratio(log_ratios)?)
    }

    fn given(&self, cosine: f32) -> f64 {
        self.offset + self.cosine * f64::from(cosine)
    }
}

/// # Errors
/// The prior is not above 0 and below 1.
pub fn check_prior_unknown(prior: f64) -> Result<(), &'static str> {
    if prior > 0.0 && prior < 1.0 { Ok(()) } else { Err("must be above 0 and below 1") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> CalibratorParts {
        let pair = ModalityPair::OpticalSar;
        let calibration = PairCalibration {
            same_pairs: 88,
            other_pairs: 5906,
            appearance: Appearance { offset: -12.5, cosine: 20.1 },
            size: Some(SizeCalibration {
                offset: -9.0,
                cosine: 14.0,
                evidence: 0.8,
                model: SizeModel::measured(pair),
            }),
        };
        CalibratorParts {
            id: "hoss-1".into(),
            model: ModelDigest::new([7; 32]),
            prior_unknown: 0.5,
            fitted_on: "two folders".into(),
            data: Some(FittedData { fingerprint: "sha256:12".into(), ships: 36, ships_held_out: 16 }),
            kinematics: Some(Kinematics::default()),
            pairs: [(pair, calibration)].into(),
        }
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let calibrator = Calibrator::new(parts()).expect("a calibrator");
        let text = calibrator.to_toml();
        assert_eq!(Calibrator::parse(&text), Ok(calibrator), "{text}");
        let without = CalibratorParts { data: None, kinematics: None, ..parts() };
        let calibrator = Calibrator::new(without).expect("a calibrator");
        assert_eq!(Calibrator::parse(&calibrator.to_toml()), Ok(calibrator));
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        let text = Calibrator::new(parts()).expect("a calibrator").to_toml();
        for (from, to, expected) in [
            ("format = 1", "format = 2", "format is 2, this release reads 1"),
            ("prior_unknown = 0.5", "prior_unknown = 1.0", "prior_unknown: must be above 0 and below 1"),
            ("prior_unknown = 0.5", "prior_unknown = nan", "prior_unknown: must be above 0 and below 1"),
            ("id = \"hoss-1\"", "id = \"\"", "id: is empty"),
            ("model = \"0707", "model = \"zz07", "model: a model digest is 64 hexadecimal digits"),
            ("cosine = 20.1", "cosine = -20.1", "pair.optical-sar.appearance: offset must be"),
            (
                "evidence = 0.8",
                "evidence = -0.8",
                "pair.optical-sar.size: offset must be a number, cosine and",
            ),
            ("correlation = 0.87", "correlation = 1.87", "pair.optical-sar.size.model: a correlation must"),
            ("spread_km = 500.0", "spread_km = 0.0", "kinematics: speed_knots and spread_km must be above 0"),
            ("[pair.optical-sar]", "[pair.optical-radar]", "unknown variant `optical-radar`"),
            ("evidence = 0.8", "evidens = 0.8", "unknown field `evidens`"),
            ("cosine = 14.0\n", "", "missing field `cosine`"),
            ("ships = 36", "ships = -36", "invalid value"),
        ] {
            let broken = text.replacen(from, to, 1);
            assert_ne!(broken, text, "{from}");
            let found = Calibrator::parse(&broken).expect_err(to).to_string();
            assert!(found.contains(expected), "{found}");
        }
        let line =
            Calibrator::parse(&text.replacen("cosine = 14.0", "cosine = yes", 1)).expect_err("no number");
        assert!(line.to_string().contains("line "), "{line}");
    }

    fn evidence(pair: ModalityPair, cosine: f32, log_ratios: [Option<f64>; 2]) -> Evidence {
        let calibrator = Calibrator::new(parts()).expect("a calibrator");
        calibrator.evidence(Some(Resemblance { pair, cosine, log_ratios }), None)
    }

    #[test]
    fn size_is_what_it_adds_to_appearance() {
        let ratios = [Some(0.03), Some(0.1)];
        let both = evidence(ModalityPair::OpticalSar, 0.7, ratios);
        let alone = evidence(ModalityPair::OpticalSar, 0.7, [None, None]);
        assert!((alone.total() - (-12.5 + 20.1 * 0.7)).abs() < 1e-6);
        assert_eq!((alone.appearance, alone.size), (both.appearance, None));
        let sizes =
            SizeModel::measured(ModalityPair::OpticalSar).log_likelihood_ratio(ratios).expect("known");
        assert!((both.total() - (-9.0 + 14.0 * 0.7 + 0.8 * sizes)).abs() < 1e-6);
        let terms: Vec<_> = both.terms().map(|(term, _)| term).collect();
        assert_eq!(terms, ["appearance", "size"]);
    }

    #[test]
    fn no_candidate_exceeds_the_bound_of_its_cosine() {
        let calibrator = Calibrator::new(parts()).expect("a calibrator");
        for pair in [ModalityPair::OpticalSar, ModalityPair::SarSar] {
            for cosine in [-1.0, 0.0, 0.3, 0.9] {
                let bound = calibrator.resemblance_max(pair, cosine);
                for ratio in [-0.4, -0.1, 0.0, 0.03, 0.1, 0.5] {
                    for ratios in [[None, None], [Some(ratio), None], [Some(ratio), Some(ratio * 2.0)]] {
                        assert!(evidence(pair, cosine, ratios).total() <= bound + 1e-9);
                        assert!(evidence(pair, cosine - 0.1, ratios).total() <= bound + 1e-9);
                    }
                }
            }
        }
    }

    #[test]
    fn a_pair_without_calibration_leaves_appearance_unjudged() {
        let found = evidence(ModalityPair::SarSar, 0.9, [Some(0.0), Some(0.0)]);
        assert_eq!(found.appearance, None);
        assert!(found.size.expect("known") > 0.0);
    }
}
