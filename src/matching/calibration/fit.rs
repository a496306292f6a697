//! Fits a calibrator on pairs of images of known ships, and measures it on ships held out from the fit.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::super::evidence::{Kinematics, ModalityPair, Outline, SizeModel, Spread};
use super::calibrator::{
    Appearance, Calibrator, CalibratorError, CalibratorParts, FittedData, PairCalibration, SizeCalibration,
};
use super::logistic;
use super::reliability::{Reliability, reliability};
use crate::embedding::{Embedding, ModelDigest};

/// Minimum number of pairs of one vessel for a fit.
const SAME_PAIRS_MIN: usize = 20;
/// Maximum number of pairs of two vessels; of more, a random subset is used.
const OTHER_PAIRS_MAX: f64 = 2e6;
/// Sizes that agree to better than a thousandth do so by accident.
const DEVIATION_MIN: f64 = 1e-3;

/// An image of a known ship.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// `None`: a ship of its own, such as a distractor.
    pub identity: Option<i64>,
    pub embedding: Embedding,
    pub outline: Outline,
}

/// How to fit, and what the calibrator states about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct FitSettings {
    pub id: String,
    /// The model that made the embeddings.
    pub model: ModelDigest,
    pub fitted_on: String,
    /// Names the set of images; empty: it has no name.
    pub data_fingerprint: String,
    pub prior_unknown: f64,
    /// Not fitted. `None` leaves movement out of the evidence.
    pub kinematics: Option<Kinematics>,
    /// Share of the identities that are held out, above 0 and below 1.
    pub held_out: f64,
    /// Seed for the choice of those identities.
    pub seed: u64,
}

impl FitSettings {
    /// What is held out, assumed and drawn where nobody says otherwise.
    pub const HELD_OUT: f64 = 0.3;
    pub const PRIOR_UNKNOWN: f64 = 0.2;
    pub const SEED: u64 = 1;
}

/// A calibrator and its quality.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    pub calibrator: Calibrator,
    /// One for each pair of modalities.
    pub pairs: Vec<PairReport>,
}

/// The result for one pair of modalities.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairReport {
    pub pair: &'static str,
    /// Number of pairs of images in the fit, of one vessel and of two.
    pub same_pairs: usize,
    pub other_pairs: usize,
    /// Why there is no calibration; the calibrator then does not judge the appearance of such pairs.
    pub skipped: Option<Skipped>,
    /// Why sizes are not used.
    pub size_skipped: Option<Skipped>,
    /// `None` if the ships held out lack pairs of one kind.
    pub held_out: Option<HeldOut>,
}

/// Measured on ships held out from the fit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldOut {
    pub appearance: Reliability,
    /// With sizes; `None` if they are not used.
    pub with_size: Option<Reliability>,
}

/// Why something was not fitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Skipped {
    #[error("{same} pairs of one vessel and {other} of two; {SAME_PAIRS_MIN} of each are needed")]
    TooFew { same: usize, other: usize },
    #[error("images of one vessel are not more alike than those of two")]
    Uninformative,
    #[error("{0}")]
    Sizes(&'static str),
}

impl PairReport {
    /// What was measured, if anything was.
    pub fn measured(&self) -> Option<(&'static str, &HeldOut)> {
        Some((self.pair, self.held_out.as_ref()?))
    }
}

