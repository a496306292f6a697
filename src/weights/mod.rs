//! Checkpoints as data: named tensors read from files that nobody has to trust.

/// What a TransOSS is made of, and the tensors that follow from it.
pub mod architecture;
/// Recorded weights and inputs for tests.
#[cfg(test)]
pub mod golden;
/// The pickles in torch checkpoints, read without executing them.
pub mod pickle;
/// Torch checkpoint files.
pub mod pth;
/// Views into typed bytes.
pub mod storage;
/// Named f32 tensors.
pub mod tensors;
