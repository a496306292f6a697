//! The doubts on synthetic pictures, and their measurements on real chips.

mod real;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageEncoder};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tiff::encoder::TiffEncoder;
use tiff::encoder::colortype::{ColorType, Gray8, Gray16, RGB16};

use super::super::decode::{Facts, Pixels, StoredSample, decode};
use super::*;
use crate::chip::{ChipForm, ChipSize, ImageLimits, View, prepare};

const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 24, pixels_max: 1 << 22 };
/// Resizing is not tested here.
const SIZE: ChipSize = ChipSize { height: 16, width: 8 };
/// The codes of the findings.
const CODES: [&str; 7] = [
    "CLIPPED",
    "FEW_LEVELS",
    "NODATA",
    "COMPLEX_MAGNITUDE",
    "LOOKS_LIKE_SAR",
    "LOOKS_LIKE_OPTICAL",
    "ALL_ZERO",
];

fn seed() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(16)
}

fn codes_of(gray: &[u8], width: usize, modality: Modality, facts: &Facts) -> Vec<&'static str> {
    let rgb: Vec<u8> = gray.iter().flat_map(|level| [*level; 3]).collect();
    let picture = Picture { rgb: &rgb, width, modality, framing: Framing::Whole, facts };
    doubts(&picture).iter().map(|warning| warning.code().name()).collect()
}

/// 40 x 160 pixels of sea with a ship on them, speckled.
fn speckled() -> Vec<u8> {
    let mut random = seed();
    let level = |index: usize, speckle: f64| {
        let (x, y) = (index % 40, index / 40);
        let amplitude = if (10..30).contains(&x) && (10..150).contains(&y) { 90.0 } else { 20.0 };
        (amplitude * (-speckle.ln()).sqrt()).min(254.0) as u8
    };
    (0..40 * 160).map(|index| level(index, random.random_range(1e-9..1.0))).collect()
}

/// The same without speckle: smooth water and a deck with details.
fn smooth() -> Vec<u8> {
    let level = |index: usize| {
        let (x, y) = (index % 40, index / 40);
        let deck = 120 + 10 * (y / 5 % 9) as u8;
        if (10..30).contains(&x) && (10..150).contains(&y) { deck } else { 40 + (y / 8) as u8 }
    };
    (0..40 * 160).map(level).collect()
}

#[test]
fn each_doubt_has_a_picture_and_a_plain_picture_has_none() {
    let plain = Facts { stored: StoredSample { bits: 16, ..StoredSample::default() }, ..Facts::default() };
    let clipped = Facts { clipped_samples: 1, ..plain.clone() };
    let (speckled, smooth) = (speckled(), smooth());
    let with = |picture: &[u8], change: &dyn Fn(usize, u8) -> u8| {
        picture.iter().enumerate().map(|(index, level)| change(index, *level)).collect::<Vec<u8>>()
    };
    let corner = |index: usize| index % 40 < 3 && index / 40 < 3;
    let (optical, sar) = (Modality::Optical, Modality::Sar);
    for (name, picture, modality, facts, expected) in [
        ("speckled SAR", speckled.clone(), sar, &plain, &[][..]),
        ("smooth optical", smooth.clone(), optical, &plain, &[]),
        ("black", vec![0; 6400], sar, &plain, &["ALL_ZERO"]),
        ("speckle sent as optical", speckled.clone(), optical, &plain, &["LOOKS_LIKE_SAR"]),
        ("smooth sent as SAR", smooth.clone(), sar, &plain, &["LOOKS_LIKE_OPTICAL"]),
        ("white after clipping", with(&smooth, &|_, l| l.saturating_mul(2)), optical, &clipped, &["CLIPPED"]),
        (
            "white where 8 bits were sent",
            with(&smooth, &|i, l| if i % 40 < 22 { 255 } else { l }),
            optical,
            &plain,
            &["CLIPPED"],
        ),
        (
            "some white where 8 bits were sent",
            with(&smooth, &|i, l| if i % 40 < 4 { 255 } else { l }),
            optical,
            &plain,
            &[],
        ),
        ("nearly black", with(&smooth, &|_, l| l / 32), optical, &plain, &["FEW_LEVELS"]),
        ("all gray", vec![128; 6400], optical, &plain, &["FEW_LEVELS"]),
        (
            "one hot pixel",
            with(&speckled, &|i, l| if i == 77 { 255 } else { l / 8 }),
            sar,
            &plain,
            &["FEW_LEVELS"],
        ),
        ("one bright pixel", with(&speckled, &|i, l| if i == 77 { 255 } else { l }), sar, &plain, &[]),
        (
            "a white corner",
            with(&speckled, &|i, l| if corner(i) { 255 } else { l }),
            sar,
            &plain,
            &["NODATA"],
        ),
        (
            "a white corner that is data",
            with(&smooth, &|i, l| if corner(i) { 255 } else { l }),
            optical,
            &plain,
            &[],
        ),
        ("complex", speckled.clone(), sar, &Facts { complex: true, ..plain.clone() }, &["COMPLEX_MAGNITUDE"]),
        (
            "a tenth without data",
            speckled.clone(),
            sar,
            &Facts { nodata_pixels: 640, ..plain.clone() },
            &["NODATA"],
        ),
        ("less without data", speckled.clone(), sar, &Facts { nodata_pixels: 639, ..plain.clone() }, &[]),
        ("too small to tell", smooth[..120].to_vec(), sar, &plain, &["FEW_LEVELS"]),
    ] {
        assert_eq!(codes_of(&picture, 40, modality, facts), expected, "{name}");
    }
}

