//! PNG to pixels.

use std::io::{Cursor, ErrorKind};

use png::{BitDepth, ColorType, Decoder, DecodingError, Info, Limits, Transformations};

use super::{DecodeError, Facts, ImageLimits, Pixels, Raster, SampleFormat, StoredSample, replicate};
use crate::chip::Modality;

/// Reads the image; of an animation, the default one.
pub fn decode(bytes: &[u8], modality: Modality, limits: &ImageLimits) -> Result<Raster, DecodeError> {
    let memory = usize::try_from(limits.memory_max()).unwrap_or(usize::MAX);
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: memory });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(|cause| broken(&cause))?;
    limits.check_size(header.width, header.height)?;
    // The expansion of a transparent value to an alpha channel would hide that gray has but one channel.
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
            // The modality decides how amplitudes are read, not the container.
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

/// Expanded samples: palettes are colours, and no sample has less than 8 bits.
fn rgb(samples: Vec<u8>, color: ColorType, depth: BitDepth) -> Result<Vec<u8>, DecodeError> {
    let samples = match depth {
        BitDepth::Eight => samples,
        // Of more than one channel the high byte is kept.
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

/// Tells an image that ends too early from one that is wrong.
fn broken(error: &DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(cause) if cause.kind() == ErrorKind::UnexpectedEof => DecodeError::Truncated,
        error => DecodeError::corrupt(error.to_string()),
    }
}
