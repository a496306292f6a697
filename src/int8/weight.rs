//! Weights of a linear layer as int8, one scale per output, in the order in which kernels read them.

use super::chain::{self, Chains};
use super::kernel::Kernel;
use super::layout::{DEPTH, GROUP, INPUTS_MAX, PANEL, ROUND, STEP};
use super::memory::Lines;
use super::operands::Panel;

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
    /// Rounds `weight`, `[outputs, inputs]`, to int8 with the largest magnitude of each output at 127.
    ///
    /// # Panics
    /// If `weight` is of another length, or `inputs` is above [`INPUTS_MAX`].
    pub fn new(weight: &[f32], outputs: usize, inputs: usize, kernel: Kernel) -> Self {
        assert_eq!(weight.len(), outputs * inputs, "a weight for every output and input");
        assert!(inputs <= INPUTS_MAX, "{inputs} inputs");
        let (panels, depth) = (outputs.div_ceil(PANEL), inputs.next_multiple_of(DEPTH));
        let mut codes = Lines::zeroed(panels * PANEL * depth);
        let (mut scales, mut sums) = (vec![0.0; panels * PANEL], vec![0; panels * PANEL]);
        let bytes = codes.as_bytes_mut();
        for (output, row) in weight.chunks_exact(inputs.max(1)).enumerate() {
            let start = output / PANEL * PANEL * depth + output % PANEL * GROUP;
            let largest = row.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
            let per_code = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            scales[output] = largest / 127.0;
            for (input, weight) in row.iter().enumerate() {
                // The range holds, by the choice of the scale.
                let code = (weight * per_code + ROUND).to_bits() as i8;
                bytes[start + input / GROUP * STEP + input % GROUP] = code.cast_unsigned();
                sums[output] += i32::from(code);
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
