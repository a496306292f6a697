//! Doubts about a picture, before it is resized: that nearly nothing is left of it, or that another kind of sensor took
//! it. A doubt changes no pixel.
//!
//! The thresholds were measured on real chips; `docs/warnings.md` has the figures, and [`tests`] repeats them.

#[cfg(test)]
mod tests;

use super::decode::Facts;
use super::{ChipWarning, Modality};

/// The highest of the 256 levels.
const WHITE: u8 = 255;
/// White pixels of a picture that lost its bright parts: where samples were clipped on the way to 8 bits, and where
/// nothing is known of them. No pixel of 111 real optical chips is white.
const CLIPPED_SHARE: f64 = 0.01;
const WHITE_SHARE: f64 = 0.5;
/// Levels that hold 98 % of a picture of which nearly nothing is left; 165 real chips have 58 at least.
const LEVELS_MAX: usize = 16;
/// Below this level lie 99 % of the pixels of a SAR chip, but for the brightest, if those decided the stretch alone; of
/// 54 real ones, the darkest reaches 119.
const OUTSHONE_LEVEL: u8 = 48;
/// Pixels without data that matter.
const NO_DATA_SHARE: f64 = 0.1;
/// Columns and rows of a corner that are all white where data are missing.
const CORNER: usize = 3;
/// Channels that differ by more than the first show a colour, and a picture with more of such pixels than the second
/// has colours; 47 % of every real optical chip have one.
const COLOUR: u8 = 8;
const COLOURED_SHARE: f64 = 0.05;
/// Channels that differ by no more are equal, but for what a lossy codec leaves, in all but this share of pixels.
const EQUAL: u8 = 2;
const UNEQUAL_SHARE: f64 = 0.01;
/// What [`Gray::calm`] is below in optical, and above in SAR images. Between the two nothing is said.
const CALM_OPTICAL: f64 = 0.065;
const CALM_SAR: f64 = 0.075;
/// Windows with a darker mean say more of rounding than of speckle.
const WINDOW_MEAN_MIN: u32 = 8;
/// Fewer windows say nothing.
const WINDOWS_MIN: usize = 50;
/// More windows say nothing new.
const WINDOWS_MAX: usize = 1 << 16;

/// A picture as the model will see it, but for its size.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// Row by row, RGB interleaved.
    pub rgb: &'a [u8],
    pub width: usize,
    pub modality: Modality,
    pub framing: Framing,
    pub facts: &'a Facts,
}

/// How a picture came out of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It is the whole image.
    Whole,
    /// Its pixels are some of the image's.
    Copied,
    /// Its pixels lie between those of the image, which takes away speckle.
    Resampled,
}

/// The doubts about a picture; none about one that the model was made for.
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
        // What is left of a picture says which sensor took it only if it is most of it.
        None => doubts.extend(other_sensor(&gray, picture)),
    }
    doubts
}

/// Why nearly nothing is left of a picture.
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

/// Why another kind of sensor may have taken a picture.
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
    /// Pixels of each level.
    levels: [usize; 256],
}

impl Gray {
    /// Luma as Pillow has it (ITU-R 601, rounded).
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

    /// The level at or below which a share of the pixels lies that are below `end`.
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

    /// The level below which 99 % of the pixels lie, but for the white ones.
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

    /// How much neighbouring pixels vary where they vary least: over all windows of 3 x 3 pixels, the tenth percentile
    /// of their coefficient of variation. Speckle is everywhere in a SAR image, while every optical one has calm water
    /// or a calm deck. Nothing where too few windows are bright enough and free of white.
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

    /// Deviation over mean of the window whose upper left pixel this is.
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
