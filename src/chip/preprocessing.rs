//! The parts of the path from an image to its network's input that depend on the model.

use super::{ChipForm, ChipSize, SarStretch};

/// The parts of preprocessing that depend on the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocessing {
    /// Rows and columns that the network reads.
    pub size: ChipSize,
    pub sar_stretch: SarStretch,
    /// Subtracted from pixels in 0..1, RGB.
    pub mean: [f32; 3],
    /// Divided by after the subtraction.
    pub deviation: [f32; 3],
    /// Everything except the size, for the model's digest: changing it makes different models of
    /// the same weights.
    pub description: &'static str,
}

impl Preprocessing {
    /// The reference's preprocessing.
    pub const fn reference(size: ChipSize) -> Self {
        Self {
            size,
            sar_stretch: SarStretch::Maximum,
            mean: [0.485, 0.456, 0.406],
            deviation: [0.229, 0.224, 0.225],
            description: "rgb u8, bilinear resize of Pillow 11 (antialiased, fixed point), /255, \
                 mean 0.485 0.456 0.406, std 0.229 0.224 0.225, size token of the reference",
        }
    }

    /// The reference's with another stretch of SAR images.
    pub const fn stretched(size: ChipSize, sar_stretch: SarStretch) -> Self {
        match sar_stretch {
            SarStretch::Maximum => Self::reference(size),
            SarStretch::Denoised => Self {
                sar_stretch,
                description: "rgb u8, sar from its percentile 5 (linear) to its maximum, bilinear resize of Pillow 11 \
                     (antialiased, fixed point), /255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225, size token of the \
                     reference",
                ..Self::reference(size)
            },
        }
    }

    /// What it decides before pixels are normalised.
    pub const fn form(&self) -> ChipForm {
        ChipForm { size: self.size, sar_stretch: self.sar_stretch }
    }

    /// A channel value as the network reads it.
    pub fn normalised(&self, value: u8, channel: usize) -> f32 {
        (f32::from(value) / 255.0 - self.mean[channel]) / self.deviation[channel]
    }
}
