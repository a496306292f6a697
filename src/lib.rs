//! Ship re-identification: TransOSS embeddings of optical and SAR chips behind a batching queue.
//!
//! Modules in reading order, following the way of a chip:

/// Instruction sets, and how many of them may be used.
pub mod processor;
/// In which numbers networks compute, and what multiplies their matrices.
pub mod arithmetic;
/// A ship cut out of a satellite image, decoded and resized.
pub mod chip;
/// Unit vectors and the digest of the model that made them.
pub mod embedding;
/// Files, folders and databases that survive a power failure.
pub mod durable;
/// Enrolled ships: what is kept of them and how they are searched.
pub mod gallery;
/// Admission, queue, batches, device threads.
pub mod encoder;
/// Checkpoints as data.
pub mod weights;
/// Models on disk, and which of them serves.
pub mod registry;
/// How good rankings are: CMC, mAP, protocols, re-ranking.
pub mod evaluate;
/// Which known ship a sighting shows: gates, evidence, rankings, probabilities.
pub mod matching;
/// Synthetic ships as two sensors see them.
pub mod synth;
/// Pictures of pictures.
pub mod sheet;
/// TransOSS on libtorch.
#[cfg(feature = "torch")]
pub mod model;
/// Data sets, samplers, augmentation, schedules; losses, optimizers, the learner.
pub mod train;
/// Training jobs in the background.
pub mod jobs;
/// Messages and service traits of the contract.
pub mod wire;
/// Keys of callers.
pub mod keys;
/// gRPC services and the layers around them.
pub mod rpc;
/// Load, warm, wire, serve, drain.
pub mod app;
/// The gRPC client.
pub mod client;
/// A training job as one page of HTML.
pub mod job_page;
/// The only reader of files, environment and flags.
pub mod config;
/// Every metric's name, once.
pub mod metrics;
/// Logs.
pub mod telemetry;
