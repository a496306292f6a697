//! JPEG has no recorded pixels, because decoders differ in rounding and in chroma upsampling. This measures
//! the distance of ours from Pillow 11.3.0. `SHIPREID_JPEG_DIR` selects another folder of pairs `NAME.jpg`,
//! `NAME.png` (Pillow's pixels).

use std::path::{Path, PathBuf};

use super::decode::{Pixels, decode};
use super::{ImageLimits, Modality};

const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 24, pixels_max: 1 << 22 };
/// Largest difference of a single channel value, and mean over a file, in levels of 255. 111 real chips have
/// up to 6 and 0.39 at quality 75 with halved chroma, 3 and 0.02 at quality 95 without.
const DIFFERENCE_MAX: u8 = 6;
const MEAN_MAX: f64 = 0.5;

#[test]
fn jpeg_pixels_are_near_those_of_pillow() {
    let folder = std::env::var_os("SHIPREID_JPEG_DIR").map_or_else(golden, PathBuf::from);
    let mut measured = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of pairs") {
        let path = entry.expect("a readable folder").path();
        if path.extension().is_some_and(|extension| extension == "jpg") {
            let (largest, mean) = difference(&path);
            println!("{}: largest {largest}, mean {mean:.3}", path.display());
            measured.push((largest, mean));
        }
    }
    assert!(measured.len() >= 4);
    for (largest, mean) in measured {
        assert!(largest <= DIFFERENCE_MAX && mean <= MEAN_MAX, "largest {largest}, mean {mean}");
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/jpeg")
}

fn difference(jpeg: &Path) -> (u8, f64) {
    let (ours, theirs) = (pixels(jpeg), pixels(&jpeg.with_extension("png")));
    assert_eq!(ours.len(), theirs.len());
    let differences: Vec<u8> = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).collect();
    let sum: u64 = differences.iter().map(|difference| u64::from(*difference)).sum();
    (differences.iter().copied().max().unwrap_or(0), sum as f64 / ours.len() as f64)
}

fn pixels(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).expect("a readable file");
    match decode(&bytes, Modality::Optical, &LIMITS).expect("an image").pixels {
        Pixels::Rgb(bytes) => bytes,
        Pixels::Amplitude(_) => unreachable!("neither format holds amplitudes"),
    }
}
