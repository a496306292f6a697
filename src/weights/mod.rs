//! Checkpoints as data: named tensors read from files that nobody has to trust.

pub mod tensors;
