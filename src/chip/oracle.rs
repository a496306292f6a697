//! Images drawn at random and written by real tools, compared with what Pillow, libtiff and GDAL
//! read from them.
//!
//! `tests/python/images` draws the files and states the expected content of each; it needs the modules of
//! `make python`. Valid files must neither be read as other pixels nor be called corrupt.
//! `SHIPREID_IMAGES_SEED` changes the images, `SHIPREID_IMAGES_COUNT` their number (TIFF files; a quarter as
//! many PNG and JPEG).

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use super::decode::{DecodeError, Pixels, decode};
use super::{ImageLimits, Modality};

const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 24, pixels_max: 1 << 22 };
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const MODULES: &str = "PIL, numpy, tifffile, imagecodecs, rasterio";
/// Minimum count, among 2,500 files, of kinds that must be read and not refused.
const READ_MIN: usize = 5;
const READ: [(&str, &[&str]); 4] = [
    ("tiff codec", &["none", "lzw", "deflate", "deflate_old", "packbits", "zstd", "jpeg"]),
    (
        "tiff type",
        &[
            "u1", "u2", "u4", "u8", "u12", "u16", "u32", "i8", "i16", "i32", "f16", "f32", "f64", "ci16",
            "c64",
        ],
    ),
    ("png type", &["u1", "u2", "u4", "u8", "u16"]),
    ("jpeg type", &["gray", "ycbcr"]),
];
/// Faults of one kind that are reported in full.
const SHOWN: usize = 3;

/// One line of the manifest.
#[derive(Default, Deserialize)]
struct Case {
    file: String,
    modality: String,
    container: String,
    codec: String,
    r#type: String,
    traits: String,
    /// Whether a refusal is not acceptable.
    must: bool,
    /// The expected reason for a refusal.
    refusal: Option<String>,
    oracle: String,
    /// The largest difference of a sample, and the mean.
    tolerance: (u8, f64),
    relative: f32,
    #[serde(default)]
    width: usize,
    #[serde(default)]
    height: usize,
    /// Acceptable pixels; the likeliest first.
    results: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    file: String,
    form: Form,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Form {
    Rgb,
    F32,
}

enum Verdict {
    Equal,
    /// Refused with a specific error, where that is acceptable.
    Refused,
    Fault(String),
}

/// Results for the files of one kind.
#[derive(Default)]
struct Row {
    equal: usize,
    refused: usize,
    faults: usize,
    /// Equal, where pixels were required and a refusal was not acceptable.
    read: usize,
}

impl Row {
    fn count(&mut self, case: &Case, verdict: &Verdict) {
        match verdict {
            Verdict::Equal => self.equal += 1,
            Verdict::Refused => self.refused += 1,
            Verdict::Fault(_) => self.faults += 1,
        }
        self.read += usize::from(case.must && case.refusal.is_none() && matches!(verdict, Verdict::Equal));
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "as {} ({} {}, {}, by {})",
            self.modality, self.codec, self.r#type, self.traits, self.oracle
        )
    }
}

