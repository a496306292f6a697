//! Checkpoints as data: named tensors read from files that nobody has to trust.

#[cfg(test)]
mod cases;
/// Files of other programs.
pub mod checkpoint;
/// The name of a model.
pub mod digest;
/// Model families: architectures, and the tensors that follow from them.
pub mod family;
/// What a starting point gave a model.
pub mod fit;
/// Safetensors files of other programs.
pub mod foreign;
/// Recorded weights and inputs for tests.
#[cfg(test)]
pub mod golden;
/// What keeps a model from taking a checkpoint.
pub mod misfits;
/// Names without what wrappers put in front of them.
pub mod names;
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
/// Starting points of training.
pub mod start;
/// Views into typed bytes.
pub mod storage;
/// Named f32 tensors.
pub mod tensors;
/// Where a checkpoint's dictionaries keep a model's tensors.
pub mod wrapper;
