//! A test set as calibrators judge it: rankings by evidence, and whether probabilities come true.

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::super::evidence::{ModalityPair, Resemblance};
use super::calibrator::Calibrator;
use super::fit::{CalibrateError, Compared, FitSettings, HeldOut, Labelled, fit_on_all};
use super::reliability::reliability;

/// For each query of a test set, the calibrator that judges it.
#[derive(Clone, Debug, PartialEq)]
pub struct Judges {
    calibrators: Vec<Calibrator>,
    /// Indices of calibrators, in the order of the queries.
    of_queries: Vec<usize>,
}

impl Judges {
    /// Parts into which ships are divided by [`Self::cross_fitted`].
    pub const PARTS: usize = 5;

    /// One calibrator for this number of queries.
    pub fn one(calibrator: Calibrator, queries: usize) -> Self {
        Self { calibrators: vec![calibrator], of_queries: vec![0; queries] }
    }

    /// Calibrators fitted on the test set itself: the ships of the queries are divided into parts at random, and a query
    /// is judged by a calibrator that has seen no ship of its part.
    ///
    /// # Errors
    /// There are too few pairs of images of the other ships.
    pub fn cross_fitted(
        queries: &[Labelled],
        gallery: &[Labelled],
        settings: &FitSettings,
    ) -> Result<Self, CalibrateError> {
        let parts = parts(queries, settings.seed);
        let part = |image: &Labelled| image.identity.and_then(|ship| parts.get(&ship).copied());
        // A query of unknown identity is a ship of its own, of which no fit may know.
        let known = queries.iter().filter(|query| query.identity.is_some()).chain(gallery);
        let images: Vec<&Labelled> = known.collect();
        let fitted = (0..Self::PARTS).map(|left_out| {
            let others = images.iter().copied().filter(|image| part(image) != Some(left_out));
            fit_on_all(&others.collect::<Vec<_>>(), settings)
        });
        Ok(Self {
            calibrators: fitted.collect::<Result<_, _>>()?,
            of_queries: queries.iter().map(|query| part(query).unwrap_or(0)).collect(),
        })
    }

    /// The calibrator of a query, by the query's index.
    pub fn of(&self, query: usize) -> &Calibrator {
        &self.calibrators[self.of_queries[query]]
    }

    /// Ranks all of `gallery` by index as [`super::super::Ranking::FusedWhereCalibrated`] does, without movement: by
    /// evidence if the modality of the query is calibrated with those of all images, else by cosine.
    pub fn rank(&self, query: usize, asked: &Labelled, gallery: &[&Labelled]) -> Vec<usize> {
        let calibrator = self.of(query);
        let pair = |image: &Labelled| ModalityPair::of(asked.outline.modality, image.outline.modality);
        let is_calibrated = gallery.iter().all(|image| calibrator.pair(pair(image)).is_some());
        let scored = gallery.iter().enumerate().map(|(place, image)| {
            let Compared { cosine, log_ratios, .. } = Compared::of(asked, image);
            let seen = Resemblance { pair: pair(image), cosine, log_ratios };
            let evidence = if is_calibrated { calibrator.evidence(Some(seen), None).total() } else { 0.0 };
            (evidence, cosine, place)
        });
        let mut scored: Vec<(f64, f32, usize)> = scored.collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
        scored.into_iter().map(|(_, _, place)| place).collect()
    }

    /// Whether the judgements of queries beside images of the gallery come true, for each pair of modalities that has
    /// both kinds.
    pub fn measure(&self, queries: &[Labelled], gallery: &[Labelled]) -> Vec<(ModalityPair, HeldOut)> {
        let measured =
            ModalityPair::EVERY.into_iter().map(|pair| (pair, self.measure_pair(pair, queries, gallery)));
        measured.filter_map(|(pair, measured)| Some((pair, measured?))).collect()
    }