impl Serialize for Skipped {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why there is no calibrator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibrateError {
    #[error("the share held out is {0}, it must be above 0 and below 1")]
    HeldOut(f64),
    #[error("no pair of modalities can be calibrated: {}", list(.0))]
    Nothing(Vec<PairReport>),
    #[error("{0}")]
    Calibrator(#[from] CalibratorError),
}

fn list(pairs: &[PairReport]) -> String {
    let reason = |pair: &PairReport| Some(format!("{}: {}", pair.pair, pair.skipped.as_ref()?));
    pairs.iter().filter_map(reason).collect::<Vec<_>>().join("; ")
}

/// Fits on all pairs of images of most ships, and measures on all pairs of the rest.
///
/// Takes time quadratic in the number of images.
///
/// # Errors
/// The share held out is invalid, a setting is invalid for a calibrator, or there are too few pairs of every kind.
pub fn calibrate(images: &[Labelled], settings: &FitSettings) -> Result<Calibration, CalibrateError> {
    if !(settings.held_out > 0.0 && settings.held_out < 1.0) {
        return Err(CalibrateError::HeldOut(settings.held_out));
    }
    let (seen, unseen) = split(images, settings);
    let (calibrator, pairs) = fit(&seen, &unseen, settings)?;
    Ok(Calibration { calibrator, pairs })
}

/// Fits on all pairs of images, and measures nothing.
///
/// # Errors
/// As for [`calibrate`].
pub(super) fn fit_on_all(images: &[&Labelled], settings: &FitSettings) -> Result<Calibrator, CalibrateError> {
    fit(images, &[], settings).map(|(calibrator, _)| calibrator)
}

fn fit(
    seen: &[&Labelled],
    unseen: &[&Labelled],
    settings: &FitSettings,
) -> Result<(Calibrator, Vec<PairReport>), CalibrateError> {
    let random = &mut ChaCha8Rng::seed_from_u64(settings.seed);
    let (mut calibrations, mut reports) = (BTreeMap::new(), Vec::new());
    for pair in ModalityPair::EVERY {
        let (report, calibration) = fit_pair(pair, &compare(seen, pair, random));
        let held_out = calibration.and_then(|fit| measure(&fit, &compare(unseen, pair, random)));
        reports.push(PairReport { held_out, ..report });
        calibrations.extend(calibration.map(|calibration| (pair, calibration)));
    }
    if calibrations.is_empty() {
        return Err(CalibrateError::Nothing(reports));
    }
    let calibrator = Calibrator::new(CalibratorParts {
        id: settings.id.clone(),
        model: settings.model,
        prior_unknown: settings.prior_unknown,
        fitted_on: settings.fitted_on.clone(),
        data: (!settings.data_fingerprint.is_empty()).then(|| FittedData {
            fingerprint: settings.data_fingerprint.clone(),
            ships: ships(seen),
            ships_held_out: ships(unseen),
        }),
        kinematics: settings.kinematics,
        pairs: calibrations,
    })?;
    Ok((calibrator, reports))
}

/// Images of the ships to fit on, and of those held out. Pairs across the two are in neither set.
fn split<'i>(images: &'i [Labelled], settings: &FitSettings) -> (Vec<&'i Labelled>, Vec<&'i Labelled>) {
    // A ship of its own is identified by its index among the images.
    let ship = |(place, image): (usize, &Labelled)| image.identity.map_or((1, place as i64), |id| (0, id));
    let ships: BTreeSet<(u8, i64)> = images.iter().enumerate().map(ship).collect();
    let mut ships: Vec<(u8, i64)> = ships.into_iter().collect();
    ships.shuffle(&mut ChaCha8Rng::seed_from_u64(settings.seed));
    let held = (ships.len() as f64 * settings.held_out).ceil() as usize;
    let held: BTreeSet<(u8, i64)> = ships.into_iter().take(held).collect();
    let (unseen, seen): (Vec<_>, Vec<_>) =
        images.iter().enumerate().partition(|image| held.contains(&ship(*image)));
    let images = |part: Vec<(usize, &'i Labelled)>| part.into_iter().map(|(_, image)| image).collect();
    (images(seen), images(unseen))
}

/// The number of ships that images show.
fn ships(images: &[&Labelled]) -> u64 {
    let named: BTreeSet<i64> = images.iter().filter_map(|image| image.identity).collect();
    let unnamed = images.iter().filter(|image| image.identity.is_none()).count();
    (named.len() + unnamed) as u64
}

/// The features of a pair of images.
#[derive(Clone, Copy)]
pub(super) struct Compared {
    pub cosine: f32,
    pub log_ratios: [Option<f64>; 2],
    pub same: bool,
}

impl Compared {
    pub fn of(a: &Labelled, b: &Labelled) -> Self {
        Self {
            cosine: a.embedding.cosine(&b.embedding),
            log_ratios: a.outline.log_ratios(&b.outline),
            same: are_same(a, b),
        }
    }

    fn appearance(&self) -> logistic::Example<2> {
        ([1.0, f64::from(self.cosine)], self.same)
    }

    /// `None` if no size is known on both sides.
    fn with_size(&self, model: &SizeModel) -> Option<logistic::Example<3>> {
        let sizes = model.log_likelihood_ratio(self.log_ratios)?;
        Some(([1.0, f64::from(self.cosine), sizes], self.same))
    }
}

fn are_same(a: &Labelled, b: &Labelled) -> bool {
    a.identity.is_some() && a.identity == b.identity
}

/// All pairs of images from `pair` of modalities, with a limited number of pairs of two vessels.
fn compare(images: &[&Labelled], pair: ModalityPair, random: &mut ChaCha8Rng) -> Vec<Compared> {
    let pairs = || {
        let later = |(place, a)| images[place + 1..].iter().map(move |b| (a, b));
        let pairs = images.iter().enumerate().flat_map(later);
        pairs.filter(|(a, b)| ModalityPair::of(a.outline.modality, b.outline.modality) == pair)
    };
    let others = pairs().filter(|(a, b)| !are_same(a, b)).count();
    let share = (OTHER_PAIRS_MAX / others as f64).min(1.0);
    let mut compared = Vec::new();
    for (a, b) in pairs() {
        let same = are_same(a, b);
        if same || share == 1.0 || random.random_bool(share) {
            compared.push(Compared::of(a, b));
        }
    }
    compared
}

fn fit_pair(pair: ModalityPair, compared: &[Compared]) -> (PairReport, Option<PairCalibration>) {
    let (same, other) = count(compared.iter().map(|compared| compared.same));
    let mut report = PairReport {
        pair: pair.name(),
        same_pairs: same,
        other_pairs: other,
        skipped: None,
        size_skipped: None,
        held_out: None,
    };
    let appearance = match fit_appearance(compared) {
        Ok(appearance) => appearance,
        Err(skipped) => {
            report.skipped = Some(skipped);
            return (report, None);
        }
    };
    let size = fit_size(pair, compared).map_err(|skipped| report.size_skipped = Some(skipped)).ok();
    let (same_pairs, other_pairs) = (same as u64, other as u64);
    (report, Some(PairCalibration { same_pairs, other_pairs, appearance, size }))
}

/// (true, false).
fn count(values: impl Iterator<Item = bool>) -> (usize, usize) {
    values.fold((0, 0), |(yes, no), value| if value { (yes + 1, no) } else { (yes, no + 1) })
}

/// The weights of a fit, unless there are too few pairs.
fn fit_enough<const N: usize>(examples: &[logistic::Example<N>]) -> Result<[f64; N], Skipped> {
    let (same, other) = count(examples.iter().map(|(_, same)| *same));
    let enough = same.min(other) >= SAME_PAIRS_MIN;
    logistic::fit(examples).filter(|_| enough).ok_or(Skipped::TooFew { same, other })
}

fn fit_appearance(compared: &[Compared]) -> Result<Appearance, Skipped> {
    let examples: Vec<_> = compared.iter().map(Compared::appearance).collect();
    let [offset, cosine] = fit_enough(&examples)?;
    if cosine > 0.0 { Ok(Appearance { offset, cosine }) } else { Err(Skipped::Uninformative) }
}

fn fit_size(pair: ModalityPair, compared: &[Compared]) -> Result<SizeCalibration, Skipped> {
    let model = fit_size_model(pair, compared)?;
    let examples: Vec<_> = compared.iter().filter_map(|compared| compared.with_size(&model)).collect();
    let [offset, cosine, evidence] = fit_enough(&examples)?;
    if cosine >= 0.0 && evidence >= 0.0 {
        Ok(SizeCalibration { offset, cosine, evidence, model })
    } else {
        Err(Skipped::Uninformative)
    }
}

/// Moments of the log ratios of pairs with known length and width.
fn fit_size_model(pair: ModalityPair, compared: &[Compared]) -> Result<SizeModel, Skipped> {
    let ratios = |wanted: bool| -> Vec<[f64; 2]> {
        let of_kind = compared.iter().filter(|compared| compared.same == wanted);
        of_kind
            .filter_map(|Compared { log_ratios: [length, width], .. }| Some([(*length)?, (*width)?]))
            .collect()
    };
    let (same, other) = (ratios(true), ratios(false));
    if same.len().min(other.len()) < SAME_PAIRS_MIN {
        return Err(Skipped::TooFew { same: same.len(), other: other.len() });
    }
    let mean = |n: usize| same.iter().map(|ratios| ratios[n]).sum::<f64>() / same.len() as f64;
    let bias = match pair {
        ModalityPair::OpticalSar => [mean(0), mean(1)],
        // Either image may come first, so the mean is 0 by symmetry.
        ModalityPair::OpticalOptical | ModalityPair::SarSar => [0.0, 0.0],
    };
    let (same, other) = (spread(&same, bias), spread(&other, bias));
    let model = SizeModel { bias, same, other: wider(other, &same) };
    model.check().map_err(Skipped::Sizes)?;
    Ok(model)
}

fn spread(ratios: &[[f64; 2]], bias: [f64; 2]) -> Spread {
    let moment = |a: usize, b: usize| {
        let products = ratios.iter().map(|ratios| (ratios[a] - bias[a]) * (ratios[b] - bias[b]));
        products.sum::<f64>() / ratios.len() as f64
    };
    let deviation = [0, 1].map(|n| moment(n, n).sqrt().max(DEVIATION_MIN));
    let correlation = moment(0, 1) / (deviation[0] * deviation[1]);
    // Fully correlated sizes have no density.
    Spread { deviation, correlation: correlation.clamp(-0.99, 0.99) }
}

/// `other` with its correlation limited so that its ellipse contains that of `same`.
///
/// Ships of one shape differ in the ratio of length and width as images of one ship do, and chance may reverse the
/// inequality; a wrong shape must not count in favour of a candidate.
fn wider(other: Spread, same: &Spread) -> Spread {
    let room: f64 = [0, 1].map(|n| other.deviation[n].powi(2) - same.deviation[n].powi(2)).iter().product();
    let product = |spread: &Spread| spread.deviation[0] * spread.deviation[1];
    let (middle, reach) = (same.correlation * product(same), 0.99 * room.max(0.0).sqrt());
    let [least, most] = [middle - reach, middle + reach].map(|covariance| covariance / product(&other));
    Spread { correlation: other.correlation.clamp(least, most), ..other }
}

fn measure(fit: &PairCalibration, compared: &[Compared]) -> Option<HeldOut> {
    let judge = |ratio: &dyn Fn(&Compared) -> Option<f64>| {
        let judged: Vec<_> =
            compared.iter().filter_map(|compared| Some((ratio(compared)?, compared.same))).collect();
        reliability(&judged)
    };
    Some(HeldOut {
        appearance: judge(&|compared| Some(fit.appearance.log_likelihood_ratio(compared.cosine)))?,
        with_size: fit.size.and_then(|size| {
            judge(&|compared| size.log_likelihood_ratio(compared.cosine, compared.log_ratios))
        }),
    })
}

#[cfg(test)]
pub(super) use tests::fleet;

#[cfg(test)]
mod tests {
    use rand_distr::{Distribution, StandardNormal};

    use super::*;
    use crate::chip::Modality;

    const DIMENSION: usize = 24;

    fn settings() -> FitSettings {
        FitSettings {
            id: "test".into(),
            model: ModelDigest::new([1; 32]),
            fitted_on: "drawn ships".into(),
            data_fingerprint: "sha256:1".into(),
            prior_unknown: 0.5,
            kinematics: Some(Kinematics::default()),
            held_out: 0.3,
            seed: 1,
        }
    }

    /// Ships of random looks and sizes, each seen twice by either sensor; `blur` hides how a ship looks.
    pub fn fleet(ships: i64, blur: f32) -> Vec<Labelled> {
        let random = &mut ChaCha8Rng::seed_from_u64(9);
        let mut images = Vec::new();
        for ship in 0..ships {
            let looks: Vec<f32> = (0..DIMENSION).map(|_| StandardNormal.sample(random)).collect();
            let scale: f64 = StandardNormal.sample(random);
            for modality in [Modality::Optical, Modality::Sar].repeat(2) {
                let mut noise = |deviation: f64| -> f64 {
                    let drawn: f64 = StandardNormal.sample(random);
                    deviation * drawn
                };
                let bias = if modality == Modality::Sar { 0.05 } else { 0.0 };
                let size = |mean: f64, noise: f64| Some((mean.ln() + 0.35 * scale + bias + noise).exp());
                let outline = Outline {
                    modality,
                    length_m: size(120.0, noise(0.04)),
                    width_m: size(20.0, noise(0.08)),
                };
                let feature = looks.iter().map(|look| look + noise(f64::from(blur)) as f32).collect();
                let embedding = Embedding::from_feature(feature).expect("a direction");
                images.push(Labelled { identity: Some(ship), embedding, outline });
            }
        }
        images
    }

    #[test]
    fn what_is_fitted_comes_true_on_ships_that_it_has_not_seen() {
        let calibration = calibrate(&fleet(150, 1.0), &settings()).expect("a calibration");
        for report in &calibration.pairs {
            let held_out = report.held_out.as_ref().expect("pairs of both kinds");
            let (alone, with_size) = (&held_out.appearance, held_out.with_size.as_ref().expect("sizes"));
            assert!(alone.log_loss < 0.7 * alone.log_loss_of_prior, "{report:?}");
            assert!(with_size.log_loss < 0.9 * alone.log_loss, "{report:?}");
            let off = |reliability: &Reliability| -> f64 {
                let pairs: u64 = reliability.bins.iter().map(|bin| bin.pairs).sum();
                let weighted =
                    |bin: &super::super::Bin| bin.pairs as f64 * (bin.predicted - bin.observed).abs();
                reliability.bins.iter().map(weighted).sum::<f64>() / pairs as f64
            };
            assert!(off(alone) < 0.01 && off(with_size) < 0.01, "{report:?}");
        }
        let mixed = calibration.calibrator.pair(ModalityPair::OpticalSar).expect("a pair");
        let model = mixed.size.expect("sizes").model;
        assert!((model.bias[0] - 0.05).abs() < 0.01 && (model.same.deviation[0] - 0.057).abs() < 0.01);
        assert!(model.other.correlation > 0.8);
        let data = FittedData { fingerprint: "sha256:1".into(), ships: 105, ships_held_out: 45 };
        assert_eq!(calibration.calibrator.data(), Some(&data));
        assert_eq!(Calibrator::parse(&calibration.calibrator.to_toml()), Ok(calibration.calibrator));
    }

    #[test]
    fn no_ship_is_on_both_sides_and_the_seed_decides() {
        let mut images = fleet(20, 1.0);
        images.iter_mut().filter(|image| image.identity >= Some(10)).for_each(|image| image.identity = None);
        let (seen, unseen) = split(&images, &settings());
        assert_eq!(seen.len() + unseen.len(), images.len());
        let ships = |images: &[&Labelled]| -> BTreeSet<i64> {
            images.iter().filter_map(|image| image.identity).collect()
        };
        assert!(ships(&seen).is_disjoint(&ships(&unseen)));
        assert!(ships(&unseen).len() >= 2);
        assert_eq!(split(&images, &settings()).1, unseen);
        assert_ne!(split(&images, &FitSettings { seed: 2, ..settings() }).1, unseen);
    }

    #[test]
    fn a_pair_that_cannot_be_fitted_is_left_out_and_says_why() {
        let mut images = fleet(60, 1.0);
        images.iter_mut().filter(|image| image.outline.modality == Modality::Sar).for_each(|image| {
            image.outline.width_m = None;
            image.identity = image.identity.filter(|ship| *ship < 5);
        });
        let calibration = calibrate(&images, &settings()).expect("optical pairs suffice");
        assert!(calibration.calibrator.pair(ModalityPair::OpticalOptical).is_some());
        assert!(calibration.calibrator.pair(ModalityPair::SarSar).is_none());
        let [optical, _, sar] = &calibration.pairs[..] else { panic!("three pairs") };
        assert_eq!((&optical.skipped, &optical.size_skipped), (&None, &None));
        assert!(matches!(sar.skipped, Some(Skipped::TooFew { same: 0..20, .. })), "{sar:?}");

        let none = calibrate(&images[..8], &settings()).expect_err("nothing to fit on").to_string();
        assert!(none.starts_with("no pair of modalities can be calibrated: optical-optical: "), "{none}");
        let share = FitSettings { held_out: 1.0, ..settings() };
        assert_eq!(calibrate(&images, &share), Err(CalibrateError::HeldOut(1.0)));
    }
}
