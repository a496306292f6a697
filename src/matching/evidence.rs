//! Evidence for and against a candidate other than its appearance: its size, and the movement that it implies.
//!
//! Every piece of evidence is a natural logarithm of a likelihood ratio: how much more likely the observation is for
//! the same vessel than for another one. Pieces add up.

use serde::{Deserialize, Serialize};

use super::gate::{KNOT_M_S, Leg};
use crate::chip::Modality;

/// Share of sizes and positions that are plain wrong. It bounds how much one wrong number can count against a
/// candidate: ln 0.01 = -4.6.
const WRONG: f64 = 0.01;
/// Standard deviation of a position that claims to be exact, and of a moored ship's.
const POSITION_FLOOR_M: f64 = 100.0;
/// ln(sqrt(2 pi)).
const LN_ROOT_TAU: f64 = 0.918_938_533_204_672_8;

/// The sensors of two images, in either order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModalityPair {
    OpticalOptical,
    OpticalSar,
    SarSar,
}

impl ModalityPair {
    pub const EVERY: [Self; 3] = [Self::OpticalOptical, Self::OpticalSar, Self::SarSar];

    pub fn of(a: Modality, b: Modality) -> Self {
        match (a, b) {
            (Modality::Optical, Modality::Optical) => Self::OpticalOptical,
            (Modality::Sar, Modality::Sar) => Self::SarSar,
            (Modality::Optical, Modality::Sar) | (Modality::Sar, Modality::Optical) => Self::OpticalSar,
        }
    }

    /// As in calibrator files.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpticalOptical => "optical-optical",
            Self::OpticalSar => "optical-sar",
            Self::SarSar => "sar-sar",
        }
    }
}

/// A ship's length and width in one image, as far as known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outline {
    pub modality: Modality,
    /// Above 0, as is the width.
    pub length_m: Option<f64>,
    pub width_m: Option<f64>,
}

impl Outline {
    /// ln of the ratio of lengths and of widths that both sides know; SAR over optical if the sensors differ.
    pub fn log_ratios(&self, other: &Self) -> [Option<f64>; 2] {
        let ratio = |a: Option<f64>, b: Option<f64>| match (a?.ln() - b?.ln(), self.modality, other.modality)
        {
            (ratio, Modality::Optical, Modality::Sar) => Some(-ratio),
            (ratio, _, _) => Some(ratio),
        };
        [ratio(self.length_m, other.length_m), ratio(self.width_m, other.width_m)]
    }
}

/// How far log ratios of lengths and of widths, in this order, lie from the mean difference of the sensors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Standard deviations, above 0.
    pub deviation: [f64; 2],
    /// Above -1, below 1.
    pub correlation: f64,
}

impl Spread {
    /// ln of the normal density of both ratios, or of the one that is known.
    fn log_density(&self, ratios: [Option<f64>; 2]) -> Option<f64> {
        let [length, width] = [0, 1].map(|n| ratios[n].map(|ratio| ratio / self.deviation[n]));
        let [log_length, log_width] = self.deviation.map(|deviation| deviation.ln() + LN_ROOT_TAU);
        Some(match (length, width) {
            (None, None) => return None,
            (Some(length), None) => -length * length / 2.0 - log_length,
            (None, Some(width)) => -width * width / 2.0 - log_width,
            (Some(length), Some(width)) => {
                let left = 1.0 - self.correlation * self.correlation;
                let square = length * length - 2.0 * self.correlation * length * width + width * width;
                -square / left / 2.0 - left.ln() / 2.0 - log_length - log_width
            }
        })
    }

    /// The covariance matrix: of lengths, of both, of widths.
    fn covariance(&self) -> [f64; 3] {
        let [length, width] = self.deviation;
        [length * length, self.correlation * length * width, width * width]
    }

