//! Doubts about a picture before it is resized: almost no detail is left in it, or it was taken by another
//! kind of sensor. A doubt changes no pixel.
//!
//! The thresholds were measured on real chips; `docs/warnings.md` has the figures, and `tests` repeats them.

#[cfg(test)]
mod tests;

use super::decode::Facts;
use super::{ChipWarning, Modality};

/// The highest of the 256 levels.
const WHITE: u8 = 255;
/// Fraction of white pixels from which a picture has lost its bright parts: the first where samples were
/// clipped on the way to 8 bits, the second where their history is unknown. No pixel of 111 real optical
/// chips is white.
const CLIPPED_SHARE: f64 = 0.01;
const WHITE_SHARE: f64 = 0.5;
/// Maximum number of levels that hold 98 % of a picture with almost no detail left; 165 real chips
/// have at least 58.
const LEVELS_MAX: usize = 16;
/// Level below which 99 % of the pixels of a SAR chip lie, apart from the brightest ones, if those alone
/// determined the stretch. Of 54 real chips, the darkest reaches 119.
const OUTSHONE_LEVEL: u8 = 48;
/// Fraction of pixels without data that matters.
const NO_DATA_SHARE: f64 = 0.1;
/// Columns and rows of a corner that are all white where data are missing.
const CORNER: usize = 3;
/// Channels that differ by more than the first value show a colour, and a picture in which more than the
/// second fraction of pixels do is a colour picture; 47 % of the pixels of every real optical chip do.
const COLOUR: u8 = 8;
const COLOURED_SHARE: f64 = 0.05;
/// Channels that differ by at most this much are equal apart from artefacts of a lossy codec, in
/// all but this fraction of pixels.
const EQUAL: u8 = 2;
const UNEQUAL_SHARE: f64 = 0.01;
/// [`Gray::calm`] is below the first value in optical images and above the second in SAR images.
/// Values in between are not classified.
const CALM_OPTICAL: f64 = 0.065;
const CALM_SAR: f64 = 0.075;
/// Windows with a darker mean are dominated by rounding rather than speckle.
const WINDOW_MEAN_MIN: u32 = 8;
/// Fewer windows are inconclusive.
const WINDOWS_MIN: usize = 50;
/// More windows add no information.
const WINDOWS_MAX: usize = 1 << 16;

/// A picture as the model will see it, except for its size.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// Row by row, RGB interleaved.
    pub rgb: &'a [u8],
    pub width: usize,
    pub modality: Modality,
    pub framing: Framing,
    pub facts: &'a Facts,
}

/// How a picture was obtained from its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It is the whole image.
    Whole,
    /// Its pixels are a subset of the image's.
    Copied,
    /// Its pixels are interpolated between those of the image, which removes speckle.
    Resampled,
}

/// The doubts about a picture; empty for a picture that the model was made for.
pub fn doubts(picture: &Picture<'_>) -> Vec<ChipWarning> {
    let facts = picture.facts;
    let mut doubts = Vec::new();
    doubts.extend(facts.complex.then_some(ChipWarning::ComplexMagnitude));
    let pixels = picture.rgb.len() / 3;
    let without_data = facts.nodata_pixels as f64 / pixels as f64;
    if picture.framing == Framing::Whole && without_data >= NO_DATA_SHARE {
        doubts.push(ChipWarning::NoData { share: without_data });
    }
    let gray = Gray::of(picture.rgb, picture.width);
    if gray.levels[0] == pixels {
        doubts.push(ChipWarning::AllZero);
        return doubts;
    }
    match lost(&gray, picture) {
        Some(lost) => doubts.push(lost),
        // The remaining detail only indicates the sensor if it is most of the picture.
        None => doubts.extend(other_sensor(&gray, picture)),
    }
    doubts
}

/// Why almost no detail is left in a picture.
fn lost(gray: &Gray, picture: &Picture<'_>) -> Option<ChipWarning> {
    let bits = picture.facts.stored.bits;
    let white = gray.share(WHITE);
    let levels = gray.levels_used();
    match picture.modality {
        Modality::Optical => {
            let was_clipped = picture.facts.clipped_samples > 0;
            let clipped = white >= if was_clipped { CLIPPED_SHARE } else { WHITE_SHARE };
            if clipped {
                return Some(ChipWarning::Clipped { share: white, bits });
            }
        }
        Modality::Sar => {
            if gray.has_white_corner() {
                return Some(ChipWarning::BrightCorner);
            }
            let level = gray.level_of_most();
            if level < OUTSHONE_LEVEL {
                return Some(ChipWarning::Outshone { level });
            }
        }
    }
    (levels <= LEVELS_MAX).then_some(ChipWarning::FewLevels { levels, bits })
}

