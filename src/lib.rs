//! Ship re-identification: TransOSS embeddings of optical and SAR chips behind a batching queue.
//!
//! Modules in reading order, following the path of a chip. Fuzzing covers the pure modules: it leaves out those that
//! use gRPC or depend on them, which take longest to build.

/// Instruction sets, and which of them may be used.
pub mod processor;
/// The number formats that networks compute in, and the kernels for matrix products.
pub mod arithmetic;
/// Linear layers in int8.
pub mod int8;
/// How much of something may be held at once.
pub mod budget;
/// Cancellation of work that is no longer needed.
pub mod cancellation;
/// Stable names for errors and warnings, and what callers should do about each.
pub mod reason;
/// A ship cut out of a satellite image, decoded and resized.
pub mod chip;
/// Unit vectors and the digest of the model that made them.
pub mod embedding;
/// How much memory there is, and what the allocator keeps of it.
pub mod memory;
/// Files, folders and databases that survive a power failure.
pub mod durable;
/// The database that servers share.
pub mod postgres;
/// Which of the shared galleries a server holds.
pub mod holding;
/// Enrolled ships: what is stored about them and how they are searched.
pub mod gallery;
/// Files that arrive in chunks.
pub mod uploads;
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
/// Contact sheets of images.
pub mod sheet;
/// TransOSS on libtorch.
#[cfg(feature = "torch")]
pub mod model;
/// Processes that train together.
pub mod distributed;
/// Data sets, samplers, augmentation, schedules; losses, optimizers, the learner.
pub mod train;
/// Training jobs in the background.
pub mod jobs;
/// Messages and service traits of the contract.
pub mod wire;
/// Keys of callers.
pub mod keys;
/// How messages quote text from others.
mod message;
/// What a folder of images holds.
pub mod folder;
/// What is known about image files in addition to their pixels.
pub mod manifest;
/// Where a page of a list ends.
pub mod page;
/// gRPC services and the layers around them.
#[cfg(not(fuzzing))]
pub mod rpc;
/// Load, warm, wire, serve, drain.
#[cfg(not(fuzzing))]
pub mod app;
/// The gRPC client.
#[cfg(not(fuzzing))]
pub mod client;
/// A training job as one page of HTML.
#[cfg(not(fuzzing))]
pub mod job_page;
/// The only reader of files, environment and flags.
pub mod config;
/// Every metric's name, once.
pub mod metrics;
/// Logs.
#[cfg(not(fuzzing))]
pub mod telemetry;
