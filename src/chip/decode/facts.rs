//! What a file states in addition to its pixels.

use std::fmt;

use super::super::georeference::GeoTags;

/// What a file states in addition to its pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// How a sample is stored, for messages.
    pub stored: StoredSample,
    /// Complex samples were read as their magnitude.
    pub complex: bool,
    /// Pixels that the file marks as holding no data (nodata value, omitted chunks).
    pub nodata_pixels: usize,
    /// Samples above the 8-bit range that were clipped: gray or float samples of an optical image.
    pub clipped_samples: usize,
    /// The file's orientation swapped rows and columns: the file's x is now y.
    pub transposed: bool,
    /// Tags that georeference the pixels, as stored.
    pub geo_tags: GeoTags,
}

/// The type of a file's samples; formatted as "16-bit unsigned", "complex 32-bit float", ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSample {
    /// Bits per sample; for a complex sample, of both parts together.
    pub bits: u16,
    pub format: SampleFormat,
    /// Samples per pixel, including alpha and others.
    pub channels: u16,
}

/// The number format of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleFormat {
    Unsigned,
    Signed,
    Float,
    ComplexSigned,
    ComplexFloat,
}

impl SampleFormat {
    pub fn is_complex(self) -> bool {
        matches!(self, Self::ComplexSigned | Self::ComplexFloat)
    }
}

impl Default for StoredSample {
    fn default() -> Self {
        Self { bits: 8, format: SampleFormat::Unsigned, channels: 3 }
    }
}

impl fmt::Display for StoredSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits;
        match self.format {
            SampleFormat::Unsigned => write!(f, "{bits}-bit unsigned"),
            SampleFormat::Signed => write!(f, "{bits}-bit signed"),
            SampleFormat::Float => write!(f, "{bits}-bit float"),
            SampleFormat::ComplexSigned => write!(f, "complex {}-bit signed", bits / 2),
            SampleFormat::ComplexFloat => write!(f, "complex {}-bit float", bits / 2),
        }
    }
}
