//! Inputs of a linear layer as u8, with a scale and a zero point for each row.

use super::kernel::{Kernel, Width};
use super::layout::{DEPTH, ROUND};
use super::memory::{LINE, Lines};
use super::operands::Codes;

/// Input `k` of row `m` is about `scales[m] * (codes[m][k] - zeros[m])`. The memory is used again for the next rows.
#[derive(Debug, Default)]
pub struct Rows {
    codes: Lines,
    stride: usize,
    scaling: Vec<Scaling>,
}

/// How the codes of a row are read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scaling {
    pub scale: f32,
    pub zero: i32,
}

impl Rows {
    /// Rounds rows of `inputs` numbers so that a row's range, which includes 0, spans all codes of `kernel`. Rows with
    /// a number that is not finite get a scale that is not a number.
    pub fn quantize(&mut self, rows: &[f32], inputs: usize, kernel: Kernel) {
        let count = rows.len() / inputs.max(1);
        // An odd number of cache lines spreads a column of rows over all sets of a cache.
        self.stride = inputs.next_multiple_of(DEPTH) + LINE;
        if (self.stride / LINE).is_multiple_of(2) {
            self.stride += LINE;
        }
        self.codes.reserve(count * self.stride);
        self.scaling.clear();
        let codes = self.codes.as_bytes_mut().chunks_exact_mut(self.stride);
        let rows = rows.chunks_exact(inputs.max(1)).zip(codes);
        let max = f32::from(kernel.code_max());
        match kernel.width() {
            #[cfg(target_arch = "x86_64")]
            Width::Avx512 => {
                // SAFETY: a kernel is only chosen where the processor has its instructions.
                let round = |(row, codes)| unsafe { avx512(row, codes, max) };
                self.scaling.extend(rows.map(round));
            }
            #[cfg(target_arch = "x86_64")]
            Width::Avx2 => {
                // SAFETY: as above.
                let round = |(row, codes)| unsafe { avx2(row, codes, max) };
                self.scaling.extend(rows.map(round));
            }
            Width::Portable => rows.for_each(|(row, codes)| self.scaling.push(one(row, codes, max))),
        }
    }

    /// How the codes of each row are read.
    pub fn scaling(&self) -> &[Scaling] {
        &self.scaling
    }

    /// Up to `count` rows from row `start`.
    pub fn codes(&self, start: usize, count: usize) -> Codes<'_> {
        let count = count.min(self.scaling.len() - start);
        Codes { codes: &self.codes.as_bytes()[start * self.stride..], stride: self.stride, count }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn avx512(row: &[f32], codes: &mut [u8], max: f32) -> Scaling {
    one(row, codes, max)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(row: &[f32], codes: &mut [u8], max: f32) -> Scaling {
    one(row, codes, max)
}

/// Independent lanes, so that the compiler uses vectors.
const LANES: usize = 64;

#[inline(always)]
fn one(row: &[f32], codes: &mut [u8], max: f32) -> Scaling {
    let (low, high) = range(row);
    // Not a number where one of the inputs is not, or is infinite.
    let scale = (high - low) / max;
    let per_step = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let zero = (-low * per_step + ROUND) - ROUND;
    let code = |input: f32| {
        let exact = input * per_step + zero;
        // Comparisons, unlike `max`, are one instruction each; whatever is not a number becomes 0.
        let exact = if exact > 0.0 { exact } else { 0.0 };
        let exact = if exact < max { exact } else { max };
        (exact + ROUND).to_bits() as u8
    };
    let (wide, rest) = row.as_chunks::<LANES>();
    let (wide_codes, rest_codes) = codes.as_chunks_mut::<LANES>();
    for (inputs, codes) in wide.iter().zip(wide_codes.iter_mut()) {
        for (input, of_input) in inputs.iter().zip(codes) {
            *of_input = code(*input);
        }
    }
    let rest_codes = wide_codes[wide.len()..].as_flattened_mut().iter_mut().chain(rest_codes);
    for (input, of_input) in rest.iter().zip(rest_codes) {
        *of_input = code(*input);
    }
    Scaling { scale, zero: zero as i32 }
}

/// The range of a row and 0; not numbers where the row has one that is not finite.
#[inline(always)]
fn range(row: &[f32]) -> (f32, f32) {
    let (mut low, mut high, mut finite) = ([0.0_f32; LANES], [0.0_f32; LANES], [0.0_f32; LANES]);
    let (wide, rest) = row.as_chunks::<LANES>();
    for inputs in wide {
        for lane in 0..LANES {
            let input = inputs[lane];
            low[lane] = if input < low[lane] { input } else { low[lane] };
            high[lane] = if input > high[lane] { input } else { high[lane] };
            finite[lane] += input * 0.0;
        }
    }
    for (lane, input) in rest.iter().enumerate() {
        low[lane] = if *input < low[lane] { *input } else { low[lane] };
        high[lane] = if *input > high[lane] { *input } else { high[lane] };
        finite[lane] += input * 0.0;
    }
    // By halves, as vectors are.
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            low[lane] = if low[lane + half] < low[lane] { low[lane + half] } else { low[lane] };
            high[lane] = if high[lane + half] > high[lane] { high[lane + half] } else { high[lane] };
            finite[lane] += finite[lane + half];
        }
        half /= 2;
    }
    (low[0] + finite[0], high[0] + finite[0])
}
