//! Valid images of kinds that readers often misread, each compared with the file that has the same pixels.
//!
//! `NAME.expected.*` holds the pixels that Pillow 11.3.0 reads from NAME, or tifffile where Pillow
//! cannot read it.

use std::path::Path;

use super::decode::{Facts, Pixels, Raster, SampleFormat, decode};
use super::{ImageLimits, Modality};

const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 24, pixels_max: 1 << 22 };

fn case(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/images").join(name))
        .expect("a case")
}

fn read(name: &str, modality: Modality) -> Raster {
    decode(&case(name), modality, &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn each_case_has_the_pixels_of_the_file_that_it_equals() {
    use Modality::{Optical, Sar};
    for (name, modality, expected) in [
        ("sparse_sar_f32.tif", Sar, "sparse_sar_f32_filled.tif"),
        ("sparse_optical_lzw.tif", Optical, "sparse_optical_lzw_filled.tif"),
        ("rgbn8_deflate_predictor2.tif", Optical, "rgbn8_plain.tif"),
        ("lzw_tiles64_rgb.tif", Optical, "lzw_tiles64_rgb.expected.png"),
        ("lzw_tiles256_u16.tif", Sar, "lzw_tiles256_u16.expected.tif"),
        ("lzw_tiles256_u16.tif", Optical, "lzw_tiles256_u16.expected.tif"),
        ("orientation3.tif", Optical, "orientation3.expected.png"),
        ("orientation6.tif", Optical, "orientation6.expected.png"),
        ("png16_trns.png", Optical, "png16_plain.png"),
        ("png16_trns.png", Sar, "png16_plain.png"),
        ("jpeg_fill_before_sof.jpg", Optical, "jpeg_plain.jpg"),
        ("optical_pan_11bit.tif", Optical, "optical_pan_11bit.expected.png"),
        ("optical_rgb_11bit.tif", Optical, "optical_rgb_11bit.expected.png"),
        ("sar_u16.png", Sar, "sar_u16.tif"),
        ("sar_u16_nodata65535.tif", Sar, "sar_u16_nodata65535.expected.tif"),
        ("white_is_zero_u16.tif", Optical, "white_is_zero_u16.expected.png"),
        ("rgb8_zstd.tif", Optical, "rgb8_zstd.expected.png"),
        ("optical_palette.tif", Optical, "optical_palette.expected.png"),
        ("sar_complex_int16.tif", Sar, "sar_complex_int16.expected.tif"),
        ("rgb8_planar.tif", Optical, "rgb8_planar.expected.png"),
        ("sar_i16.tif", Sar, "sar_i16_as_u16.tif"),
    ] {
        let (found, right) = (read(name, modality), read(expected, modality));
        assert_eq!((found.width, found.height), (right.width, right.height), "{name}");
        assert!(found.pixels == right.pixels, "{name} differs from {expected}");
    }
}

#[test]
fn jpeg_within_a_tiff_is_near_to_the_reference() {
    let (found, right) = (
        read("rgb8_jpeg_ycbcr.tif", Modality::Optical),
        read("rgb8_jpeg_ycbcr.expected.png", Modality::Optical),
    );
    let (Pixels::Rgb(found), Pixels::Rgb(right)) = (found.pixels, right.pixels) else { panic!("optical") };
    let differences: Vec<u8> = found.iter().zip(&right).map(|(a, b)| a.abs_diff(*b)).collect();
    let sum: u64 = differences.iter().map(|value| u64::from(*value)).sum();
    let (largest, mean) = (differences.iter().max(), sum as f64 / found.len() as f64);
    assert!(
        found.len() == right.len() && largest <= Some(&6) && mean <= 0.5,
        "largest {largest:?}, mean {mean}"
    );
}

#[test]
fn what_a_file_says_beside_its_pixels_is_told() {
    let told = |name, modality| read(name, modality).facts;
    assert_eq!(told("sar_u16_nodata65535.tif", Modality::Sar).nodata_pixels, 16);
    assert_eq!(told("sparse_sar_f32.tif", Modality::Sar).nodata_pixels, 64 * 64);
    assert!(told("orientation6.tif", Modality::Optical).transposed);
    assert!(!told("orientation3.tif", Modality::Optical).transposed);
    let complex = told("sar_complex_int16.tif", Modality::Sar);
    assert!(complex.complex && complex.stored.format == SampleFormat::ComplexSigned);
    assert_eq!(complex.stored.to_string(), "complex 16-bit signed");
    let pan = told("optical_pan_11bit.tif", Modality::Optical);
    assert!(pan.clipped_samples > 2000, "{pan:?}");
    let Facts { stored, clipped_samples, .. } = told("optical_rgb_11bit.tif", Modality::Optical);
    assert_eq!((stored.to_string().as_str(), clipped_samples), ("16-bit unsigned", 0));
}

#[test]
fn what_cannot_be_read_is_refused_by_name_with_a_way_out() {
    let error = decode(&case("sar_f32_lerc.tif"), Modality::Sar, &LIMITS).expect_err("LERC");
    assert_eq!(error.reason().name(), "IMAGE_UNSUPPORTED");
    assert_eq!(
        error.to_string(),
        "the image cannot be used: a TIFF with LERC compression; \
         convert it, as by `gdal_translate -co COMPRESS=DEFLATE in.tif out.tif`"
    );
}
