//! Undoes the differences that a row stores in place of samples.

use super::picture::Predictor;

/// A row's shape: `channels` samples per pixel of `bytes` bytes each.
#[derive(Clone, Copy, Debug)]
pub struct RowShape {
    pub channels: usize,
    pub bytes: usize,
}

/// Undoes the differences within each row of `row_bytes`. The samples are in native byte order, except those
/// of [`Predictor::Float`], which are ordered by significance and converted to it.
pub fn undo(predictor: Predictor, chunk: &mut [u8], row_bytes: usize, shape: RowShape) {
    match predictor {
        Predictor::None => {}
        Predictor::Horizontal => {
            for row in chunk.chunks_exact_mut(row_bytes) {
                match shape.bytes {
                    1 => sum(row, shape.channels, |[a], [b]: [u8; 1]| [a.wrapping_add(b)]),
                    2 => sum(row, shape.channels, |a, b| {
                        u16::from_ne_bytes(a).wrapping_add(u16::from_ne_bytes(b)).to_ne_bytes()
                    }),
                    4 => sum(row, shape.channels, |a, b| {
                        u32::from_ne_bytes(a).wrapping_add(u32::from_ne_bytes(b)).to_ne_bytes()
                    }),
                    _ => sum(row, shape.channels, |a, b| {
                        u64::from_ne_bytes(a).wrapping_add(u64::from_ne_bytes(b)).to_ne_bytes()
                    }),
                }
            }
        }
        Predictor::Float => {
            let mut scratch = vec![0; row_bytes];
            for row in chunk.chunks_exact_mut(row_bytes) {
                sum(row, shape.channels, |[a], [b]: [u8; 1]| [a.wrapping_add(b)]);
                scratch.copy_from_slice(row);
                interleave(&scratch, row, shape.bytes);
            }
        }
    }
}

/// Adds to each sample of `N` bytes the one `channels` samples before it.
fn sum<const N: usize>(row: &mut [u8], channels: usize, add: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    let (samples, _) = row.as_chunks_mut::<N>();
    for index in channels..samples.len() {
        samples[index] = add(samples[index - channels], samples[index]);
    }
}

/// From all first bytes, all second bytes, ... to consecutive samples.
fn interleave(planes: &[u8], row: &mut [u8], bytes: usize) {
    let samples = row.len() / bytes;
    for (sample, out) in row.chunks_exact_mut(bytes).enumerate() {
        for (significance, byte) in out.iter_mut().enumerate() {
            let plane = if cfg!(target_endian = "little") { bytes - 1 - significance } else { significance };
            *byte = planes[plane * samples + sample];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The differences of a row, as libtiff computes them.
    fn differences(row: &[u8], channels: usize, bytes: usize) -> Vec<u8> {
        let sample = |index: usize| {
            let mut wide = [0; 8];
            wide[..bytes].copy_from_slice(&row[index * bytes..(index + 1) * bytes]);
            u64::from_le_bytes(wide)
        };
        let difference = |index: usize| match index.checked_sub(channels) {
            Some(before) => sample(index).wrapping_sub(sample(before)),
            None => sample(index),
        };
        (0..row.len() / bytes).flat_map(|index| difference(index).to_le_bytes()[..bytes].to_vec()).collect()
    }

    proptest! {
        #[test]
        fn horizontal_differences_are_undone(
            channels in 1..6usize, size in 0..4u32, pixels in 1..20usize, rows in 1..4usize, seed in any::<u64>()
        ) {
            let bytes = 1 << size;
            let row_bytes = pixels * channels * bytes;
            let samples: Vec<u8> =
                (0..rows * row_bytes).map(|i| (seed.wrapping_mul(2 * i as u64 + 1) >> 32) as u8).collect();
            let mut chunk: Vec<u8> =
                samples.chunks(row_bytes).flat_map(|row| differences(row, channels, bytes)).collect();
            undo(Predictor::Horizontal, &mut chunk, row_bytes, RowShape { channels, bytes });
            prop_assert_eq!(chunk, samples);
        }

        #[test]
        fn differences_of_floats_are_undone(
            channels in 1..4usize, bytes in prop::sample::select(vec![2usize, 4, 8]), pixels in 1..20usize,
            seed in any::<u64>()
        ) {
            let row_bytes = pixels * channels * bytes;
            let samples: Vec<u8> =
                (0..row_bytes).map(|i| (seed.wrapping_mul(2 * i as u64 + 1) >> 32) as u8).collect();
            let values = pixels * channels;
            let planes: Vec<u8> = (0..row_bytes)
                .map(|at| samples[at % values * bytes + (bytes - 1 - at / values)])
                .collect();
            let mut chunk = differences(&planes, channels, 1);
            undo(Predictor::Float, &mut chunk, row_bytes, RowShape { channels, bytes });
            prop_assert_eq!(chunk, samples);
        }
    }
}