    fn check(&self) -> Result<(), &'static str> {
        if !self.deviation.iter().all(|deviation| deviation.is_finite() && *deviation > 0.0) {
            return Err("a deviation must be above 0");
        }
        if !(self.correlation > -1.0 && self.correlation < 1.0) {
            return Err("a correlation must be above -1 and below 1");
        }
        Ok(())
    }
}

/// Sizes of one ship in two images against sizes of two ships.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeModel {
    /// Mean log ratios: the difference of the sensors, SAR over optical.
    pub bias: [f64; 2],
    pub same: Spread,
    pub other: Spread,
}

impl SizeModel {
    /// Measured on 165 real chips. Two images of one ship differ as in `evaluate`; those of two ships by a factor of
    /// e^0.5, in length and width together. No ship appears twice in SAR: the deviations of that pair follow from the
    /// other two, assuming independent errors.
    pub const fn measured(pair: ModalityPair) -> Self {
        let (bias, deviation, correlation) = match pair {
            ModalityPair::OpticalOptical => ([0.0, 0.0], [0.052, 0.100], 0.2),
            ModalityPair::OpticalSar => ([0.032, 0.101], [0.073, 0.168], 0.4),
            ModalityPair::SarSar => ([0.0, 0.0], [0.089, 0.215], 0.4),
        };
        Self {
            bias,
            same: Spread { deviation, correlation },
            other: Spread { deviation: [0.5, 0.5], correlation: 0.87 },
        }
    }

    /// The evidence of length and width, or of the one that is known; `None` if neither is.
    pub fn log_likelihood_ratio(&self, log_ratios: [Option<f64>; 2]) -> Option<f64> {
        let off = [0, 1].map(|n| log_ratios[n].map(|ratio| ratio - self.bias[n]));
        Some(with_errors(self.same.log_density(off)? - self.other.log_density(off)?))
    }

    /// The largest evidence of sizes for a candidate, which they reach where they agree.
    pub fn log_likelihood_ratio_max(&self) -> f64 {
        let [length, width] = self.bias.map(Some);
        [[length, width], [length, None], [None, width]]
            .into_iter()
            .filter_map(|agreeing| self.log_likelihood_ratio(agreeing))
            .fold(f64::NEG_INFINITY, f64::max)
    }

    /// # Errors
    /// The numbers do not describe a distribution, or one ship's sizes do not agree better than two ships' in every
    /// direction: a size that is far off could then count in favour of a candidate.
    pub fn check(&self) -> Result<(), &'static str> {
        self.same.check().and(self.other.check())?;
        if !self.bias.iter().all(|bias| bias.is_finite()) {
            return Err("a bias must be a number");
        }
        let (same, other) = (self.same.covariance(), self.other.covariance());
        let [length, both, width] = [0, 1, 2].map(|n| other[n] - same[n]);
        if length > 0.0 && width > 0.0 && length * width > both * both {
            Ok(())
        } else {
            Err("sizes of one ship must differ less than those of two")
        }
    }
}

/// Ships move at random from where they were seen; other ships are spread around the position of the query.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kinematics {
    /// Standard deviation, north and east, of the distance made good in an hour, in nautical miles.
    pub speed_knots: f64,
    /// Standard deviation, north and east, of the positions of other ships.
    pub spread_km: f64,
}

impl Default for Kinematics {
    /// Assumed, not fitted: merchant ships make 10 to 15 knots on a straight course and little in a day at anchor; a
    /// gallery covers a sea.
    fn default() -> Self {
        Self { speed_knots: 8.0, spread_km: 500.0 }
    }
}

impl Kinematics {
    /// The evidence of the movement between two sightings: strong for a ship that is where it was an hour ago, and zero
    /// once it could be anywhere.
    ///
    /// The density of the distance is that of a plane, which overstates distances of a quarter of the globe and more;
    /// there the evidence is at its floor either way.
    pub fn log_likelihood_ratio(&self, leg: &Leg) -> f64 {
        let drift_m = self.speed_knots * KNOT_M_S * leg.seconds();
        let same_m = leg.sigma_m().hypot(POSITION_FLOOR_M).hypot(drift_m);
        let other_m = same_m.hypot(self.spread_km * 1e3);
        let square = |sigma_m: f64| (leg.distance_m() / sigma_m).powi(2);
        with_errors(2.0 * (other_m / same_m).ln() + (square(other_m) - square(same_m)) / 2.0)
    }

