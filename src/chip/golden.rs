//! The recorded pixels of golden set f, the real chips, and bytes that are not images.

use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::decode::{DecodeError, Pixels, decode};
use super::*;

const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 24, pixels_max: 1 << 22 };

/// Files whose pixels the reference leaves undefined; ours are safe but not equal.
const UNDEFINED: [&str; 2] = ["0010_j_20x30_SAR.tif", "0011_k_8x8_SAR.tif"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn fixtures() -> Vec<(String, Vec<u8>)> {
    let folder = std::fs::read_dir(golden("images")).expect("the fixtures are in the tree");
    let mut files: Vec<_> = folder
        .map(|entry| {
            let path = entry.expect("a readable folder").path();
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("a readable file"))
        })
        .filter(|(name, _)| name.ends_with(".tif") || name.ends_with(".png"))
        .collect();
    files.sort();
    files
}

fn view(name: &str) -> View {
    let modality = if name.ends_with("SAR.tif") { Modality::Sar } else { Modality::Optical };
    View::reference(modality)
}

fn replicated(bytes: &[u8], channels: usize) -> Vec<u8> {
    if channels == 3 { bytes.to_vec() } else { bytes.iter().flat_map(|value| [*value; 3]).collect() }
}

/// The image before resizing: a chip of the image's own size, whose resize is the identity.
fn original(name: &str, bytes: &[u8]) -> Prepared {
    let raster = decode(bytes, view(name).modality, &LIMITS).expect("a fixture decodes");
    let size = ChipSize { height: raster.height, width: raster.width };
    prepare(bytes, &view(name), ChipForm::reference(size), &LIMITS).expect("a fixture is a chip")
}

#[test]
fn sar_chips_are_denoised_as_recorded() {
    let file = std::fs::read(golden("denoise.safetensors")).expect("recorded");
    let recorded = SafeTensors::deserialize(&file).expect("recorded");
    for (name, expected) in recorded.iter() {
        let size = ChipSize { height: expected.shape()[0], width: expected.shape()[1] };
        let form = ChipForm { size, sar_stretch: SarStretch::Denoised };
        let bytes = std::fs::read(golden("images").join(name)).expect("a fixture");
        let chip = prepare(&bytes, &view(name), form, &LIMITS).expect("a fixture is a chip").chip;
        assert!(chip.pixels() == replicated(expected.data(), 1), "{name}");
        let resampled = prepare_resampled(&bytes, &view(name), form, &LIMITS, Resampling::Bicubic);
        assert_eq!(resampled.expect("the same size"), chip, "{name}");
        assert!(size.height == 1 || original(name, &bytes).chip != chip, "{name}");
    }
    assert_eq!(recorded.len(), 3);
}

#[test]
fn decoded_and_resized_pixels_equal_the_recorded_ones() {
    let file = std::fs::read(golden("preprocess.safetensors")).expect("golden set f");
    let recorded = SafeTensors::deserialize(&file).expect("golden set f");
    let mut compared = 0;
    for (name, bytes) in fixtures() {
        if UNDEFINED.contains(&name.as_str()) {
            continue;
        }
        let chip = original(&name, &bytes).chip;
        for (what, height, width, resampling) in [
            ("rgb", chip.size().height, chip.size().width, Resampling::Bilinear),
            ("val_64x32", 64, 32, Resampling::Bilinear),
            ("train_64x32", 64, 32, Resampling::Bicubic),
            ("val_256x128", 256, 128, Resampling::Bilinear),
        ] {
            let Ok(expected) = recorded.tensor(&format!("{name}.{what}")) else { continue };
            let resized = resize(chip.pixels(), chip.size(), ChipSize { height, width }, resampling);
            let expected = replicated(expected.data(), expected.shape()[2]);
            assert!(resized == expected, "{name}.{what}");
            compared += 1;
        }
    }
    assert_eq!(compared, 30, "recorded images were compared");
}

#[test]
fn size_tokens_equal_the_recorded_ones() {
    let file = std::fs::read(golden("preprocess.safetensors")).expect("golden set f");
    let recorded = SafeTensors::deserialize(&file).expect("golden set f");
    for (name, bytes) in fixtures() {
        let chip = original(&name, &bytes).chip;
        let size = PixelSize::default_for(chip.modality());
        let (width, height) = (chip.size().width as f64, chip.size().height as f64);
        // The reference derives the pixel size from the file name, where only `SAR.tif` counts as SAR.
        let token = size_token(width * size.x_m(), height * size.y_m());
        let expected = recorded.tensor(&format!("{name}.sse")).expect("recorded");
        for (value, bytes) in token.iter().zip(expected.data().chunks(8)) {
            let expected = f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
            assert!((value - expected).abs() <= 1e-12 * expected.abs(), "{name}: {value} {expected}");
        }
        assert_eq!(chip.size_token(), token.map(|value| value as f32));
    }
}

