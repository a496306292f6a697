//! The sizes that weights, inputs and kernels share.

/// Outputs of a panel: what a kernel computes at a time.
pub const PANEL: usize = 32;
/// Inputs that are multiplied and added by one instruction, per output.
pub const GROUP: usize = 4;
/// Bytes of a panel's weights for one group of inputs.
pub const STEP: usize = PANEL * GROUP;
/// Inputs are padded to a multiple of this: the inputs in a tile of AMX.
pub const DEPTH: usize = 64;
/// The most inputs of a layer. Sums of products and their corrections, each at most `255 * 127` an input, then
/// differ by less than an i32 holds.
pub const INPUTS_MAX: usize = 32_768;

/// Adding this to a number of at most 22 bits rounds it to a whole one, ties to even, and leaves that in the lowest bits.
pub const ROUND: f32 = 12_582_912.0;
