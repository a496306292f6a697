//! Decodes PNG to pixels.

use std::io::{Cursor, ErrorKind};

use png::{BitDepth, ColorType, Decoder, DecodingError, Info, Limits, Transformations};

use super::{DecodeError, Facts, ImageLimits, Pixels, Raster, SampleFormat, StoredSample, replicate};
use crate::chip::Modality;

/// Reads the image; for an animation, the default image.
pub fn decode(bytes: &[u8], modality: Modality, limits: &ImageLimits) -> Result<Raster, DecodeError> {
    let memory = usize::try_from(limits.memory_max()).unwrap_or(usize::MAX);
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: memory });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(|cause| broken(&cause))?;
    limits.check_size(header.width, header.height)?;
    // Expanding a transparent value to an alpha channel would hide that gray has only one channel.
    let wide_gray = (header.color_type, header.bit_depth) == (ColorType::Grayscale, BitDepth::Sixteen);
    let stored = stored(header);
    decoder.set_transformations(if wide_gray { Transformations::IDENTITY } else { Transformations::EXPAND });
    let mut reader = decoder.read_info().map_err(|cause| broken(&cause))?;
    let size = reader.output_buffer_size().ok_or_else(|| DecodeError::corrupt("its size overflows"))?;
    let mut samples = vec![0; size];
    let frame = reader.next_frame(&mut samples).map_err(|cause| broken(&cause))?;
    samples.truncate(frame.buffer_size());
    let mut facts = Facts { stored, ..Facts::default() };
    let pixels = if wide_gray {
        let gray = samples.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        match modality {
            // The modality, not the container, decides how amplitudes are read.
            Modality::Sar => Pixels::Amplitude(gray.map(f32::from).collect()),
            Modality::Optical => {
                facts.clipped_samples = gray.clone().filter(|value| *value > 255).count();
                Pixels::Rgb(replicate(gray.map(|value| value.min(255) as u8)))
            }
        }
    } else {
        Pixels::Rgb(rgb(samples, frame.color_type, frame.bit_depth)?)
    };
    Ok(Raster { width: frame.width as usize, height: frame.height as usize, pixels, facts })
}

fn stored(header: &Info<'_>) -> StoredSample {
    let channels = header.color_type.samples() as u16;
    StoredSample { bits: header.bit_depth as u16, format: SampleFormat::Unsigned, channels }
}

/// Expanded samples: palettes become colours, and every sample has at least 8 bits.
fn rgb(samples: Vec<u8>, color: ColorType, depth: BitDepth) -> Result<Vec<u8>, DecodeError> {
    let samples = match depth {
        BitDepth::Eight => samples,
        // With more than one channel, the high byte is kept.
        BitDepth::Sixteen => samples.into_iter().step_by(2).collect(),
        _ => return Err(DecodeError::corrupt("its samples have less than 8 bits")),
    };
    Ok(match color {
        ColorType::Rgb => samples,
        ColorType::Rgba => samples.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        ColorType::Grayscale => replicate(samples),
        ColorType::GrayscaleAlpha => replicate(samples.into_iter().step_by(2)),
        ColorType::Indexed => return Err(DecodeError::corrupt("its palette is missing")),
    })
}

/// Distinguishes a truncated image from a corrupt one.
fn broken(error: &DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(cause) if cause.kind() == ErrorKind::UnexpectedEof => DecodeError::Truncated,
        error => DecodeError::corrupt(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use png::Encoder;

    use super::*;

    const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 20, pixels_max: 1 << 20 };

    fn file(width: u32, color: ColorType, depth: BitDepth, data: &[u8], more: fn(&mut Info<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut info = Info::with_size(width, 1);
        (info.color_type, info.bit_depth) = (color, depth);
        more(&mut info);
        let mut writer = Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
        writer.write_image_data(data).unwrap();
        drop(writer);
        bytes
    }

    fn pixels(file: &[u8], modality: Modality) -> Pixels {
        decode(file, modality, &LIMITS).expect("an image").pixels
    }

    #[test]
    fn every_kind_of_samples_gives_the_pixels_of_the_reference() {
        use {BitDepth::*, ColorType::*};
        let nothing: fn(&mut Info<'_>) = |_| {};
        let clear: fn(&mut Info<'_>) = |info| info.trns = Some(vec![1, 44].into());
        let palette: fn(&mut Info<'_>) = |info| info.palette = Some(vec![9, 8, 7, 6, 5, 4].into());
        for (file, expected) in [
            (file(2, Grayscale, Sixteen, &[1, 44, 0, 9], nothing), [255, 255, 255, 9, 9, 9]),
            (file(2, Grayscale, Sixteen, &[1, 44, 0, 9], clear), [255, 255, 255, 9, 9, 9]),
            (file(2, GrayscaleAlpha, Sixteen, &[1, 44, 0, 9, 7, 7, 8, 8], nothing), [1, 1, 1, 7, 7, 7]),
            (file(2, Rgb, Sixteen, &[1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 9], nothing), [1, 2, 3, 4, 5, 6]),
            (file(2, Rgba, Eight, &[1, 2, 3, 0, 4, 5, 6, 9], nothing), [1, 2, 3, 4, 5, 6]),
            (file(2, Grayscale, Two, &[0b0111_0000], nothing), [85, 85, 85, 255, 255, 255]),
            (file(2, Indexed, One, &[0b0100_0000], palette), [9, 8, 7, 6, 5, 4]),
        ] {
            assert_eq!(pixels(&file, Modality::Optical), Pixels::Rgb(expected.to_vec()));
        }
    }

    #[test]
    fn wide_gray_of_modality_sar_keeps_its_amplitudes() {
        let gray = file(2, ColorType::Grayscale, BitDepth::Sixteen, &[1, 44, 0, 9], |_| {});
        assert_eq!(pixels(&gray, Modality::Sar), Pixels::Amplitude(vec![300.0, 9.0]));
        let narrow = file(2, ColorType::Grayscale, BitDepth::Eight, &[3, 4], |_| {});
        assert_eq!(pixels(&narrow, Modality::Sar), Pixels::Rgb(vec![3, 3, 3, 4, 4, 4]));
        let facts = decode(&gray, Modality::Optical, &LIMITS).expect("an image").facts;
        assert_eq!((facts.clipped_samples, facts.stored.to_string().as_str()), (1, "16-bit unsigned"));
    }
}
