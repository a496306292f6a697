//! A ship cut out of a satellite image, ready for the model.

#[cfg(test)]
mod cases;
mod decode;
mod doubts;
mod georeference;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod jpeg;
#[cfg(test)]
mod oracle;
mod oriented_box;
mod pixel_size;
mod pixel_size_rule;
mod prepare;
mod prepared;
mod preprocessing;
mod preview;
mod resize;
mod sar_stretch;
mod size_token;
mod warning;

pub use decode::{DecodeError, ImageLimits};
pub use georeference::may_say_its_size;
pub use oriented_box::{BoxError, OrientedBox};
pub use pixel_size::{AskedPixelSize, PixelSize, PixelSizeError};
pub use pixel_size_rule::PixelSizeRule;
pub use prepare::{PrepareError, Prepared, View, prepare, prepare_resampled};
pub use prepared::{PreparedError, PreparedPixels};
pub use preprocessing::Preprocessing;
pub use preview::{Preview, preview};
pub use resize::{Resampling, resize};
pub use sar_stretch::SarStretch;
pub use size_token::size_token;
pub use warning::ChipWarning;

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The sensor family that imaged a ship; it selects the patch embedding with which TransOSS reads the chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Modality {
    Optical,
    Sar,
}

impl Modality {
    /// As in configuration, labels and command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Optical => "optical",
            Self::Sar => "sar",
        }
    }
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Rows and columns that a model reads; 256 x 128 for the authors' model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipSize {
    pub height: usize,
    pub width: usize,
}

/// What a model decides of a chip's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChipForm {
    pub size: ChipSize,
    pub sar_stretch: SarStretch,
}

impl ChipForm {
    /// As TransOSS reads chips.
    pub const fn reference(size: ChipSize) -> Self {
        Self { size, sar_stretch: SarStretch::Maximum }
    }
}

/// An encoded image and how to interpret it, as sent by a caller.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceChip {
    pub image: Bytes,
    pub view: View,
}

/// The model's input for one ship: pixels in the model's size, and the metadata that TransOSS uses.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInput<P> {
    pixels: Box<[P]>,
    size: ChipSize,
    modality: Modality,
    size_token: [f32; 3],
}

/// A decoded and resized chip: `size.height * size.width * 3` bytes, row by row, RGB interleaved.
pub type Chip = ModelInput<u8>;

impl Chip {
    /// Combines pixels that already have the model's size with the metadata that TransOSS uses.
    ///
    /// # Panics
    /// If `pixels` does not hold `height * width * 3` bytes.
    pub fn new(pixels: Vec<u8>, size: ChipSize, modality: Modality, size_token: [f32; 3]) -> Self {
        assert_eq!(pixels.len(), size.height * size.width * 3, "a chip has three bytes a pixel");
        Self { pixels: pixels.into_boxed_slice(), size, modality, size_token }
    }

    /// Width and height in metres, to the precision of the size token.
    pub fn extent_m(&self) -> [f64; 2] {
        size_token::extent_m(self.size_token)
    }
}

impl<P> ModelInput<P> {
    /// Row-major: `[height, width, 3]` of a [`Chip`], `[3, height, width]` of [`PreparedPixels`].
    pub fn pixels(&self) -> &[P] {
        &self.pixels
    }

    pub fn size(&self) -> ChipSize {
        self.size
    }

    pub fn modality(&self) -> Modality {
        self.modality
    }

    /// Standardised width, standardised height, height / width (the reference's order).
    pub fn size_token(&self) -> [f32; 3] {
        self.size_token
    }
}