    fn measure_pair(
        &self,
        pair: ModalityPair,
        queries: &[Labelled],
        gallery: &[Labelled],
    ) -> Option<HeldOut> {
        let (mut by_looks, mut with_sizes) = (Vec::new(), Vec::new());
        for (number, query) in queries.iter().enumerate() {
            let Some(calibration) = self.of(number).pair(pair) else { continue };
            let of_pair =
                |image: &&Labelled| ModalityPair::of(query.outline.modality, image.outline.modality) == pair;
            for image in gallery.iter().filter(of_pair) {
                let Compared { cosine, log_ratios, same } = Compared::of(query, image);
                by_looks.push((calibration.appearance.log_likelihood_ratio(cosine), same));
                let with_size =
                    calibration.size.and_then(|size| size.log_likelihood_ratio(cosine, log_ratios));
                with_sizes.extend(with_size.map(|ratio| (ratio, same)));
            }
        }
        Some(HeldOut { appearance: reliability(&by_looks)?, with_size: reliability(&with_sizes) })
    }
}

/// The part of each ship that is asked for.
fn parts(queries: &[Labelled], seed: u64) -> BTreeMap<i64, usize> {
    let ships: BTreeSet<i64> = queries.iter().filter_map(|query| query.identity).collect();
    let mut ships: Vec<i64> = ships.into_iter().collect();
    ships.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    ships.into_iter().enumerate().map(|(place, ship)| (ship, place % Judges::PARTS)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::calibrator::{Appearance, CalibratorParts, PairCalibration};
    use super::super::fit::fleet;
    use super::*;
    use crate::chip::Modality;
    use crate::embedding::ModelDigest;

    fn settings() -> FitSettings {
        FitSettings {
            id: "test".into(),
            model: ModelDigest::new([1; 32]),
            fitted_on: "drawn ships".into(),
            data_fingerprint: "sha256:1".into(),
            prior_unknown: 0.5,
            kinematics: None,
            held_out: FitSettings::HELD_OUT,
            seed: 1,
        }
    }

    /// The first image of each ship by either sensor, and the others.
    fn test_set(ships: i64, blur: f32) -> (Vec<Labelled>, Vec<Labelled>) {
        let images = fleet(ships, blur).into_iter().enumerate();
        let (queries, gallery): (Vec<_>, Vec<_>) = images.partition(|(place, _)| place % 4 < 2);
        let images = |part: Vec<(usize, Labelled)>| part.into_iter().map(|(_, image)| image).collect();
        (images(queries), images(gallery))
    }

    /// By looks alone, for these pairs.
    fn calibrator(pairs: &[ModalityPair]) -> Calibrator {
        let appearance = Appearance { offset: -2.0, cosine: 4.0 };
        let calibration = PairCalibration { same_pairs: 30, other_pairs: 30, appearance, size: None };
        Calibrator::new(CalibratorParts {
            id: "test".into(),
            model: ModelDigest::new([1; 32]),
            prior_unknown: 0.5,
            fitted_on: "nothing".into(),
            data: None,
            kinematics: None,
            pairs: pairs.iter().map(|pair| (*pair, calibration)).collect(),
        })
        .expect("a calibrator")
    }

    #[test]
    fn log_loss_is_the_mean_surprise_at_the_share_of_pairs_of_one_ship() {
        let (queries, gallery) = test_set(20, 0.7);
        let judges = Judges::one(calibrator(&ModalityPair::EVERY), queries.len());
        let measured = judges.measure(&queries, &gallery);
        let names: Vec<ModalityPair> = measured.iter().map(|(pair, _)| *pair).collect();
        assert_eq!(names, ModalityPair::EVERY);
        let is_sar = |image: &Labelled| image.outline.modality == Modality::Sar;
        let (_, HeldOut { appearance, with_size }) = &measured[1];
        let pairs = queries.iter().flat_map(|query| gallery.iter().map(move |image| (query, image)));
        let pairs: Vec<_> = pairs.filter(|(query, image)| is_sar(query) != is_sar(image)).collect();
        let is_one = |(query, image): &(&Labelled, &Labelled)| query.identity == image.identity;
        let share = pairs.iter().copied().filter(is_one).count() as f64 / pairs.len() as f64;
        let surprise = pairs.iter().map(|pair| {
            let (query, image) = pair;
            let cosine: f32 =
                query.embedding.as_slice().iter().zip(image.embedding.as_slice()).map(|(a, b)| a * b).sum();
            let odds = (-2.0 + 4.0 * f64::from(cosine)).exp() * share / (1.0 - share);
            let probability = odds / (1.0 + odds);
            -(if is_one(pair) { probability } else { 1.0 - probability }).ln()
        });
        let expected = surprise.sum::<f64>() / pairs.len() as f64;
        assert!((appearance.log_loss - expected).abs() < 1e-6, "{} {expected}", appearance.log_loss);
        assert_eq!((appearance.same_pairs, with_size), (40, &None));
        assert_eq!(appearance.same_pairs + appearance.other_pairs, pairs.len() as u64);
    }

    #[test]
    fn no_query_is_judged_by_who_has_seen_its_ship_and_probabilities_come_true() {
        let (queries, gallery) = test_set(150, 1.0);
        let judges = Judges::cross_fitted(&queries, &gallery, &settings()).expect("enough ships");
        let parts = parts(&queries, 1);
        for part in 0..Judges::PARTS {
            assert_eq!(parts.values().filter(|of| **of == part).count(), 30);
        }
        for (number, query) in queries.iter().enumerate() {
            let ship = query.identity.expect("known");
            assert_eq!(judges.of_queries[number], parts[&ship]);
            assert_eq!(judges.of(number).data().map(|data| data.ships), Some(120));
        }
        // Whatever the ships of a part look like, its calibrator is the same.
        let mut changed = gallery.clone();
        let of_part = |image: &&mut Labelled| image.identity.is_some_and(|ship| parts[&ship] == 2);
        changed.iter_mut().filter(of_part).for_each(|image| image.outline.length_m = None);
        let others = Judges::cross_fitted(&queries, &changed, &settings()).expect("enough ships");
        let same = |part: usize| judges.calibrators[part] == others.calibrators[part];
        assert_eq!([0, 1, 2, 3, 4].map(same), [false, false, true, false, false]);

        for (pair, HeldOut { appearance, with_size }) in judges.measure(&queries, &gallery) {
            let with_size = with_size.expect("sizes");
            assert!(appearance.log_loss < 0.7 * appearance.log_loss_of_prior, "{pair:?}");
            assert!(with_size.log_loss < appearance.log_loss, "{pair:?}");
            let pairs = with_size.same_pairs + with_size.other_pairs;
            let off =
                with_size.bins.iter().map(|bin| bin.pairs as f64 * (bin.predicted - bin.observed).abs());
            assert!(off.sum::<f64>() / (pairs as f64) < 0.01, "{pair:?} {with_size:?}");
        }
        assert!(Judges::cross_fitted(&queries[..4], &gallery[..4], &settings()).is_err());
    }

    #[test]
    fn evidence_finds_ships_that_looks_alone_do_not_and_ranks_only_what_is_calibrated() {
        let (queries, gallery) = test_set(150, 1.5);
        let judges = Judges::cross_fitted(&queries, &gallery, &settings()).expect("enough ships");
        let candidates: Vec<&Labelled> = gallery.iter().collect();
        let found_first = |judges: &Judges| {
            let is_found = |(number, query): &(usize, &Labelled)| {
                let first = judges.rank(*number, query, &candidates)[0];
                candidates[first].identity == query.identity
            };
            queries.iter().enumerate().filter(is_found).count()
        };
        let some = Judges::one(calibrator(&[ModalityPair::OpticalSar]), queries.len());
        let (fused, by_cosine) = (found_first(&judges), found_first(&some));
        assert!(fused > by_cosine + 20, "{fused} {by_cosine}");
        let ranked = some.rank(0, &queries[0], &candidates);
        let cosines: Vec<f32> =
            ranked.iter().map(|place| queries[0].embedding.cosine(&candidates[*place].embedding)).collect();
        assert!(cosines.is_sorted_by(|a, b| a >= b));
    }
}
