//! What a file says of its pixels beside them.

use std::fmt;

use super::super::georeference::GeoTags;

/// What a file says of its pixels beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// How a sample is stored, for texts.
    pub stored: StoredSample,
    /// Complex samples were read as their magnitude.
    pub complex: bool,
    /// Pixels that the file says hold no data (nodata value, left-out chunks).
    pub nodata_pixels: usize,
    /// Samples that lie above what 8 bits show and were clipped: gray or float of an optical image.
    pub clipped_samples: usize,
    /// Rows and columns were swapped by the file's orientation: the file's x is now y.
    pub transposed: bool,
    /// Tags that tie pixels to the ground, as stored.
    pub geo_tags: GeoTags,
}

/// The type of a file's samples; as text "16-bit unsigned", "complex 32-bit float", ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSample {
    /// Of a sample; of a complex one, both of its parts.
    pub bits: u16,
    pub format: SampleFormat,
    /// Samples a pixel, alpha and others included.
    pub channels: u16,
}

/// How the bits of a sample are a number.
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
