//! What a kernel multiplies.

use super::chain::Chains;

/// Rows of inputs, `[count, stride]` of which the first inputs are used.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    pub codes: &'a [u8],
    pub stride: usize,
    pub count: usize,
}

/// The part of a weight that computes `PANEL` outputs.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// `[groups, PANEL, GROUP]`, aligned to a cache line.
    pub codes: &'a [i8],
    /// Empty for other kernels than AVX2's.
    pub chains: &'a [Chains],
}
