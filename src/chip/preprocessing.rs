//! The parts of the path from an image to its network's input that depend on the model.

use super::ChipSize;

/// The parts of preprocessing that depend on the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocessing {
    /// Rows and columns that the network reads.
    pub size: ChipSize,
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
            mean: [0.485, 0.456, 0.406],
            deviation: [0.229, 0.224, 0.225],
            description: "rgb u8, bilinear resize of Pillow 11 (antialiased, fixed point), /255, \
                 mean 0.485 0.456 0.406, std 0.229 0.224 0.225, size token of the reference",
        }
    }
    /// A channel value as the network reads it.
    pub fn normalised(&self, value: u8, channel: usize) -> f32 {
        (f32::from(value) / 255.0 - self.mean[channel]) / self.deviation[channel]
    }
}
