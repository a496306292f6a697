//! Checkpoints as data: named tensors read from untrusted files.

/// One network or an ensemble, from any source.
pub mod any;
#[cfg(test)]
mod cases;
/// Files of other programs.
pub mod checkpoint;
/// The name of a model.
pub mod digest;
/// Models made of models.
pub mod ensemble;
/// Model families: architectures, and the tensors that they define.
pub mod family;
/// Which tensors of a starting point a model took.
pub mod fit;
/// Safetensors files of other programs.
pub mod foreign;
/// Recorded weights and inputs for tests.
#[cfg(test)]
pub mod golden;
/// What prevents a model from using a checkpoint.
pub mod misfits;
/// Names without the prefixes of wrappers.
pub mod names;
/// Our own format.
pub mod native;
/// A model from either format.
pub mod open;
/// A model folder as a single file.
pub mod packed;
/// The pickles in torch checkpoints, read without executing them.
pub mod pickle;
/// Torch checkpoint files.
pub mod pth;
/// Models in int8 as files.
pub mod coded;
/// Making a model in int8.
pub mod quantize;
/// What a model in int8 consists of.
pub mod quantized;
/// Which tensors of a checkpoint a model uses.
pub mod rules;
/// Initial weights from a seed.
pub mod seed;
/// Starting points of training.
pub mod start;
/// Views into typed bytes.
pub mod storage;
/// Named f32 tensors.
pub mod tensors;
/// Where in a checkpoint's dictionaries a model's tensors are.
pub mod wrapper;
