//! Rounded weights of a linear layer in the order in which kernels read them.

use super::chain::{self, Chains};
use super::kernel::Kernel;
use super::layout::{DEPTH, GROUP, PANEL, STEP};
use super::memory::Lines;
use super::operands::Panel;
use super::rounded::Rounded;

/// `[outputs, inputs]`: the weight of output `n` is about `scales[n]` times its code.
#[derive(Debug)]
pub struct Weight {
    pub inputs: usize,
    pub outputs: usize,
    /// Panel by panel; within one, group by group of inputs: `[panels, groups, PANEL, GROUP]`, padded with zeros.
    codes: Lines,
    /// Per output, padded to whole panels.
    pub scales: Vec<f32>,
    /// Sums of each output's codes, which correct for the zero points of inputs; padded likewise.
    pub sums: Vec<i32>,
    /// For the AVX2 kernel only.
    chains: Vec<Chains>,
    pub kernel: Kernel,
}

impl Weight {
    /// Puts `rounded` in the order of a kernel.
    pub fn new(rounded: &Rounded, kernel: Kernel) -> Self {
        let (inputs, outputs) = (rounded.inputs(), rounded.outputs());
        let (panels, depth) = (outputs.div_ceil(PANEL), inputs.next_multiple_of(DEPTH));
        let mut codes = Lines::zeroed(panels * PANEL * depth);
        let (mut scales, mut sums) = (rounded.scales().to_vec(), vec![0; panels * PANEL]);
        scales.resize(panels * PANEL, 0.0);
        let bytes = codes.as_bytes_mut();
        for (output, row) in rounded.codes().chunks_exact(inputs).enumerate() {
            let start = output / PANEL * PANEL * depth + output % PANEL * GROUP;
            for (input, code) in row.iter().enumerate() {
                bytes[start + input / GROUP * STEP + input % GROUP] = code.cast_unsigned();
                sums[output] += i32::from(*code);
            }
        }
        let mut weight = Self { inputs, outputs, codes, scales, sums, chains: Vec::new(), kernel };
        if kernel == Kernel::Avx2 {
            let chain = |panel| chain::of_panel(weight.panel(panel).codes);
            weight.chains = (0..panels).flat_map(chain).collect();
        }
        weight
    }

    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Inputs with padding.
    pub fn depth(&self) -> usize {
        self.inputs.next_multiple_of(DEPTH)
    }

    pub fn panel(&self, panel: usize) -> Panel<'_> {
        let length = PANEL * self.depth();
        let bytes = &self.codes.as_bytes()[panel * length..][..length];
        // SAFETY: i8 and u8 have one layout, and all values are valid in both.
        let codes = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), length) };
        let chains = self.chains.get(panel * chain::PER_PANEL..).unwrap_or_default();
        Panel { codes, chains: &chains[..chains.len().min(chain::PER_PANEL)] }
    }

    /// The next panel's codes, which a kernel prefetches; none after the last.
    pub fn panels_from(&self, panel: usize) -> &[i8] {
        if panel < self.panels() { self.panel(panel).codes } else { &[] }
    }
}
