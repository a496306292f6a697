//! The size of a pixel on the ground.

use super::Modality;

/// No satellite image that shows a ship has coarser pixels.
const PIXEL_SIZE_MAX_M: f64 = 100.0;

/// Metres per pixel, across (along a row) and down (along a column) an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelSize {
    x_m: f64,
    y_m: f64,
}

/// What a call states about the pixel size: metres per axis, each optional.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AskedPixelSize {
    x_m: Option<f64>,
    y_m: Option<f64>,
}

/// A pixel size that no image can have.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{} is {value}, it must be above 0 and at most {PIXEL_SIZE_MAX_M} metres", self.field())]
pub struct PixelSizeError {
    down: bool,
    value: f64,
}

impl PixelSizeError {
    /// The invalid field, by its name in the contract.
    pub fn field(&self) -> &'static str {
        if self.down { "pixel_size_y_m" } else { "pixel_size_x_m" }
    }
}

impl PixelSize {
    /// # Errors
    /// If a value is not above 0 and at most 100 metres.
    pub fn new(x_m: f64, y_m: f64) -> Result<Self, PixelSizeError> {
        AskedPixelSize::new(Some(x_m), Some(y_m))?;
        Ok(Self { x_m, y_m })
    }

    /// The pixel size of the training data: 0.75 m for optical, 1.0 m for SAR.
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

    /// The pixel size of the image rotated by a right angle.
    pub fn turned(&self) -> Self {
        Self { x_m: self.y_m, y_m: self.x_m }
    }

    /// The pixel size of an image whose columns run in this direction of the image and whose rows are
    /// perpendicular to it on the ground. The area of a pixel is preserved.
    pub(super) fn along(&self, sin: f64, cos: f64) -> Self {
        let y_m = (self.x_m * sin).hypot(self.y_m * cos);
        Self { x_m: self.x_m * self.y_m / y_m, y_m }
    }
}

impl AskedPixelSize {
    /// # Errors
    /// If a value is not above 0 and at most 100 metres.
    pub fn new(x_m: Option<f64>, y_m: Option<f64>) -> Result<Self, PixelSizeError> {
        for (down, value) in [(false, x_m), (true, y_m)] {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && *value <= PIXEL_SIZE_MAX_M)) {
                return Err(PixelSizeError { down, value });
            }
        }
        Ok(Self { x_m, y_m })
    }

    /// Across and down.
    pub fn axes(&self) -> [Option<f64>; 2] {
        [self.x_m, self.y_m]
    }
}

impl AskedPixelSize {
    /// Filled in from `other` where the call states nothing.
    pub(super) fn or(self, other: PixelSize) -> PixelSize {
        PixelSize { x_m: self.x_m.unwrap_or(other.x_m), y_m: self.y_m.unwrap_or(other.y_m) }
    }
}