/// Why a picture may have been taken by another kind of sensor.
fn other_sensor(gray: &Gray, picture: &Picture<'_>) -> Option<ChipWarning> {
    let differing = |by: u8| {
        let (pixels, _) = picture.rgb.as_chunks::<3>();
        let spread = |[r, g, b]: &[u8; 3]| r.max(g).max(b) - r.min(g).min(b);
        pixels.iter().filter(|pixel| spread(pixel) > by).count() as f64 / pixels.len() as f64
    };
    match picture.modality {
        Modality::Optical => {
            let speckled =
                differing(EQUAL) <= UNEQUAL_SHARE && gray.calm().is_some_and(|calm| calm > CALM_SAR);
            speckled.then_some(ChipWarning::LooksLikeSar)
        }
        Modality::Sar if differing(COLOUR) > COLOURED_SHARE => Some(ChipWarning::Coloured),
        Modality::Sar if picture.framing == Framing::Resampled => None,
        Modality::Sar => {
            gray.calm().is_some_and(|calm| calm < CALM_OPTICAL).then_some(ChipWarning::Speckleless)
        }
    }
}

/// A picture without its colours.
struct Gray {
    pixels: Vec<u8>,
    width: usize,
    /// Number of pixels at each level.
    levels: [usize; 256],
}

impl Gray {
    /// Luma as computed by Pillow (ITU-R 601, rounded).
    fn of(rgb: &[u8], width: usize) -> Self {
        let luma = |&[r, g, b]: &[u8; 3]| {
            ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
        };
        let pixels: Vec<u8> = rgb.as_chunks::<3>().0.iter().map(luma).collect();
        let mut levels = [0; 256];
        pixels.iter().for_each(|level| levels[usize::from(*level)] += 1);
        Self { pixels, width, levels }
    }

    fn share(&self, level: u8) -> f64 {
        self.levels[usize::from(level)] as f64 / self.pixels.len() as f64
    }

    /// The level at or below which this fraction of the pixels below `end` lies.
    fn quantile(&self, end: usize, share: f64) -> usize {
        let below = &self.levels[..end];
        let wanted = below.iter().sum::<usize>() as f64 * share;
        let mut seen = 0;
        let reached = |(_, pixels): &(usize, &usize)| {
            seen += **pixels;
            seen as f64 >= wanted
        };
        below.iter().enumerate().find(reached).map_or(0, |(level, _)| level)
    }

    /// Levels between the darkest and the brightest 1 % of the pixels.
    fn levels_used(&self) -> usize {
        let (low, high) = (self.quantile(256, 0.01), self.quantile(256, 0.99));
        self.levels[low..=high].iter().filter(|pixels| **pixels > 0).count()
    }

    /// The level below which 99 % of the non-white pixels lie.
    fn level_of_most(&self) -> u8 {
        self.quantile(usize::from(WHITE), 0.99) as u8
    }

    fn has_white_corner(&self) -> bool {
        let (width, height) = (self.width, self.pixels.len() / self.width);
        if width < 2 * CORNER || height < 2 * CORNER {
            return false;
        }
        let white = |left: usize, top: usize| {
            (top..top + CORNER).all(|row| {
                let from = row * width + left;
                self.pixels[from..from + CORNER].iter().all(|level| *level == WHITE)
            })
        };
        [0, height - CORNER].iter().any(|top| white(0, *top) || white(width - CORNER, *top))
    }

    /// How much neighbouring pixels vary where they vary least: over all windows of 3 x 3 pixels, the tenth
    /// percentile of their coefficient of variation. Speckle is everywhere in a SAR image, while every
    /// optical image has calm water or a calm deck. `None` if too few windows are bright enough and free of
    /// white.
    fn calm(&self) -> Option<f64> {
        let (width, height) = (self.width, self.pixels.len() / self.width);
        let windows = width.saturating_sub(2) * height.saturating_sub(2);
        let step = windows.div_ceil(WINDOWS_MAX).max(1);
        let mut variations: Vec<f64> = (0..windows)
            .step_by(step)
            .filter_map(|index| self.variation(index % (width - 2), index / (width - 2)))
            .collect();
        if variations.len() < WINDOWS_MIN {
            return None;
        }
        let tenth = variations.len() / 10;
        Some(*variations.select_nth_unstable_by(tenth, f64::total_cmp).1)
    }

    /// Standard deviation over mean of the window with this upper left pixel.
    fn variation(&self, left: usize, top: usize) -> Option<f64> {
        let rows = (top..top + 3).map(|row| &self.pixels[row * self.width + left..][..3]);
        let (mut sum, mut squares, mut white) = (0, 0, false);
        for level in rows.flatten() {
            sum += u32::from(*level);
            squares += u32::from(*level).pow(2);
            white |= *level == WHITE;
        }
        if white || sum < 9 * WINDOW_MEAN_MIN {
            return None;
        }
        let (sum, squares) = (f64::from(sum), f64::from(squares));
        let variance = (squares - sum * sum / 9.0) / 8.0;
        Some(variance.sqrt() / (sum / 9.0))
    }
}
