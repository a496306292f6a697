//! Ship re-identification: TransOSS embeddings of optical and SAR chips behind a batching queue.
//!
//! Modules in reading order, following the way of a chip:

/// A ship cut out of a satellite image, decoded and resized.
pub mod chip;
/// The only reader of files, environment and flags.
pub mod config;
/// Unit vectors and the digest of the model that made them.
pub mod embedding;
/// Admission, queue, batches, device threads.
pub mod encoder;
/// Checkpoints as data.
pub mod weights;
