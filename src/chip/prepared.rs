//! Pixels that a caller has already decoded, resized and normalised like a model's preprocessing.

use super::{ChipSize, Modality, ModelInput};
use crate::reason::Reason;

const CHANNELS: usize = 3;

/// The input of a network for one chip; all numbers are finite.
pub type PreparedPixels = ModelInput<f32>;

/// Why numbers are not a valid network input.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PreparedError {
    #[error(
        "there are {found} values, which are not {CHANNELS} channels of {} rows and {} columns", .size.height, .size.width
    )]
    Length { found: usize, size: ChipSize },
    #[error("value {place} is {value}, which is not finite")]
    NotFinite { place: usize, value: f32 },
    #[error("the size token {0:?} is not finite")]
    SizeToken([f32; 3]),
    #[error(
        "the pixels have {} rows and {} columns, the model reads {} and {}",
        .found.height, .found.width, .expected.height, .expected.width
    )]
    Size { found: ChipSize, expected: ChipSize },
}

impl PreparedError {
    /// Stable; suitable for programs and metric labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Length { .. } | Self::Size { .. } => Reason::PixelsMisshapen,
            Self::NotFinite { .. } => Reason::PixelsNotFinite,
            Self::SizeToken(_) => Reason::SizeTokenNotFinite,
        }
    }
}

impl PreparedPixels {
    /// `pixels` are `[3, height, width]`, row-major; the size token is that of [`super::size_token()`].
    ///
    /// # Errors
    /// If the number of pixels is wrong or numbers are not finite.
    pub fn new(
        pixels: Vec<f32>,
        size: ChipSize,
        modality: Modality,
        size_token: [f32; 3],
    ) -> Result<Self, PreparedError> {
        let expected = size.height.checked_mul(size.width).and_then(|area| area.checked_mul(CHANNELS));
        if expected != Some(pixels.len()) {
            return Err(PreparedError::Length { found: pixels.len(), size });
        }
        if let Some(place) = pixels.iter().position(|value| !value.is_finite()) {
            return Err(PreparedError::NotFinite { place, value: pixels[place] });
        }
        if !size_token.iter().all(|value| value.is_finite()) {
            return Err(PreparedError::SizeToken(size_token));
        }
        Ok(Self { pixels: pixels.into_boxed_slice(), size, modality, size_token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finite_numbers_of_the_announced_shape_are_pixels() {
        let size = ChipSize { height: 2, width: 1 };
        let prepared = |pixels: &[f32], token| {
            PreparedPixels::new(pixels.to_vec(), size, Modality::Sar, token)
                .map_err(|cause| cause.reason().name())
        };
        assert!(prepared(&[0.0; 6], [0.0; 3]).is_ok());
        for length in [0, 5, 7] {
            assert_eq!(prepared(&vec![0.0; length], [0.0; 3]), Err("PIXELS_MISSHAPEN"));
        }
        for wrong in [f32::NAN, f32::INFINITY] {
            assert_eq!(prepared(&[0.0, 0.0, wrong, 0.0, 0.0, 0.0], [0.0; 3]), Err("PIXELS_NOT_FINITE"));
            assert_eq!(prepared(&[0.0; 6], [0.0, wrong, 0.0]), Err("SIZE_TOKEN_NOT_FINITE"));
        }
        let endless = ChipSize { height: usize::MAX, width: 2 };
        assert!(PreparedPixels::new(Vec::new(), endless, Modality::Sar, [0.0; 3]).is_err());
    }
}
