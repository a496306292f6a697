//! Checkpoints as data: named tensors read from files that nobody has to trust.

/// What a TransOSS is made of, and the tensors that follow from it.
pub mod architecture;
/// Recorded weights and inputs for tests.
#[cfg(test)]
pub mod golden;
/// Named f32 tensors.
pub mod tensors;
