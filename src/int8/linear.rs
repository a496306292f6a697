//! A linear layer in int8.

use std::cell::RefCell;
use std::thread;

use super::finish::{self, After, Block, Columns, Residual};
use super::kernel::Kernel;
use super::layout::PANEL;
#[cfg(target_arch = "x86_64")]
use super::memory::LINE;
use super::rounded::Rounded;
use super::rows::Rows;
use super::weight::Weight;

/// Bytes of codes that stay in the second-level cache while all weights pass by.
const CHUNK: usize = 768 << 10;

/// `x W^T + b`, its weights rounded once and shared by whoever computes with it.
#[derive(Debug)]
pub struct Linear8 {
    weight: Weight,
    /// Padded to whole panels.
    bias: Vec<f32>,
}

#[derive(Default)]
struct Scratch {
    rows: Rows,
    sums: Vec<[i32; PANEL]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Linear8 {
    /// For the fastest kernel here.
    ///
    /// # Panics
    /// If there are other than as many biases as outputs.
    pub fn new(weight: &Rounded, bias: &[f32]) -> Self {
        Self::with(Kernel::detect(), weight, bias)
    }

    /// For a kernel that the processor supports.
    pub(super) fn with(kernel: Kernel, weight: &Rounded, bias: &[f32]) -> Self {
        assert_eq!(weight.outputs(), bias.len(), "a bias for every output");
        let weight = Weight::new(weight, kernel);
        let mut bias = bias.to_vec();
        bias.resize(weight.panels() * PANEL, 0.0);
        Self { weight, bias }
    }

    pub fn inputs(&self) -> usize {
        self.weight.inputs
    }

    pub fn outputs(&self) -> usize {
        self.weight.outputs
    }

    /// Computes rows `[rows, inputs]` to `out`, `[rows, outputs]`, on several threads if there are enough rows.
    ///
    /// # Panics
    /// If the number of outputs, or of residuals, is not that of the rows.
    pub fn forward(&self, x: &[f32], after: After, residual: Residual<'_>, out: &mut [f32], threads: usize) {
        let (inputs, outputs) = (self.weight.inputs, self.weight.outputs);
        let count = x.len() / inputs;
        assert!(x.len() == count * inputs && out.len() == count * outputs, "as many outputs as rows");
        assert!(residual.is_none_or(|residual| residual.len() == out.len()), "a residual for every output");
        let most = (CHUNK / self.weight.depth()).max(self.weight.kernel.rows());
        let parts = count.div_ceil(most).next_multiple_of(threads.max(1));
        let rows = count.div_ceil(parts.max(1)).next_multiple_of(self.weight.kernel.rows()).max(1);
        let chunks = x.chunks(rows * inputs).zip(out.chunks_mut(rows * outputs)).enumerate();
        let chunks = chunks.map(|(number, (x, out))| {
            let start = number * rows * outputs;
            (x, residual.map(|residual| &residual[start..start + out.len()]), out)
        });
        let of_chunk = |(x, residual, out)| {
            SCRATCH.with_borrow_mut(|scratch| self.chunk(x, after, residual, out, scratch))
        };
        if threads <= 1 {
            return chunks.for_each(of_chunk);
        }
        let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
        for (number, chunk) in chunks.enumerate() {
            shares[number % threads].push(chunk);
        }
        let own = shares.pop().unwrap_or_default();
        thread::scope(|scope| {
            for share in shares.into_iter().filter(|share| !share.is_empty()) {
                scope.spawn(move || share.into_iter().for_each(of_chunk));
            }
            own.into_iter().for_each(of_chunk);
        });
    }

    /// Rows whose codes fit the cache: for every panel of weights, all blocks of rows.
    fn chunk(&self, x: &[f32], after: After, residual: Residual<'_>, out: &mut [f32], scratch: &mut Scratch) {
        let Weight { inputs, outputs, kernel, .. } = self.weight;
        let Scratch { rows, sums } = scratch;
        rows.quantize(x, inputs, kernel);
        sums.resize(sums.len().max(kernel.rows()), [0; PANEL]);
        let count = rows.scaling().len();
        for number in 0..self.weight.panels() {
            let (panel, mut ahead) = (self.weight.panel(number), self.weight.panels_from(number + 1));
            let start = number * PANEL;
            let columns = Columns {
                scales: padded(&self.weight.scales, start),
                sums: padded(&self.weight.sums, start),
                bias: padded(&self.bias, start),
                after,
            };
            for first in (0..count).step_by(kernel.rows()) {
                let codes = rows.codes(first, kernel.rows());
                let now =
                    ahead.split_off(..ahead.len().min(panel.codes.len().div_ceil(4))).unwrap_or_default();
                // Without this, a panel of many rows waits for a page and two lines at every row.
                for row in first..first + codes.count {
                    prefetch(&out[row * outputs + start..]);
                    residual.iter().for_each(|residual| prefetch(&residual[row * outputs + start..]));
                }
                kernel.sums(codes, panel, now, sums);
                let block = Block {
                    sums: &sums[..codes.count],
                    scaling: &rows.scaling()[first..],
                    out: &mut out[first * outputs..],
                    residual: residual.map(|residual| &residual[first * outputs..]),
                    stride: outputs,
                    start,
                    width: PANEL.min(outputs - start),
                };
                finish::block(kernel.width(), block, &columns);
            }
        }
    }
}

fn padded<T>(values: &[T], start: usize) -> &[T; PANEL] {
    values[start..].first_chunk().expect("padded to whole panels")
}

/// Fetches a row's outputs of one panel while others are computed.
#[inline(always)]
fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(LINE / size_of::<f32>()).take(PANEL * size_of::<f32>() / LINE) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: processors without the instruction ignore it, and it affects nothing but caches.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
    }
}
