//! Linear layers in int8: inputs rounded to u8 row by row, weights to s8 once, sums in i32, outputs in f32.
//!
//! Kernels for the processor's instructions give the same sums as the portable one. Shapes: rows are chips' tokens,
//! inputs and outputs are a layer's widths.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod chain;
mod finish;
mod kernel;
mod layout;
mod linear;
mod memory;
mod operands;
mod rounded;
mod rows;
#[cfg(test)]
mod tests;
mod weight;

pub use finish::After;
pub use layout::INPUTS_MAX;
pub use linear::Linear8;
pub use rounded::{CODE_MAX, Rounded, RoundedError};