#[test]
fn random_valid_images_are_read_as_the_reference_reads_them() {
    let python = format!("{ROOT}/.venv/bin/python");
    let probe = Command::new(&python).args(["-c", &format!("import {MODULES}")]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        // Not a print macro: the test runner would capture the output.
        let _ = writeln!(std::io::stderr(), "skipped: random images: no {MODULES} in .venv (make python)");
        return;
    }
    let (seed, count) = (number("SHIPREID_IMAGES_SEED", 16), number("SHIPREID_IMAGES_COUNT", 2_000));
    let folder = tempfile::tempdir().expect("a folder");
    let cases = drawn(&python, folder.path(), seed, count);
    let (mut table, mut faults) = (BTreeMap::<_, Row>::new(), BTreeMap::<_, Vec<_>>::new());
    for case in &cases {
        let verdict = judged(case, folder.path());
        for kind in [
            format!("{} codec {}", case.container, case.codec),
            format!("{} type {}", case.container, case.r#type),
            format!("{} as {}", case.container, case.modality),
        ] {
            table.entry(kind).or_default().count(case, &verdict);
        }
        if let Verdict::Fault(what) = verdict {
            let cause: String = what.chars().take_while(|letter| !letter.is_ascii_digit()).collect();
            let kind = (case.container.clone(), case.codec.clone(), case.r#type.clone(), cause);
            faults.entry(kind).or_default().push(format!("{} {case}: {what}", case.file));
        }
    }
    println!("{:>40}  equal  refused  faults", format!("seed {seed}"));
    for (kind, row) in &table {
        println!("{kind:>40} {:6} {:8} {:7}", row.equal, row.refused, row.faults);
    }
    let number: usize = faults.values().map(Vec::len).sum();
    let shown: Vec<_> = faults.into_values().flat_map(|some| some.into_iter().take(SHOWN)).collect();
    assert!(
        number == 0,
        "{number} of {} files (tests/python/images FOLDER --seed {seed} --only NUMBER draws one), of each kind:\n{}",
        cases.len(),
        shown.join("\n")
    );
    for (what, kinds) in READ.iter().filter(|_| count >= 2_000) {
        for kind in *kinds {
            let read = table.get(&format!("{what} {kind}")).map_or(0, |row| row.read);
            assert!(read >= READ_MIN, "only {read} files were read of {what} {kind}");
        }
    }
}

#[test]
fn the_judge_sees_what_a_wrong_reader_makes() {
    let case = |tolerance| Case { tolerance, ..Case::default() };
    let (exact, jpeg) = (case((0, 0.0)), case((6, 0.5)));
    let (width, height) = (40, 30);
    // Smooth, so that a tolerance could hide something.
    let pixels: Vec<u8> = (0..width * height)
        .flat_map(|at| [(at % width * 4) as u8, (at / width * 7) as u8, (90 + at % width + at / width) as u8])
        .collect();
    let changed = |change: &dyn Fn(usize) -> u8| (0..pixels.len()).map(change).collect::<Vec<u8>>();
    let row = width * 3;
    let wrong = [
        ("swapped colours", changed(&|at| pixels[at / 3 * 3 + 2 - at % 3])),
        ("planes as pixels", changed(&|at| pixels[at % (row * height / 3) * 3 + at / (row * height / 3)])),
        ("black for white", changed(&|at| 255 - pixels[at])),
        (
            "a predictor left in",
            changed(&|at| pixels[at].wrapping_sub(if at % row < 3 { 0 } else { pixels[at - 3] })),
        ),
        ("upside down", changed(&|at| pixels[(height - 1 - at / row) * row + at % row])),
        ("no colour", changed(&|at| pixels[at / 3 * 3])),
        ("a tile without pixels", changed(&|at| if at % row < 48 && at / row < 16 { 0 } else { pixels[at] })),
        ("rows of another length", changed(&|at| pixels[(at + at / row * 3) % pixels.len()])),
        ("a pixel less", pixels[..pixels.len() - 3].to_vec()),
    ];
    for (what, wrong) in wrong {
        for case in [&exact, &jpeg] {
            let found = difference(&Pixels::Rgb(wrong.clone()), &pixels, Form::Rgb, case);
            assert!(found.is_some(), "{what} is not seen");
        }
    }
    let mut near = pixels.clone();
    near[100] += 1;
    assert!(difference(&Pixels::Rgb(near.clone()), &pixels, Form::Rgb, &exact).is_some());
    assert!(difference(&Pixels::Rgb(near), &pixels, Form::Rgb, &jpeg).is_none());
    assert!(difference(&Pixels::Rgb(pixels.clone()), &pixels, Form::Rgb, &exact).is_none());

    let amplitudes = [0.0f32, 1.0, 300.5, 65535.0, 65536.0];
    let right: Vec<u8> = amplitudes.iter().flat_map(|value| value.to_le_bytes()).collect();
    let seen =
        |ours: &[f32]| difference(&Pixels::Amplitude(ours.to_vec()), &right, Form::F32, &exact).is_some();
    assert!(!seen(&amplitudes));
    assert!(!seen(&[f32::NAN, 1.0, 300.5, 65535.0, 65536.0]), "the stretch clears what is not finite");
    assert!(!seen(&[-4.0, 1.0, 300.5, 65535.0, 65536.0]), "and what is negative");
    assert!(seen(&[0.0, 1.0, 300.5, 65535.0, 65535.0]));
    assert!(seen(&[0.0, 1.0, 300.0, 65535.0, 65536.0]));
    assert!(seen(&amplitudes[..4]));
    assert!(difference(&Pixels::Rgb(pixels.clone()), &right, Form::F32, &exact).is_some());
    assert!(difference(&Pixels::Amplitude(amplitudes.to_vec()), &pixels, Form::Rgb, &exact).is_some());
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn drawn(python: &str, folder: &Path, seed: usize, count: usize) -> Vec<Case> {
    let output = Command::new(python)
        .arg(format!("{ROOT}/tests/python/images"))
        .arg(folder)
        .args(["--seed", &seed.to_string(), "--tiff", &count.to_string()])
        .args(["--other", &(count / 4).to_string()])
        .output()
        .expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let manifest = std::fs::read_to_string(folder.join("manifest.jsonl")).expect("a manifest");
    let cases: Vec<_> = manifest.lines().map(|line| serde_json::from_str(line).expect("a case")).collect();
    assert_eq!(cases.len(), count + count / 4);
    cases
}

fn judged(case: &Case, folder: &Path) -> Verdict {
    let bytes = std::fs::read(folder.join(&case.file)).expect("a file that was drawn");
    let modality = if case.modality == "sar" { Modality::Sar } else { Modality::Optical };
    let Ok(decoded) = catch_unwind(|| decode(&bytes, modality, &LIMITS)) else {
        return Verdict::Fault("panics".into());
    };
    let raster = match (decoded, &case.refusal) {
        (Err(error), Some(reason)) if error.reason().name() == reason => return Verdict::Equal,
        (Err(error @ DecodeError::Unsupported { .. }), None) if case.must => {
            return Verdict::Fault(format!("is refused: {error}"));
        }
        (Err(DecodeError::Unsupported { .. } | DecodeError::SarChannels { .. }), _) if !case.must => {
            return Verdict::Refused;
        }
        (Err(DecodeError::Unsupported { .. }), Some(_)) => return Verdict::Refused,
        (Err(error), _) => {
            return Verdict::Fault(format!("is valid, but {}: {error}", error.reason().name()));
        }
        (Ok(_), Some(reason)) => return Verdict::Fault(format!("is read; {reason} is right")),
        (Ok(raster), None) => raster,
    };
    if (raster.width, raster.height) != (case.width, case.height) {
        let (ours, right) = ((raster.width, raster.height), (case.width, case.height));
        return Verdict::Fault(format!("has the size {ours:?}, {right:?} is right"));
    }
    let mut differences = Vec::new();
    for expected in &case.results {
        let bytes = std::fs::read(folder.join(&expected.file)).expect("pixels that were drawn");
        match difference(&raster.pixels, &bytes, expected.form, case) {
            None => return Verdict::Equal,
            Some(what) => differences.push(what),
        }
    }
    Verdict::Fault(differences.join(", or "))
}

/// Where pixels exceed the tolerance, if they do.
fn difference(ours: &Pixels, right: &[u8], form: Form, case: &Case) -> Option<String> {
    match (ours, form) {
        (Pixels::Rgb(ours), Form::Rgb) => {
            let (mut most, mean) = case.tolerance;
            // A magnitude close to a whole number may be truncated to either side.
            most = most.max(u8::from(case.relative > 0.0));
            let apart: Vec<u8> = ours.iter().zip(right).map(|(a, b)| a.abs_diff(*b)).collect();
            let sum: u64 = apart.iter().map(|levels| u64::from(*levels)).sum();
            let found = sum as f64 / apart.len().max(1) as f64;
            let at = apart.iter().position(|levels| *levels > most);
            if ours.len() == right.len() && at.is_none() && (mean == 0.0 || found <= mean) {
                return None;
            }
            let at = at.unwrap_or_default();
            let largest = apart.iter().max().copied().unwrap_or_default();
            let wrong = apart.iter().filter(|levels| **levels > 0).count() as f64 / apart.len().max(1) as f64;
            Some(format!(
                "{} bytes of {}, {:.1} % differ by up to {largest}, {found:.3} in the mean; byte {at}: {:?}, {:?} is right",
                ours.len(),
                right.len(),
                wrong * 100.0,
                ours.get(at..at + 3.min(ours.len() - at)).unwrap_or_default(),
                right.get(at..at + 3.min(right.len() - at)).unwrap_or_default(),
            ))
        }
        (Pixels::Amplitude(ours), Form::F32) => {
            let right =
                right.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
            let right: Vec<f32> = right.map(cleared).collect();
            let slack = case.relative;
            // JPEG's tolerance in levels; everything else is exact.
            let near = |a: f32, b: f32| (a - b).abs() <= f32::from(case.tolerance.0) + slack * b.abs();
            let near = |(a, b): (&f32, &f32)| near(cleared(*a), *b);
            let wrong = ours.iter().zip(&right).filter(|pair| !near(*pair)).count();
            if ours.len() == right.len() && wrong == 0 {
                return None;
            }
            let at = ours.iter().zip(&right).position(|pair| !near(pair)).unwrap_or_default();
            Some(format!(
                "{} amplitudes of {}, {wrong} differ; at {at}: {:?}, {:?} is right",
                ours.len(),
                right.len(),
                ours.get(at),
                right.get(at)
            ))
        }
        (Pixels::Rgb(_), Form::F32) => Some("is colours, amplitudes are right".into()),
        (Pixels::Amplitude(_), Form::Rgb) => Some("is amplitudes, colours are right".into()),
    }
}

/// As the stretch sees it.
fn cleared(amplitude: f32) -> f32 {
    if amplitude.is_finite() { amplitude.max(0.0) } else { 0.0 }
}