    /// # Errors
    /// A number is not above 0.
    pub fn check(&self) -> Result<(), &'static str> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if positive(self.speed_knots) && positive(self.spread_km) {
            Ok(())
        } else {
            Err("speed_knots and spread_km must be above 0")
        }
    }
}

/// The value of a log-likelihood ratio if a share of the measurements is wrong and carries no information.
fn with_errors(log_ratio: f64) -> f64 {
    // ln((1 - w) e^x + w), arranged so that neither exponential overflows.
    let (right, wrong) = (log_ratio + (1.0 - WRONG).ln(), WRONG.ln());
    right.max(wrong) + (-(right - wrong).abs()).exp().ln_1p()
}

/// How two images resemble each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resemblance {
    pub pair: ModalityPair,
    pub cosine: f32,
    /// As computed by [`Outline::log_ratios`].
    pub log_ratios: [Option<f64>; 2],
}

/// The evidence for or against one candidate; `None` where nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Only with a calibrator.
    pub appearance: Option<f64>,
    /// With a calibrator: what size adds to appearance, which already reflects some of it.
    pub size: Option<f64>,
    pub kinematics: Option<f64>,
}

impl Evidence {
    /// The evidence without a calibrator: none of appearance; the rest by measurements on real chips or assumptions.
    /// `resemblance` is `None` if the query's modality is unknown.
    pub fn uncalibrated(resemblance: Option<Resemblance>, leg: Option<&Leg>) -> Self {
        let size = |seen: Resemblance| SizeModel::measured(seen.pair).log_likelihood_ratio(seen.log_ratios);
        Self {
            appearance: None,
            size: resemblance.and_then(size),
            kinematics: leg.map(|leg| Kinematics::default().log_likelihood_ratio(leg)),
        }
    }

