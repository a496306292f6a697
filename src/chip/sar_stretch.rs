//! From the amplitudes of a SAR image to bytes.

use serde::{Deserialize, Serialize};

use super::warning::ChipWarning;

/// How far up the amplitudes lie that [`SarStretch::Denoised`] makes black.
const NOISE_PERCENT: f64 = 5.0;
/// Keeps an image of a single amplitude from a division by zero.
const SPAN_MIN: f32 = 1e-8;

/// Which amplitudes become 0 and 255. A model is trained with one, and any other ruins its features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SarStretch {
    /// 0 and the maximum, as in TransOSS.
    #[default]
    Maximum,
    /// The 5th percentile and the maximum: the denoising of MOS (arXiv 2512.03404).
    Denoised,
}

impl SarStretch {
    /// Whether this is that of models which do not name one.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// For display.
    pub fn description(self) -> &'static str {
        match self {
            Self::Maximum => "from 0 to the maximum",
            Self::Denoised => "from the 5th percentile to the maximum",
        }
    }

    /// Three equal bytes for each amplitude, truncated.
    ///
    /// Amplitudes that are negative or not finite count as 0, and are reported in `warnings`.
    pub(super) fn bytes(self, mut values: Vec<f32>, warnings: &mut Vec<ChipWarning>) -> Vec<u8> {
        warnings.extend(clear_impossible(&mut values));
        let maximum = values.iter().copied().fold(0.0, f32::max);
        let noise = match self {
            Self::Maximum => 0.0,
            Self::Denoised => percentile(&values, NOISE_PERCENT),
        };
        let stretched = |value: f32| match self {
            // In this order and in f32, as the reference.
            Self::Maximum => value / maximum * 255.0,
            Self::Denoised => 255.0 * (value - noise) / (maximum - noise + SPAN_MIN),
        };
        // A cast from float makes the NaN of 0 / 0 a 0.
        values.iter().flat_map(|value| [stretched(*value) as u8; 3]).collect()
    }
}

/// Replaces amplitudes that cannot be by 0.
fn clear_impossible(values: &mut [f32]) -> impl Iterator<Item = ChipWarning> {
    let mut clear = |wrong: fn(f32) -> bool| {
        let found = values.iter_mut().filter(|value| wrong(**value));
        found.map(|value| *value = 0.0).count()
    };
    let non_finite = clear(|value| !value.is_finite());
    let negative = clear(|value| value < 0.0);
    let non_finite = (non_finite > 0).then_some(ChipWarning::NonFinitePixels { pixels: non_finite });
    let negative = (negative > 0).then_some(ChipWarning::NegativePixels { pixels: negative });
    non_finite.into_iter().chain(negative)
}

/// The percentile of finite values, interpolated linearly between the two beside it, as numpy's default.
fn percentile(values: &[f32], percent: f64) -> f32 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let place = percent / 100.0 * last as f64;
    let mut sorted = values.to_vec();
    let (_, lower, above) = sorted.select_nth_unstable_by(place as usize, f32::total_cmp);
    let lower = f64::from(*lower);
    let upper = above.iter().copied().min_by(f32::total_cmp).map_or(lower, f64::from);
    let fraction = place.fract();
    let found = if fraction < 0.5 {
        lower + (upper - lower) * fraction
    } else {
        upper - (upper - lower) * (1.0 - fraction)
    };
    found as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(stretch: SarStretch, values: &[f32]) -> (Vec<u8>, usize) {
        let mut warnings = Vec::new();
        let bytes = stretch.bytes(values.to_vec(), &mut warnings);
        assert!(bytes.chunks(3).all(|pixel| pixel == [pixel[0]; 3]));
        (bytes.into_iter().step_by(3).collect(), warnings.len())
    }

    #[test]
    fn the_lowest_become_black_and_the_maximum_white() {
        let ramp: Vec<f32> = (0..=100).map(|value| value as f32).collect();
        let (denoised, _) = bytes(SarStretch::Denoised, &ramp);
        assert_eq!((&denoised[..6], denoised[6], denoised[100]), (&[0; 6][..], 2, 255));
        let (plain, _) = bytes(SarStretch::Maximum, &ramp);
        assert_eq!((plain[1], plain[5], plain[100]), (2, 12, 255));
        for stretch in [SarStretch::Maximum, SarStretch::Denoised] {
            assert_eq!(bytes(stretch, &[0.0; 4]), (vec![0; 4], 0), "{stretch:?}");
            assert_eq!(bytes(stretch, &[]), (vec![], 0), "{stretch:?}");
            let (pixels, warnings) = bytes(stretch, &[f32::NAN, -1.0, 0.0, f32::INFINITY, 8.0]);
            assert_eq!((pixels, warnings), (vec![0, 0, 0, 0, 255], 2), "{stretch:?}");
        }
    }

    #[test]
    fn percentiles_are_interpolated() {
        for (values, percent, expected) in [
            (&[3.0_f32, 1.0, 2.0][..], 50.0, 2.0),
            (&[4.0, 1.0], 5.0, 1.15),
            (&[4.0, 1.0], 75.0, 3.25),
            (&[4.0, 1.0], 100.0, 4.0),
            (&[7.0], 5.0, 7.0),
        ] {
            assert!((percentile(values, percent) - expected).abs() < 1e-6, "{values:?} {percent}");
        }
    }
}
