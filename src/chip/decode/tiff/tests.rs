//! Whole files, built field by field; the fields of valid files are tested by `chip::oracle`.

use proptest::prelude::*;

use super::directory::ByteOrder;
use super::sample::Sample;
use super::tag::Tag;
use super::*;

const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 24, pixels_max: 1 << 16 };

fn read(sample: &Sample, modality: Modality) -> Result<Raster, DecodeError> {
    decode(&sample.finish(), modality, &LIMITS)
}

fn amplitudes(sample: &Sample) -> Vec<f32> {
    match read(sample, Modality::Sar).expect("amplitudes").pixels {
        Pixels::Amplitude(values) => values,
        Pixels::Rgb(_) => panic!("a TIFF of modality SAR has amplitudes"),
    }
}

/// One byte per pixel: red.
fn reds(sample: &Sample) -> Vec<u8> {
    match read(sample, Modality::Optical).expect("an image").pixels {
        Pixels::Rgb(bytes) => bytes.chunks(3).map(|pixel| pixel[0]).collect(),
        Pixels::Amplitude(_) => panic!("an optical image is shown"),
    }
}

fn check_refused(sample: &Sample, modality: Modality, reason: &str, words: &[&str]) {
    let error = read(sample, modality).expect_err("no picture for us");
    assert_eq!(error.reason().name(), reason, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn what_is_valid_and_not_for_us_is_refused_by_name_with_a_command() {
    let gray = Sample::gray(2, 2, &[1, 2, 3, 4]);
    let with = |fields: &[(Tag, &[u64])]| {
        let mut sample = gray.clone();
        fields.iter().for_each(|(tag, values)| _ = sample.set(*tag, values));
        sample
    };
    for (compression, name) in [
        (3, "CCITT Group 3"),
        (4, "CCITT Group 4"),
        (6, "old-style JPEG"),
        (34712, "JPEG 2000"),
        (34887, "LERC"),
        (34925, "LZMA"),
        (50002, "JPEG XL"),
        (4711, "4711"),
    ] {
        let sample = with(&[(Tag::COMPRESSION, &[compression])]);
        for modality in [Modality::Optical, Modality::Sar] {
            check_refused(&sample, modality, "IMAGE_UNSUPPORTED", &[name, "`gdal_translate -co COMPRESS"]);
        }
    }
    type Fields<'a> = &'a [(Tag, &'a [u64])];
    let optical: [(Fields, &[&str]); 12] = [
        (&[(Tag::PHOTOMETRIC, &[8])], &["CIE Lab", "`tiff2rgba"]),
        (&[(Tag::PHOTOMETRIC, &[32845])], &["Log Luv", "`tiff2rgba"]),
        (&[(Tag::PHOTOMETRIC, &[32803])], &["raw camera data"]),
        (&[(Tag::PHOTOMETRIC, &[4])], &["transparency mask"]),
        (&[(Tag::PHOTOMETRIC, &[77])], &["77"]),
        (&[(Tag::BITS_PER_SAMPLE, &[40])], &["40-bit unsigned", "-ot UInt16"]),
        (&[(Tag::BITS_PER_SAMPLE, &[24]), (Tag::SAMPLE_FORMAT, &[3])], &["24-bit float", "-ot Float32"]),
        (&[(Tag::BITS_PER_SAMPLE, &[12]), (Tag::SAMPLE_FORMAT, &[2])], &["12-bit signed", "-ot Int16"]),
        (&[(Tag::BITS_PER_SAMPLE, &[16]), (Tag::SAMPLE_FORMAT, &[5])], &["complex 8-bit signed", "abs(A)"]),
        (&[(Tag::BITS_PER_SAMPLE, &[5, 6, 5]), (Tag::SAMPLES_PER_PIXEL, &[3])], &["BitsPerSample (5, 6, 5)"]),
        (
            &[(Tag::SAMPLES_PER_PIXEL, &[4]), (Tag::EXTRA_SAMPLES, &[0, 0, 0])],
            &["4 channels", "-b 1 -b 2 -b 3"],
        ),
        (&[(Tag::SAMPLES_PER_PIXEL, &[5000])], &["5000 samples"]),
    ];
    for (fields, words) in optical {
        check_refused(&with(fields), Modality::Optical, "IMAGE_UNSUPPORTED", words);
    }
    let rgb = with(&[(Tag::SAMPLES_PER_PIXEL, &[3]), (Tag::PHOTOMETRIC, &[2])]);
    check_refused(&rgb, Modality::Sar, "SAR_CHANNELS", &["3 (8-bit unsigned)", "-b 1"]);
}

#[test]
fn what_contradicts_itself_is_corrupt() {
    let gray = Sample::gray(2, 2, &[1, 2, 3, 4]);
    let cases: [(Tag, &[u64], &str); 12] = [
        (Tag::WIDTH, &[u64::from(u32::MAX)], "IMAGE_TOO_MANY_PIXELS"),
        (Tag::WIDTH, &[0], "IMAGE_WITHOUT_PIXELS"),
        (Tag::SAMPLES_PER_PIXEL, &[0], "IMAGE_CORRUPT"),
        (Tag::SAMPLE_FORMAT, &[9], "IMAGE_CORRUPT"),
        (Tag::PLANAR_CONFIGURATION, &[3], "IMAGE_CORRUPT"),
        (Tag::FILL_ORDER, &[3], "IMAGE_CORRUPT"),
        (Tag::PHOTOMETRIC, &[2], "IMAGE_CORRUPT"),
        (Tag::PHOTOMETRIC, &[3], "IMAGE_CORRUPT"),
        (Tag::ROWS_PER_STRIP, &[0], "IMAGE_CORRUPT"),
        (Tag::ROWS_PER_STRIP, &[1], "IMAGE_CORRUPT"),
        (Tag::STRIP_OFFSETS, &[0], "IMAGE_CORRUPT"),
        (Tag::STRIP_OFFSETS, &[1 << 30], "IMAGE_TRUNCATED"),
    ];
    for (tag, values, reason) in cases {
        check_refused(gray.clone().set(tag, values), Modality::Optical, reason, &[]);
    }
    for tag in [Tag::WIDTH, Tag::HEIGHT, Tag::STRIP_OFFSETS] {
        check_refused(gray.clone().remove(tag), Modality::Optical, "IMAGE_CORRUPT", &[]);
    }
}

#[test]
fn chunks_are_held_to_the_bounds_of_an_image_before_they_are_allocated() {
    let tiled = |width: u64, length: u64| {
        let mut sample = Sample::gray(2, 2, &[1, 2, 3, 4]);
        sample.set(Tag::TILE_WIDTH, &[width]).set(Tag::TILE_LENGTH, &[length]);
        sample
    };
    for (width, length) in [(1 << 20, 1 << 20), (u64::from(u32::MAX), u64::from(u32::MAX)), (1 << 20, 2)] {
        check_refused(&tiled(width, length), Modality::Optical, "IMAGE_UNSUPPORTED", &["tiles", "TILED=NO"]);
    }
    check_refused(&tiled(16, 0), Modality::Optical, "IMAGE_CORRUPT", &["16 x 0"]);
    // A column of pixels, each in a tile of a million pixels.
    let mut column = Sample::gray(1, 60_000, &[0; 60_000]);
    column.set(Tag::TILE_WIDTH, &[1 << 20]).set(Tag::TILE_LENGTH, &[1]);
    check_refused(&column, Modality::Optical, "IMAGE_UNSUPPORTED", &["60000 tiles"]);
}

#[test]
fn a_chunk_that_is_left_out_has_no_data() {
    let mut sample = Sample::gray(2, 3, &[1, 2, 5, 6]);
    let at = 8;
    sample.set(Tag::ROWS_PER_STRIP, &[1]);
    sample.set(Tag::STRIP_OFFSETS, &[at, 0, at + 2]).set(Tag::STRIP_BYTE_COUNTS, &[2, 0, 2]);
    assert_eq!(reds(&sample), [1, 2, 0, 0, 5, 6]);
    assert_eq!(amplitudes(&sample), [1.0, 2.0, 0.0, 0.0, 5.0, 6.0]);
    assert_eq!(read(&sample, Modality::Sar).expect("amplitudes").facts.nodata_pixels, 2);
    // GDAL fills with the nodata value, clamped to the type of the samples; as an amplitude it is 0.
    for (text, shown, hidden) in [("9", 9, 2), ("-9999", 0, 2), ("1e9", 255, 2), ("6", 6, 3), ("nan", 0, 2)] {
        sample.set_raw(Tag::GDAL_NODATA, 2, text.as_bytes());
        assert_eq!(reds(&sample)[2..4], [shown, shown], "{text}");
        let raster = read(&sample, Modality::Sar).expect("amplitudes");
        assert_eq!(raster.facts.nodata_pixels, hidden, "{text}");
    }
    sample.set_raw(Tag::GDAL_NODATA, 2, b"6\0");
    assert_eq!(amplitudes(&sample), [1.0, 2.0, 0.0, 0.0, 5.0, 0.0]);
    // A chunk with a byte count must have an offset.
    sample.set(Tag::STRIP_BYTE_COUNTS, &[2, 2, 2]);
    check_refused(&sample, Modality::Optical, "IMAGE_CORRUPT", &["where the header is"]);
}

#[test]
fn nodata_is_no_amplitude_where_white_is_zero() {
    let mut sample = Sample::gray(4, 1, &[0, 255, 7, 250]);
    sample.set(Tag::PHOTOMETRIC, &[0]).set_raw(Tag::GDAL_NODATA, 2, b"0\0");
    assert_eq!(amplitudes(&sample), [0.0, 0.0, 248.0, 5.0]);
    assert_eq!(reds(&sample), [255, 0, 248, 5]);
}

#[test]
fn strips_of_plain_bytes_need_no_byte_counts() {
    let mut sample = Sample::gray(2, 2, &[1, 2, 3, 4]);
    for counts in [&[][..], &[0], &[1], &[400]] {
        if counts.is_empty() {
            sample.remove(Tag::STRIP_BYTE_COUNTS);
        } else {
            sample.set(Tag::STRIP_BYTE_COUNTS, counts);
        }
        assert_eq!(reds(&sample), [1, 2, 3, 4], "{counts:?}");
    }
    let mut rows = Sample::gray(2, 2, &[1, 2, 3, 4]);
    rows.set(Tag::ROWS_PER_STRIP, &[1]).set(Tag::STRIP_OFFSETS, &[8, 10]);
    rows.set(Tag::STRIP_BYTE_COUNTS, &[2, 1]);
    check_refused(&rows, Modality::Optical, "IMAGE_CORRUPT", &["1 bytes in place of 2"]);
}

#[test]
fn a_palette_of_grays_gives_amplitudes_and_one_of_colours_none() {
    let mut sample = Sample::gray(2, 1, &[0b0110_0000]);
    sample.set(Tag::BITS_PER_SAMPLE, &[2]).set(Tag::PHOTOMETRIC, &[3]);
    let grays = [0, 100 << 8, 200 << 8, 255 << 8];
    sample.set(Tag::COLOR_MAP, &[grays, grays, grays].concat());
    assert_eq!(amplitudes(&sample), [100.0, 200.0]);
    assert_eq!(reds(&sample), [100, 200]);
    sample.set(Tag::COLOR_MAP, &[grays, [0; 4], grays].concat());
    assert_eq!(reds(&sample), [100, 200]);
    check_refused(&sample, Modality::Sar, "SAR_CHANNELS", &["a palette of colours", "-expand gray"]);
    sample.set(Tag::COLOR_MAP, &grays);
    check_refused(&sample, Modality::Optical, "IMAGE_CORRUPT", &["ColorMap has 4 values in place of 12"]);
}

#[test]
fn the_orientation_of_xmp_counts_where_the_tag_is_missing() {
    let mut sample = Sample::gray(2, 1, &[1, 2]);
    sample.set_raw(Tag::XMP, 1, b"<x tiff:Orientation=\"3\"/>");
    assert_eq!(reds(&sample), [2, 1]);
    sample.set_raw(Tag::XMP, 7, b"<tiff:Orientation>6</tiff:Orientation>");
    let raster = read(&sample, Modality::Optical).expect("an image");
    assert_eq!((raster.width, raster.height, raster.facts.transposed), (1, 2, true));
    sample.set(Tag::ORIENTATION, &[1]);
    assert_eq!(reds(&sample), [1, 2]);
}

#[test]
fn tags_of_the_ground_are_told_as_stored() {
    let mut sample = Sample::gray(1, 1, &[1]);
    sample.set_reals(Tag::PIXEL_SCALE, &[0.5, 0.5, 0.0, 9.0]);
    sample.set_reals(Tag::TIEPOINTS, &[0.0, 0.0, 0.0, 7e5, 6e6, 0.0]);
    sample.set(Tag::GEO_KEYS, &[1, 1, 0, 1, 1024, 0, 1, 1]);
    sample.set_raw(Tag::GEO_ASCII, 2, b"WGS 84|\0");
    let tags = read(&sample, Modality::Optical).expect("an image").facts.geo_tags;
    assert_eq!(tags.pixel_scale, [0.5, 0.5, 0.0]);
    assert_eq!((tags.tiepoints.len(), tags.geo_keys.len(), tags.geo_ascii.as_str()), (6, 8, "WGS 84|"));
}

proptest! {
    #[test]
    fn planes_apart_are_planes_together(
        width in 1..9usize, height in 1..9usize, rows in 1..9usize, extra in 0..3usize, seed in any::<u64>()
    ) {
        let channels = 3 + extra;
        let byte = |pixel: usize, channel: usize| {
            (seed.wrapping_mul(2 * (pixel * channels + channel) as u64 + 1) >> 40) as u8
        };
        let pixels = width * height;
        let together: Vec<u8> = (0..pixels * channels).map(|i| byte(i / channels, i % channels)).collect();
        let apart: Vec<u8> = (0..pixels * channels).map(|i| byte(i % pixels, i / pixels)).collect();
        let mut found = Vec::new();
        for (planes, bytes, bytes_a_pixel) in [(1, together, channels), (2, apart, 1)] {
            let rows = rows.min(height);
            let mut sample = Sample::gray(width as u64, height as u64, &bytes);
            let strip = width * rows * bytes_a_pixel;
            let plane = width * height * bytes_a_pixel;
            let strips: Vec<(usize, usize)> = (0..bytes.len() / plane)
                .flat_map(|index| (0..plane).step_by(strip).map(move |at| (index * plane + at, strip.min(plane - at))))
                .collect();
            let offsets: Vec<u64> = strips.iter().map(|(at, _)| 8 + *at as u64).collect();
            let counts: Vec<u64> = strips.iter().map(|(_, bytes)| *bytes as u64).collect();
            sample.set(Tag::PHOTOMETRIC, &[2]).set(Tag::SAMPLES_PER_PIXEL, &[channels as u64]);
            sample.set(Tag::PLANAR_CONFIGURATION, &[planes]).set(Tag::ROWS_PER_STRIP, &[rows as u64]);
            sample.set(Tag::STRIP_OFFSETS, &offsets).set(Tag::STRIP_BYTE_COUNTS, &counts);
            found.push(read(&sample, Modality::Optical).expect("an image").pixels);
        }
        prop_assert_eq!(&found[0], &found[1]);
        let Pixels::Rgb(rgb) = &found[0] else { panic!("an optical image is shown") };
        let expected: Vec<u8> = (0..pixels * 3).map(|i| byte(i / 3, i % 3)).collect();
        prop_assert_eq!(rgb, &expected);
    }

    #[test]
    fn tiles_are_strips(width in 1..40u64, height in 1..40u64, tile in 1..20u64, order in 0..2) {
        let order = [ByteOrder::Little, ByteOrder::Big][order as usize];
        let value = |x: u64, y: u64| ((x * 977 + y * 5923) % 65521) as u16;
        let bytes = |value: u16| match order {
            ByteOrder::Little => value.to_le_bytes(),
            ByteOrder::Big => value.to_be_bytes(),
        };
        let mut sample = Sample::new(order, false);
        let (mut offsets, mut counts) = (Vec::new(), Vec::new());
        for (top, left) in
            (0..height).step_by(tile as usize).flat_map(|y| (0..width).step_by(tile as usize).map(move |x| (y, x)))
        {
            let pixels = (0..tile * tile).map(|i| (left + i % tile, top + i / tile));
            let chunk: Vec<u8> = pixels.flat_map(|(x, y)| bytes(value(x, y))).collect();
            offsets.push(sample.chunk(&chunk));
            counts.push(chunk.len() as u64);
        }
        sample.set(Tag::WIDTH, &[width]).set(Tag::HEIGHT, &[height]).set(Tag::BITS_PER_SAMPLE, &[16]);
        sample.set(Tag::PHOTOMETRIC, &[1]).set(Tag::TILE_WIDTH, &[tile]).set(Tag::TILE_LENGTH, &[tile]);
        sample.set(Tag::TILE_OFFSETS, &offsets).set(Tag::TILE_BYTE_COUNTS, &counts);
        let expected: Vec<f32> =
            (0..width * height).map(|i| f32::from(value(i % width, i / width))).collect();
        prop_assert_eq!(amplitudes(&sample), expected);
    }

    #[test]
    fn no_value_of_any_field_panics(
        at in any::<prop::sample::Index>(), values in prop::collection::vec(0..70_000u64, 1..5), sar in any::<bool>()
    ) {
        let tags: Vec<Tag> = (0..=u16::MAX).filter_map(tag::known).collect();
        let mut sample = Sample::gray(3, 2, &[0; 200]);
        sample.set(*at.get(&tags), &values);
        let _ = read(&sample, if sar { Modality::Sar } else { Modality::Optical });
    }
}
