//! A chip as a picture for people.

use super::decode::ImageLimits;
use super::prepare::{DecodedView, PrepareError, View};
use super::resize::{Resampling, resize};
use super::{ChipSize, SarStretch};

/// A PNG file of 8-bit RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    pub png: Vec<u8>,
    /// In pixels.
    pub width: u32,
    pub height: u32,
}

/// Draws the picture that [`prepare`](super::prepare()) resizes for a model: decoded, cut and stretched. It is reduced so
/// that no side is longer than `side_max` pixels, and never enlarged; the ratio of its sides is kept.
///
/// # Errors
/// See [`prepare`](super::prepare()).
pub fn preview(
    image: &[u8],
    view: &View,
    side_max: u32,
    limits: &ImageLimits,
) -> Result<Preview, PrepareError> {
    let decoded = DecodedView::new(image, view, SarStretch::default(), limits)?;
    let from = decoded.size();
    let to = reduced(from, side_max as usize);
    let pixels = resize(decoded.rgb(), from, to, Resampling::Bilinear);
    let (width, height) = (to.width as u32, to.height as u32);
    Ok(Preview { png: png(&pixels, width, height), width, height })
}

/// The size of a picture whose longer side is at most `side_max`.
fn reduced(size: ChipSize, side_max: usize) -> ChipSize {
    let longer = size.height.max(size.width);
    if longer <= side_max {
        return size;
    }
    let side = |pixels: usize| {
        let exact = pixels as f64 * side_max as f64 / longer as f64;
        (exact.round() as usize).max(1)
    };
    ChipSize { height: side(size.height), width: side(size.width) }
}

fn png(rgb: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(rgb)?;
        writer.finish()
    });
    written.expect("a picture has pixels, and memory takes them");
    file
}

#[cfg(test)]
mod tests {
    use super::super::{AskedPixelSize, ChipForm, Modality, OrientedBox, PixelSizeRule, prepare};
    use super::*;

    const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 24, pixels_max: 1 << 22 };

    /// Pixels that no compression makes smaller.
    fn noise(width: u32, height: u32) -> Vec<u8> {
        let mut state = 1_u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        png(&(0..width * height * 3).map(|_| byte()).collect::<Vec<_>>(), width, height)
    }

    fn pixels(preview: &Preview) -> Vec<u8> {
        image::load_from_memory(&preview.png).expect("a PNG").into_rgb8().into_raw()
    }

    #[test]
    fn a_preview_has_the_pixels_that_a_model_of_its_size_gets() {
        let file = noise(40, 90);
        let oriented_box = OrientedBox::new(20.0, 45.0, 60.0, 20.0, 30.0).expect("a box");
        let pixel_size = PixelSizeRule::Asked(AskedPixelSize::default());
        for (oriented_box, side_max) in [(None, 90), (None, 45), (Some(oriented_box), 90), (None, 7)] {
            for modality in [Modality::Optical, Modality::Sar] {
                let view = View { modality, pixel_size, oriented_box };
                let drawn = preview(&file, &view, side_max, &LIMITS).expect("a picture");
                let size = ChipSize { height: drawn.height as usize, width: drawn.width as usize };
                let chip = prepare(&file, &view, ChipForm::reference(size), &LIMITS).expect("a chip").chip;
                assert_eq!(pixels(&drawn), chip.pixels(), "{view:?} in {side_max}");
            }
        }
    }

    #[test]
    fn the_longer_side_is_bounded_and_no_side_is_lost() {
        let check = |width, height, side_max, expected| {
            let ChipSize { width, height } = reduced(ChipSize { height, width }, side_max);
            assert_eq!((width, height), expected);
        };
        check(100, 200, 200, (100, 200));
        check(100, 200, 199, (100, 199));
        check(100, 200, 50, (25, 50));
        check(200, 100, 50, (50, 25));
        check(1, 4000, 1000, (1, 1000));
        check(3, 3, 1, (1, 1));
    }

    #[test]
    fn the_largest_picture_fits_a_response() {
        let view = View::plain(Modality::Optical);
        let drawn = preview(&noise(1024, 1024), &view, 1024, &LIMITS).expect("a picture");
        assert_eq!((drawn.width, drawn.height), (1024, 1024));
        assert!((3 << 20..4 << 20).contains(&drawn.png.len()), "{}", drawn.png.len());
    }

    #[test]
    fn what_is_no_chip_has_no_preview() {
        let refused = preview(b"no image", &View::plain(Modality::Sar), 9, &LIMITS).expect_err("no image");
        assert_eq!(refused.reason().name(), "IMAGE_FORMAT_UNKNOWN");
    }
}
