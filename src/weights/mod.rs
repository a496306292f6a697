//! Checkpoints as data: named tensors read from files that nobody has to trust.

/// What a TransOSS is made of, and the tensors that follow from it.
pub mod architecture;
/// The name of a model.
pub mod digest;
/// Recorded weights and inputs for tests.
#[cfg(test)]
pub mod golden;
/// Starting weights from a ViT trained on ImageNet.
pub mod imagenet;
/// Our own format.
pub mod native;
/// A model from either format.
pub mod open;
/// A model folder as one file.
pub mod packed;
/// The pickles in torch checkpoints, read without executing them.
pub mod pickle;
/// Torch checkpoint files.
pub mod pth;
/// Which tensors of a checkpoint a model takes.
pub mod rules;
/// Initial weights from a seed.
pub mod seed;
/// Views into typed bytes.
pub mod storage;
/// Named f32 tensors.
pub mod tensors;
