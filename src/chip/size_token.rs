//! What TransOSS knows of a ship's size: three numbers from the chip's extent in metres.

use super::Modality;

/// Scale, mean and deviation by which the reference standardises a chip's width and height in metres.
const WIDTH: (f64, f64, f64) = (93.0, 0.434, 0.031);
const HEIGHT: (f64, f64, f64) = (427.0, 0.461, 0.031);
/// No satellite that shows a ship has coarser pixels.
const PIXEL_SIZE_MAX_M: f64 = 100.0;

/// Metres a pixel, across (along a row) and down (along a column) an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelSize {
    x_m: f64,
    y_m: f64,
}

/// A pixel size that no image has.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{} is {value}, it must be above 0 and at most {PIXEL_SIZE_MAX_M} metres", self.field())]
pub struct PixelSizeError {
    down: bool,
    value: f64,
}

impl PixelSizeError {
    /// The field at fault, as the contract names it.
    pub fn field(&self) -> &'static str {
        if self.down { "pixel_size_y_m" } else { "pixel_size_x_m" }
    }
}

impl PixelSize {
    /// # Errors
    /// A value that is not above 0 and at most 100 metres.
    pub fn new(x_m: f64, y_m: f64) -> Result<Self, PixelSizeError> {
        for (down, value) in [(false, x_m), (true, y_m)] {
            if !(value > 0.0 && value <= PIXEL_SIZE_MAX_M) {
                return Err(PixelSizeError { down, value });
            }
        }
        Ok(Self { x_m, y_m })
    }

    /// That of the training data: 0.75 m for optical, 1.0 m for SAR.
    pub fn default_for(modality: Modality) -> Self {
        let metres = match modality {
            Modality::Optical => 0.75,
            Modality::Sar => 1.0,
        };
        Self { x_m: metres, y_m: metres }
    }

    pub fn x_m(&self) -> f64 {
        self.x_m
    }

    pub fn y_m(&self) -> f64 {
        self.y_m
    }

    /// That of the image turned by a right angle.
    pub fn turned(&self) -> Self {
        Self { x_m: self.y_m, y_m: self.x_m }
    }
}

/// Standardised width, standardised height, height / width, from the original extent in metres.
///
/// The reference computes in f64 and rounds to f32; the third number is not standardised.
pub fn size_token(width_m: f64, height_m: f64) -> [f64; 3] {
    let standardise = |metres: f64, (scale, mean, deviation)| (metres / scale - mean) / deviation;
    [standardise(width_m, WIDTH), standardise(height_m, HEIGHT), height_m / width_m]
}

/// Width and height in metres of a chip with this size token.
pub(super) fn extent_m([width, height, _]: [f32; 3]) -> [f64; 2] {
    let metres =
        |token: f32, (scale, mean, deviation): (f64, f64, f64)| (f64::from(token) * deviation + mean) * scale;
    [metres(width, WIDTH), metres(height, HEIGHT)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extent_can_be_read_off_the_token() {
        for (width, height) in [(14.0, 50.0), (40.25, 213.0), (76.0, 385.0)] {
            let found = extent_m(size_token(width, height).map(|value| value as f32));
            assert!((found[0] - width).abs() < 1e-4 && (found[1] - height).abs() < 1e-4, "{found:?}");
        }
    }

    #[test]
    fn only_positive_finite_pixel_sizes_exist() {
        for value in [0.0, -0.75, f64::NAN, f64::INFINITY, 100.1] {
            assert_eq!(PixelSize::new(value, 1.0).expect_err("bad").field(), "pixel_size_x_m");
            assert_eq!(PixelSize::new(1.0, value).expect_err("bad").field(), "pixel_size_y_m");
        }
        assert!(PixelSize::new(0.1, 100.0).is_ok());
    }
}
