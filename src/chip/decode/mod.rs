//! Decodes PNG, JPEG and TIFF to pixels, with bounds that are checked before anything is allocated.
//!
//! The result is what the reference gets from its image library ("convert to RGB"): gray is replicated, alpha
//! is dropped and not blended, 16-bit gray is clipped at 255 and not scaled, 16-bit colour keeps its high
//! byte, floats are clipped to 0..255 and truncated. One-channel SAR that 8 bits cannot hold keeps its values
//! in every container, and so does each one-channel TIFF of modality SAR; these values are stretched after
//! the chip is cut. A file that the reference cannot read is read as the samples that it stores, or refused
//! with a specific error.
//!
//! The orientation of a TIFF is applied and that of a JPEG is not, as in the reference. PNG and TIFF are exact. JPEG
//! is not defined to the bit: decoders differ by rounding.

mod facts;
mod jpeg;
mod png;
mod tiff;

pub use facts::{Facts, SampleFormat, StoredSample};

use super::Modality;
use crate::reason::Reason;

/// Bytes that the decoders may use in addition to the pixels.
const SCRATCH_BYTES: u64 = 64 << 20;
/// Maximum size of a decoded pixel in bytes: four channels of 32 bits.
const PIXEL_BYTES_MAX: u64 = 16;

/// Bounds on one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Encoded bytes.
    pub bytes_max: usize,
    /// Width x height.
    pub pixels_max: u64,
}

impl ImageLimits {
    /// Bytes that decoding one image may allocate.
    fn memory_max(&self) -> u64 {
        self.pixels_max.saturating_mul(PIXEL_BYTES_MAX).saturating_add(SCRATCH_BYTES)
    }

    fn check_size(&self, width: u32, height: u32) -> Result<(), DecodeError> {
        if width == 0 || height == 0 {
            return Err(DecodeError::NoPixels { width, height });
        }
        if u64::from(width) * u64::from(height) > self.pixels_max {
            return Err(DecodeError::TooManyPixels { width, height, limit: self.pixels_max });
        }
        Ok(())
    }
}

/// A decoded image.
#[derive(Clone, Debug, PartialEq)]
pub struct Raster {
    pub width: usize,
    pub height: usize,
    pub pixels: Pixels,
    pub facts: Facts,
}

/// Row by row.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// Interleaved bytes.
    Rgb(Vec<u8>),
    /// SAR amplitudes as stored in the file; 0 where it holds no data.
    Amplitude(Vec<f32>),
}

/// Why bytes are not a usable image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the image is empty")]
    Empty,
    #[error("the image has {bytes} bytes, the limit is {limit}")]
    TooManyBytes { bytes: usize, limit: usize },
    #[error("the image is neither PNG, JPEG nor TIFF")]
    UnknownFormat,
    #[error("the image has {width} x {height} pixels, the limit is {limit}")]
    TooManyPixels { width: u32, height: u32, limit: u64 },
    #[error("the image has no pixels: {width} x {height}")]
    NoPixels { width: u32, height: u32 },
    #[error("the image ends too early")]
    Truncated,
    #[error("the image is corrupt: {cause}")]
    Corrupt { cause: String },
    /// Valid as far as it was read, but not supported.
    #[error("the image cannot be used: {what}; convert it, as by `{command}`")]
    Unsupported { what: String, command: &'static str },
    #[error("a TIFF of modality SAR has one channel, this one has {found}; take one, as by `{command}`")]
    SarChannels { found: String, command: &'static str },
}

impl DecodeError {
    /// Stable; suitable for programs and metric labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Empty => Reason::ImageEmpty,
            Self::TooManyBytes { .. } => Reason::ImageTooLarge,
            Self::UnknownFormat => Reason::ImageFormatUnknown,
            Self::TooManyPixels { .. } => Reason::ImageTooManyPixels,
            Self::NoPixels { .. } => Reason::ImageWithoutPixels,
            Self::Truncated => Reason::ImageTruncated,
            Self::Corrupt { .. } => Reason::ImageCorrupt,
            Self::Unsupported { .. } => Reason::ImageUnsupported,
            Self::SarChannels { .. } => Reason::SarChannels,
        }
    }

    fn corrupt(cause: impl Into<String>) -> Self {
        Self::Corrupt { cause: cause.into() }
    }
}

/// Reads an image of any supported format, which is determined by its first bytes.
///
/// # Errors
/// If the bytes are not a usable image. Sizes are checked in the header, before pixels are decoded.
pub fn decode(bytes: &[u8], modality: Modality, limits: &ImageLimits) -> Result<Raster, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() > limits.bytes_max {
        return Err(DecodeError::TooManyBytes { bytes: bytes.len(), limit: limits.bytes_max });
    }
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => png::decode(bytes, modality, limits),
        [0xFF, 0xD8, 0xFF, ..] => jpeg::decode(bytes, limits),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => tiff::decode(bytes, modality, limits),
        _ => Err(DecodeError::UnknownFormat),
    }
}

fn replicate(gray: impl IntoIterator<Item = u8>) -> Vec<u8> {
    gray.into_iter().flat_map(|value| [value; 3]).collect()
}

/// Converts CMYK in which 255 is full ink to RGB, rounded as in Pillow.
fn cmyk_to_rgb(cmyk: &[u8]) -> Vec<u8> {
    let times = |a: u8, b: u8| {
        let product = u32::from(a) * u32::from(b) + 128;
        (((product >> 8) + product) >> 8) as u8
    };
    let pixels = cmyk.chunks_exact(4);
    pixels.flat_map(|ink| [0, 1, 2].map(|c| (255 - ink[3]) - times(ink[c], 255 - ink[3]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ink_takes_light_away() {
        let inks = [0, 0, 0, 0, 255, 0, 0, 0, 0, 255, 255, 0, 10, 20, 30, 255, 100, 150, 200, 50];
        assert_eq!(cmyk_to_rgb(&inks), [255, 255, 255, 0, 255, 255, 255, 0, 0, 0, 0, 0, 125, 84, 44]);
    }

    #[test]
    fn the_memory_bound_does_not_overflow() {
        let limits = ImageLimits { bytes_max: 1, pixels_max: u64::MAX };
        assert_eq!(limits.memory_max(), u64::MAX);
        assert!(limits.check_size(u32::MAX, u32::MAX).is_ok());
    }
}