#[test]
fn normalised_pixels_equal_the_recorded_ones() {
    let file = std::fs::read(golden("preprocess.safetensors")).expect("golden set f");
    let recorded = SafeTensors::deserialize(&file).expect("golden set f");
    let name =
        recorded.names().into_iter().find(|name| name.ends_with("val_tensor_64x32")).expect("recorded");
    let file = name.trim_end_matches(".val_tensor_64x32");
    let bytes = std::fs::read(golden("images").join(file)).expect("a fixture");
    let preprocessing = Preprocessing::reference(ChipSize { height: 64, width: 32 });
    let chip = prepare(&bytes, &view(file), preprocessing.form(), &LIMITS).expect("a chip").chip;
    let expected = recorded.tensor(name).expect("recorded").data().chunks(4);
    let expected: Vec<f32> =
        expected.map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
    let plane = 64 * 32;
    assert_eq!(expected.len(), 3 * plane);
    for (index, expected) in expected.iter().enumerate() {
        let (channel, pixel) = (index / plane, index % plane);
        let found = preprocessing.normalised(chip.pixels()[pixel * 3 + channel], channel);
        assert!((found - expected).abs() <= 1e-6);
    }
}

#[test]
fn what_the_reference_leaves_undefined_is_safe_and_warned_about() {
    for (name, codes) in [
        (UNDEFINED[0], &["NEGATIVE_PIXELS", "NOT_UPRIGHT"][..]),
        (UNDEFINED[1], &["ALL_ZERO", "NOT_UPRIGHT", "UNUSUAL_SIZE"][..]),
    ] {
        let bytes = std::fs::read(golden("images").join(name)).expect("a fixture");
        let found: Vec<_> =
            original(name, &bytes).warnings.iter().map(|warning| warning.code().name()).collect();
        for code in codes {
            assert!(found.contains(code), "{name}: {found:?}");
        }
    }
}

#[test]
fn a_sar_tiff_with_colours_is_refused_and_a_sar_png_is_not_stretched() {
    let images = golden("images");
    let colour = std::fs::read(images.join("0001_a_33x97_RGB.tif")).expect("a fixture");
    assert!(matches!(decode(&colour, Modality::Sar, &LIMITS), Err(DecodeError::SarChannels { .. })));
    let png = std::fs::read(images.join("0008_h_28x77_SAR.png")).expect("a fixture");
    let raster = decode(&png, Modality::Sar, &LIMITS).expect("a PNG");
    assert!(matches!(raster.pixels, Pixels::Rgb(_)));
}

#[test]
fn every_real_chip_decodes_without_a_doubt() {
    let shared = std::env::var_os("SHIPREID_SHARED").map_or_else(|| "../shared".into(), PathBuf::from);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(shared).join("data/hoss165");
    if !folder.is_dir() {
        // Not a print macro: the test runner would capture the output.
        let _ = writeln!(std::io::stderr(), "skipped: no HOSS chips at {}", folder.display());
        return;
    }
    let mut chips = 0;
    for part in ["bounding_box_train", "query", "bounding_box_test"] {
        for entry in std::fs::read_dir(folder.join(part)).expect("the HOSS layout") {
            let path = entry.expect("a readable folder").path();
            let bytes = std::fs::read(&path).expect("a readable chip");
            let size = ChipSize { height: 256, width: 128 };
            let View { modality, .. } = view(&path.to_string_lossy());
            let prepared =
                prepare(&bytes, &View::plain(modality), ChipForm::reference(size), &LIMITS).expect("a chip");
            assert!(prepared.warnings.is_empty(), "{}: {:?}", path.display(), prepared.warnings);
            chips += 1;
        }
    }
    assert_eq!(chips, 165);
}

#[test]
fn hostile_headers_are_refused_before_pixels_are_decoded() {
    // A PNG that claims 100,000 x 100,000 pixels: signature, IHDR with its CRC, and nothing else.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\x01\x86\xa0\0\x01\x86\xa0\x08\x02\0\0\0".to_vec();
    png.extend(crc32(&png[12..]).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    let big = vec![0; LIMITS.bytes_max + 1];
    for (bytes, reason) in [
        (&png[..], "IMAGE_TOO_MANY_PIXELS"),
        (&[], "IMAGE_EMPTY"),
        (b"GIF89a and so on", "IMAGE_FORMAT_UNKNOWN"),
        (&big, "IMAGE_TOO_LARGE"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "IMAGE_TRUNCATED"),
        (&png[..20], "IMAGE_TRUNCATED"),
        (b"II*\0\x08\0\0\0", "IMAGE_TRUNCATED"),
    ] {
        let error = decode(bytes, Modality::Optical, &LIMITS).expect_err("no image");
        assert_eq!(error.reason().name(), reason, "{error}");
    }
}

#[test]
fn a_truncated_fixture_is_never_a_chip() {
    for (name, bytes) in fixtures() {
        let half = &bytes[..bytes.len() / 2];
        let error =
            prepare(half, &view(&name), ChipForm::reference(ChipSize { height: 64, width: 32 }), &LIMITS);
        assert!(error.is_err(), "{name}");
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    })
}

proptest! {
    #[test]
    fn random_bytes_never_panic(head in 0..4usize, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let head: &[u8] = [&b""[..], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0\x08\0\0\0"][head];
        let bytes = [head, &bytes].concat();
        for modality in [Modality::Optical, Modality::Sar] {
            let _ = decode(&bytes, modality, &LIMITS);
        }
    }

    #[test]
    fn damaged_images_never_panic(which in 0..12usize, damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8), cut in any::<usize>()) {
        let mut fixtures = fixtures();
        let (name, mut bytes) = fixtures.swap_remove(which % fixtures.len());
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(1 + cut % (2 * bytes.len()));
        let _ = prepare(&bytes, &view(&name), ChipForm::reference(ChipSize { height: 64, width: 32 }), &LIMITS);
    }
}