    /// Names as in the contract, and log-likelihood ratios.
    pub fn terms(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let terms = [("appearance", self.appearance), ("size", self.size), ("kinematics", self.kinematics)];
        terms.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    /// The log-likelihood ratio of all known evidence; 0 if there is none.
    pub fn total(&self) -> f64 {
        self.terms().map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gallery::{Position, Time};

    fn outline(modality: Modality, length_m: f64, width_m: f64) -> Outline {
        Outline { modality, length_m: Some(length_m), width_m: Some(width_m) }
    }

    #[test]
    fn ratios_are_those_of_sar_over_optical_whoever_asks() {
        let (optical, sar) = (outline(Modality::Optical, 100.0, 20.0), outline(Modality::Sar, 110.0, 22.0));
        let expected = 1.1_f64.ln();
        for ratios in [optical.log_ratios(&sar), sar.log_ratios(&optical)] {
            for ratio in ratios {
                assert!((ratio.expect("known") - expected).abs() < 1e-12);
            }
        }
        let short = Outline { length_m: None, ..optical };
        assert_eq!(short.log_ratios(&sar)[0], None);
    }

    #[test]
    fn densities_are_those_of_the_normal_distribution() {
        let spread = Spread { deviation: [2.0, 0.5], correlation: 0.6 };
        // By the formulas for one and two dimensions, at (1, -0.25).
        let one = -(0.5_f64 * 0.5) / 2.0 - (2.0 * (2.0 * std::f64::consts::PI).sqrt()).ln();
        assert!((spread.log_density([Some(1.0), None]).expect("known") - one).abs() < 1e-12);
        let square = (0.25 + 0.25 + 2.0 * 0.6 * 0.25) / 0.64;
        let two = -square / 2.0 - (2.0 * std::f64::consts::PI * 2.0 * 0.5 * 0.8).ln();
        assert!((spread.log_density([Some(1.0), Some(-0.25)]).expect("known") - two).abs() < 1e-12);
        assert_eq!(spread.log_density([None, None]), None);
    }

    #[test]
    fn sizes_that_agree_speak_for_a_candidate_and_others_against() {
        for pair in ModalityPair::EVERY {
            let model = SizeModel::measured(pair);
            assert_eq!(model.check(), Ok(()));
            let ratio = |length: f64, width: f64| {
                model.log_likelihood_ratio([Some(length), Some(width)]).expect("known")
            };
            assert!(ratio(0.03, 0.05) > 0.5, "{pair:?}");
            assert!(ratio(0.6, 0.6) < -3.0, "{pair:?}");
            assert!(ratio(9.0, -9.0) >= WRONG.ln(), "one wrong number is not the end");
            assert_eq!(model.log_likelihood_ratio([None, None]), None);
        }
    }

    #[test]
    fn a_ship_that_stayed_is_likely_the_same_until_it_could_be_anywhere() {
        let at = |hours: i64, north: f64| {
            let place = Position::new(50.0 + north, 0.0, 0.0).expect("a place");
            (Time::from_nanos(hours * 3_600_000_000_000), place)
        };
        let ratio = |hours: i64, north: f64| {
            Kinematics::default().log_likelihood_ratio(&Leg::between(at(0, 0.0), at(hours, north)))
        };
        assert!(ratio(1, 0.0) > 5.0 && ratio(1, 0.0) > ratio(24, 0.0) && ratio(24, 0.0) > ratio(720, 0.0));
        assert!(ratio(24 * 365, 0.0).abs() < 0.05);
        assert!((ratio(1, 5.0) - WRONG.ln()).abs() < 1e-6, "300 miles in an hour");
        assert!(ratio(0, 0.0).is_finite() && ratio(0, 30.0).is_finite());
    }

    #[test]
    fn models_that_reward_disagreement_are_refused() {
        let model = SizeModel::measured(ModalityPair::OpticalSar);
        for wrong in [
            SizeModel { same: model.other, other: model.same, ..model },
            SizeModel { other: Spread { deviation: [0.5, 0.1], ..model.other }, ..model },
            SizeModel { same: Spread { correlation: 1.0, ..model.same }, ..model },
            SizeModel { same: Spread { deviation: [0.0, 0.1], ..model.same }, ..model },
            SizeModel { bias: [f64::NAN, 0.0], ..model },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
        assert!(Kinematics { speed_knots: 0.0, spread_km: 1.0 }.check().is_err());
    }

    proptest! {
        #[test]
        fn size_evidence_never_exceeds_its_bound(length in -3.0..3.0_f64, width in -3.0..3.0_f64, known in 1..4u8) {
            for pair in ModalityPair::EVERY {
                let model = SizeModel::measured(pair);
                let ratios = [(known & 1 > 0).then_some(length), (known & 2 > 0).then_some(width)];
                let found = model.log_likelihood_ratio(ratios).expect("known");
                prop_assert!(found <= model.log_likelihood_ratio_max() + 1e-12);
                prop_assert!(found >= WRONG.ln());
            }
        }

        #[test]
        fn kinematic_evidence_is_finite(
            times in (any::<i64>(), any::<i64>()),
            north in -90.0..=90.0_f64,
            sigma in prop_oneof![Just(0.0), 0.0..1e6_f64, Just(f64::MAX)],
        ) {
            let place = |north: f64| Position::new(north, 0.0, sigma).expect("a place");
            let (from, to) = (Time::from_nanos(times.0), Time::from_nanos(times.1));
            let leg = Leg::between((from, place(0.0)), (to, place(north)));
            let found = Kinematics::default().log_likelihood_ratio(&leg);
            prop_assert!(found.is_finite() && found >= WRONG.ln() - 1e-12, "{found}");
        }
    }
}
