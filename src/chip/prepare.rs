//! The whole way from an encoded image to a chip, and the doubts that arise on it.

use super::decode::{self, DecodeError, ImageLimits, Pixels, Raster};
use super::oriented_box::{BoxError, Cut, OrientedBox};
use super::resize::{Resampling, resize};
use super::size_token::{PixelSize, size_token};
use super::{Chip, ChipSize, Modality};

/// Upright ships in the training data are at least this much longer than wide; the slimmest of 165 real chips is
/// 3.1, so that 2 leaves room and still tells a ship that lies across.
const HEIGHT_OVER_WIDTH_MIN: f64 = 2.0;
/// Extent of training chips in metres, with room on either side: 165 real ones are 14 to 76 m wide and 50 to 385 m
/// high.
const WIDTH_RANGE_M: (f64, f64) = (7.0, 115.0);
const HEIGHT_RANGE_M: (f64, f64) = (25.0, 580.0);

/// How to look at an image. Nothing of it is guessed from the image or its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    pub modality: Modality,
    pub pixel_size: PixelSize,
    /// Where the ship lies; the whole image without it.
    pub oriented_box: Option<OrientedBox>,
}

impl View {
    /// The whole image, whose pixels have the default size of its modality.
    pub fn plain(modality: Modality) -> Self {
        Self { modality, pixel_size: PixelSize::default_for(modality), oriented_box: None }
    }
}

/// A chip and the doubts about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    pub chip: Chip,
    pub warnings: Vec<ChipWarning>,
}

/// Why an image gives no chip.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Box(#[from] BoxError),
}

impl PrepareError {
    /// Stable and fit for programs and labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Decode(cause) => cause.reason(),
            Self::Box(_) => "ORIENTED_BOX_INVALID",
        }
    }

    /// The field of the chip at fault.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Decode(_) => "image",
            Self::Box(_) => "oriented_box",
        }
    }
}

/// A chip that the model was not made for, or whose pixels the reference leaves undefined.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ChipWarning {
    #[error("{pixels} SAR pixels are negative and were taken as 0")]
    NegativePixels { pixels: usize },
    #[error("{pixels} SAR pixels are not finite and were taken as 0")]
    NonFinitePixels { pixels: usize },
    #[error("every pixel is 0")]
    AllZero,
    #[error(
        "the chip is {ratio:.2} times as high as wide; ships must be upright, which makes them at least 2"
    )]
    NotUpright { ratio: f64 },
    #[error(
        "the chip is {width_m:.0} m wide and {height_m:.0} m high, far from the ships of the training data"
    )]
    UnusualSize { width_m: f64, height_m: f64 },
    #[error("a part of the oriented box lies outside the image and is black")]
    BoxLeavesImage,
}

impl ChipWarning {
    /// Stable and fit for programs and labels.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NegativePixels { .. } => "NEGATIVE_PIXELS",
            Self::NonFinitePixels { .. } => "NON_FINITE_PIXELS",
            Self::AllZero => "ALL_ZERO",
            Self::NotUpright { .. } => "NOT_UPRIGHT",
            Self::UnusualSize { .. } => "UNUSUAL_SIZE",
            Self::BoxLeavesImage => "BOX_LEAVES_IMAGE",
        }
    }
}

/// Decodes, cuts, stretches (SAR), resizes with the inference filter, and computes the size token.
///
/// A SAR chip is stretched by the maximum of what was cut out, as if it had been cut by hand.
///
/// # Errors
/// What is wrong with the image or the box in it.
pub fn prepare(
    image: &[u8],
    view: &View,
    size: ChipSize,
    limits: &ImageLimits,
) -> Result<Prepared, PrepareError> {
    prepare_resampled(image, view, size, limits, Resampling::Bilinear)
}

/// [`prepare`] with another way to resize: the reference trains on bicubic chips.
///
/// # Errors
/// See [`prepare`].
pub fn prepare_resampled(
    image: &[u8],
    view: &View,
    size: ChipSize,
    limits: &ImageLimits,
    resampling: Resampling,
) -> Result<Prepared, PrepareError> {
    let mut warnings = Vec::new();
    let mut raster = decode::decode(image, view.modality, limits)?;
    let mut pixel_size = view.pixel_size;
    if let Some(oriented_box) = &view.oriented_box {
        let cut: Cut = oriented_box.cut(&raster, pixel_size, limits.pixels_max)?;
        (raster, pixel_size) = (cut.raster, cut.pixel_size);
        warnings.extend(cut.leaves_image.then_some(ChipWarning::BoxLeavesImage));
    }
    let Raster { width, height, pixels, facts: _ } = raster;
    let rgb = match pixels {
        Pixels::Rgb(bytes) => bytes,
        Pixels::Amplitude(values) => stretch(values, &mut warnings),
    };
    if rgb.iter().all(|value| *value == 0) {
        warnings.push(ChipWarning::AllZero);
    }
    let (width_m, height_m) = (width as f64 * pixel_size.x_m(), height as f64 * pixel_size.y_m());
    warnings.extend(doubtful_shape(width_m, height_m));
    let pixels = resize(&rgb, ChipSize { height, width }, size, resampling);
    let size_token = size_token(width_m, height_m).map(|number| number as f32);
    Ok(Prepared { chip: Chip::new(pixels, size, view.modality, size_token), warnings })
}

/// The reference's SAR stretch: divide by the maximum, times 255, in f32 and in that order, truncate.
///
/// Where it is undefined (negative values, values that are not finite, an empty maximum), the pixel is 0.
fn stretch(mut values: Vec<f32>, warnings: &mut Vec<ChipWarning>) -> Vec<u8> {
    let mut clear = |wrong: fn(f32) -> bool| {
        let found = values.iter_mut().filter(|value| wrong(**value));
        found.map(|value| *value = 0.0).count()
    };
    let non_finite = clear(|value| !value.is_finite());
    let negative = clear(|value| value < 0.0);
    warnings.extend((non_finite > 0).then_some(ChipWarning::NonFinitePixels { pixels: non_finite }));
    warnings.extend((negative > 0).then_some(ChipWarning::NegativePixels { pixels: negative }));
    let maximum = values.iter().copied().fold(0.0, f32::max);
    // A cast from float makes the NaN of 0 / 0 a 0.
    values.iter().flat_map(|value| [(value / maximum * 255.0) as u8; 3]).collect()
}

fn doubtful_shape(width_m: f64, height_m: f64) -> impl Iterator<Item = ChipWarning> {
    let ratio = height_m / width_m;
    let within = |metres: f64, (low, high): (f64, f64)| (low..=high).contains(&metres);
    let usual = within(width_m, WIDTH_RANGE_M) && within(height_m, HEIGHT_RANGE_M);
    let lying = (ratio < HEIGHT_OVER_WIDTH_MIN).then_some(ChipWarning::NotUpright { ratio });
    let unusual = (!usual).then_some(ChipWarning::UnusualSize { width_m, height_m });
    lying.into_iter().chain(unusual)
}
