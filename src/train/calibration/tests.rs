//! Ships that are told apart by their colour and size.

use std::path::Path;

use image::{Rgb, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::chip::{Chip, ChipForm, ChipSize, Modality};
use crate::embedding::Embedding;
use crate::matching::ModalityPair;
use crate::train::dataset::Image;
use crate::train::learn::{LearnError, LearnerState, LossTerms, Samples};
use crate::train::schedule::Rates;

const MODEL: ModelDigest = ModelDigest::new([5; 32]);
const IMAGES: usize = 3;

/// Embeds a chip as its mean colour.
struct Colours;

impl Learner for Colours {
    fn step(&mut self, _: &Samples, _: Rates, _: &mut ChaCha8Rng) -> Result<LossTerms, LearnError> {
        Ok(LossTerms::default())
    }

    fn embed(&mut self, chips: &[Chip]) -> Result<Vec<Embedding>, LearnError> {
        let colour = |chip: &Chip| {
            let mean = |channel: usize| -> f32 {
                let values = chip.pixels().iter().skip(channel).step_by(3);
                values.map(|value| f32::from(*value) - 127.5).sum()
            };
            Embedding::from_feature((0..3).map(mean).collect()).expect("not grey")
        };
        Ok(chips.iter().map(colour).collect())
    }

    fn state(&self) -> LearnerState {
        LearnerState::default()
    }

    fn restore(&mut self, _: LearnerState) -> Result<(), LearnError> {
        Ok(())
    }
}

/// Ships `1..=ships`, the first image of each as a query and the others in the gallery.
fn validation(folder: &Path, ships: i64) -> Validation {
    let random = &mut ChaCha8Rng::seed_from_u64(3);
    let (mut queries, mut gallery) = (Vec::new(), Vec::new());
    for ship in 1..=ships {
        let colour: [f32; 3] = std::array::from_fn(|_| random.random_range(20.0..235.0));
        let length: f32 = random.random_range(40.0..160.0);
        for number in 0..IMAGES {
            let seen = colour.map(|value| (value + random.random_range(-15.0..15.0)) as u8);
            let pixels = [0.25, 1.0].map(|share| (share * length * random.random_range(0.97..1.03)) as u32);
            let path = folder.join(format!("{ship}_{number}.png"));
            RgbImage::from_pixel(pixels[0], pixels[1], Rgb(seen)).save(&path).expect("writable");
            let part = if number == 0 { &mut queries } else { &mut gallery };
            part.push(Image::plain(path, ship, Modality::Optical));
        }
    }
    Validation::new(queries, gallery, ChipForm::reference(ChipSize { height: 4, width: 2 }))
}

fn calibrated(validation: &Validation, learned: &[i64]) -> Result<Calibration, Uncalibrated> {
    let learned = learned.iter().copied().collect();
    HeldOutShips { model: MODEL, validation, learned: &learned, loaders: 2 }.calibrate(&mut Colours)
}

#[test]
fn a_model_is_calibrated_on_ships_from_which_its_run_has_not_learned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let validation = validation(folder.path(), 60);
    let calibration = calibrated(&validation, &[1, 2, 3, 4, 99]);
    let found = calibration.as_ref().expect("enough ships");
    let calibrator = &found.calibrator;
    assert_eq!((calibrator.id(), calibrator.model()), ("model-050505050505", MODEL));
    let data = calibrator.data().expect("known");
    let fingerprint = fingerprint_of(validation.images()).expect("readable");
    assert_eq!((data.ships, data.ships_held_out, &data.fingerprint), (39, 17, &fingerprint));
    let pair = calibrator.pair(ModalityPair::OpticalOptical).expect("the pair that there is");
    assert_eq!(pair.same_pairs, 39 * 3, "all pairs of three images");
    assert!(pair.size.is_some());
    let lines = CalibrationReport(&calibration).lines();
    let first =
        "calibrator model-050505050505: fitted on 39 ships that were not trained on, measured on 17 others";
    assert_eq!(lines[0], first);
    assert!(lines[1].starts_with("optical-optical: 117 pairs of one vessel and 6669 of two; log-loss 0."));
    assert!(lines[1].contains(" with sizes, "), "{}", lines[1]);
    assert!(lines[2].starts_with("optical-sar: not calibrated, 0 pairs of one vessel and 0 of two; "));
    assert_eq!(lines.len(), 4);
}

#[test]
fn a_model_without_enough_ships_has_no_calibrator_and_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let validation = validation(folder.path(), 6);
    let told = |calibration| CalibrationReport(&calibration).lines().join("\n");
    let every: Vec<i64> = (1..=6).collect();
    let none = told(calibrated(&validation, &every));
    assert_eq!(none, "no calibrator: the run has learned from every ship of its test set");
    let few = told(calibrated(&validation, &[1, 2]));
    assert!(
        few.starts_with("no calibrator: no pair of modalities can be calibrated: optical-optical: "),
        "{few}"
    );
    std::fs::remove_file(folder.path().join("3_1.png")).expect("removed");
    let gone = told(calibrated(&validation, &[1, 2]));
    assert!(gone.starts_with("no calibrator: ") && gone.contains("3_1.png"), "{gone}");
}
