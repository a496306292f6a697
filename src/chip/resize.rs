//! Resizing that reproduces the reference bit for bit: two passes of fixed-point convolution over bytes.
//!
//! No crate rounds the same way. Per axis, the filter is stretched by the scale when shrinking; its weights
//! are normalised in f64 and rounded to 22 bits; the horizontal pass stores bytes that the vertical pass
//! reads. A pass whose size does not change is skipped. (golden README, section f.)

use super::ChipSize;

/// Fraction bits of a weight.
const PRECISION: u32 = 22;
const CHANNELS: usize = 3;

/// The filter of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// For inference.
    Bilinear,
    /// With a = -0.5, for training.
    Bicubic,
}

impl Resampling {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bilinear | Self::Bicubic => 0.0,
        }
    }
}

/// Resizes interleaved RGB bytes, `[from.height, from.width, 3]`, to `to`; the aspect ratio is not kept.
///
/// # Panics
/// If `pixels` does not have the size `from`, or a side is 0.
pub fn resize(pixels: &[u8], from: ChipSize, to: ChipSize, resampling: Resampling) -> Vec<u8> {
    assert_eq!(pixels.len(), from.height * from.width * CHANNELS, "three bytes a pixel");
    assert!(from.height > 0 && from.width > 0 && to.height > 0 && to.width > 0, "no side is 0");
    let wide = if from.width == to.width {
        pixels.to_vec()
    } else {
        horizontal(pixels, from.width, &Taps::new(from.width, to.width, resampling))
    };
    if from.height == to.height {
        return wide;
    }
    vertical(&wide, to.width, &Taps::new(from.height, to.height, resampling))
}

/// For each output position, the first input position and the weights starting there.
struct Taps(Vec<(usize, Vec<i32>)>);

impl Taps {
    fn new(input: usize, output: usize, resampling: Resampling) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let reach = resampling.support() * stretch;
        let taps = (0..output).map(|position| {
            let centre = (position as f64 + 0.5) * scale;
            // Casting truncates towards zero and saturates, as the recorded rule requires.
            let first = (centre - reach + 0.5) as usize;
            let last = ((centre + reach + 0.5) as usize).min(input);
            let weight = |tap: usize| resampling.weight((tap as f64 - centre + 0.5) * (1.0 / stretch));
            let weights: Vec<f64> = (first..last).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| (weight / sum * f64::from(1 << PRECISION)).round() as i32;
            (first, weights.iter().map(fixed).collect())
        });
        Self(taps.collect())
    }
}

fn horizontal(pixels: &[u8], width: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / width * taps.0.len());
    for row in pixels.chunks_exact(width * CHANNELS) {
        for (first, weights) in &taps.0 {
            let mut sums = [1 << (PRECISION - 1); CHANNELS];
            for (pixel, weight) in row[first * CHANNELS..].chunks_exact(CHANNELS).zip(weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            out.extend(sums.map(byte));
        }
    }
    out
}

fn vertical(pixels: &[u8], width: usize, taps: &Taps) -> Vec<u8> {
    let stride = width * CHANNELS;
    let mut out = Vec::with_capacity(stride * taps.0.len());
    let mut sums = vec![0; stride];
    for (first, weights) in &taps.0 {
        sums.fill(1 << (PRECISION - 1));
        for (row, weight) in pixels[first * stride..].chunks_exact(stride).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().copied().map(byte));
    }
    out
}

fn byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