#[test]
fn colours_are_no_sar_and_never_taken_for_one() {
    let facts = Facts::default();
    let rgb: Vec<u8> = speckled().iter().flat_map(|level| [*level, level / 2, level / 3]).collect();
    let codes = |modality| {
        let picture = Picture { rgb: &rgb, width: 40, modality, framing: Framing::Whole, facts: &facts };
        doubts(&picture).iter().map(|warning| warning.code().name()).collect::<Vec<_>>()
    };
    assert_eq!(codes(Modality::Sar), ["LOOKS_LIKE_OPTICAL"]);
    assert!(codes(Modality::Optical).is_empty());
}

#[test]
fn a_box_between_the_pixels_is_not_judged_by_its_speckle_nor_by_what_the_whole_image_lacks() {
    let facts = Facts { nodata_pixels: 6400, ..Facts::default() };
    let rgb: Vec<u8> = smooth().iter().flat_map(|level| [*level; 3]).collect();
    for (framing, expected) in [
        (Framing::Whole, &["NODATA", "LOOKS_LIKE_OPTICAL"][..]),
        (Framing::Copied, &["LOOKS_LIKE_OPTICAL"]),
        (Framing::Resampled, &[]),
    ] {
        let picture = Picture { rgb: &rgb, width: 40, modality: Modality::Sar, framing, facts: &facts };
        let found: Vec<_> = doubts(&picture).iter().map(|warning| warning.code().name()).collect();
        assert_eq!(found, expected, "{framing:?}");
    }
}

#[test]
fn pictures_of_any_shape_have_an_answer() {
    for (width, height) in [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (5, 4), (6, 6), (700, 900)] {
        for modality in [Modality::Optical, Modality::Sar] {
            for level in [0, 7, 255] {
                codes_of(&vec![level; width * height], width, modality, &Facts::default());
            }
        }
    }
}

/// The messages that a caller would receive for the findings.
fn found(bytes: &[u8], modality: Modality) -> BTreeSet<&'static str> {
    let prepared =
        prepare(bytes, &View::plain(modality), ChipForm::reference(SIZE), &LIMITS).expect("a chip");
    prepared
        .warnings
        .iter()
        .map(|warning| warning.code().name())
        .filter(|code| CODES.contains(code))
        .collect()
}

/// The shared folder with this name, or a note that it is absent.
fn shared(name: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("SHIPREID_SHARED").map_or_else(|| "../shared".into(), PathBuf::from);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(shared).join(name);
    if !folder.is_dir() {
        // Not a print macro: the test runner would capture the output.
        let _ = writeln!(std::io::stderr(), "skipped: nothing at {}", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn the_shared_cases_raise_the_doubts_that_they_are_about() {
    let Some(folder) = shared("cases") else { return };
    let (optical, sar) = (Modality::Optical, Modality::Sar);
    for (name, modality, expected) in [
        ("optical_pan_11bit.tif", optical, &["CLIPPED"][..]),
        ("optical_rgb_11bit.tif", optical, &["FEW_LEVELS"]),
        ("sar_one_dead_pixel.tif", sar, &["FEW_LEVELS"]),
        ("sar_no_dead_pixel.tif", sar, &[]),
        ("sar_u16.tif", sar, &[]),
        ("sar_amplitude.tif", sar, &[]),
        ("sar_i16_as_u16.tif", sar, &[]),
        ("sparse_sar_f32_filled.tif", sar, &[]),
        ("sparse_optical_lzw_filled.tif", optical, &[]),
        ("orientation1.tif", optical, &[]),
        ("rgbn8_plain.tif", optical, &[]),
        ("jpeg_plain.jpg", optical, &[]),
        ("png16_plain.png", optical, &[]),
    ] {
        let bytes = std::fs::read(folder.join(name)).expect("a case");
        assert_eq!(found(&bytes, modality), expected.iter().copied().collect(), "{name}");
    }
}

fn in_the_document(rows: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/warnings.md");
    let document = std::fs::read_to_string(&path).expect("the document is there");
    assert!(
        rows.lines().all(|row| document.contains(row)),
        "docs/warnings.md does not have these rows:\n{rows}"
    );
}
