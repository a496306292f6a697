//! Learning: data sets, samplers, augmentation and schedules (pure); losses, optimizers and the learner (libtorch).

mod augment;
mod calibration;
mod checkpoint;
mod config;
mod dataset;
mod delivered;
mod fingerprint;
mod fit;
mod fit_error;
#[cfg(feature = "torch")]
mod heads;
mod gallery_dataset;
mod learn;
#[cfg(feature = "torch")]
mod learner;
mod loader;
mod log;
#[cfg(feature = "torch")]
mod losses;
#[cfg(feature = "torch")]
mod modality_losses;
mod inputs;
mod jitter;
#[cfg(feature = "torch")]
mod objective;
#[cfg(feature = "torch")]
mod optimizer;
mod random;
mod peers;
mod ranked_lists;
#[cfg(feature = "torch")]
mod ranks;
mod roots;
#[cfg(feature = "torch")]
mod run;
mod sampler;
mod schedule;
mod shard;
mod source;
mod validation;
mod yaml;

pub use augment::{augment, plain};
pub use calibration::{CalibrationReport, HeldOutShips, Uncalibrated};
pub use checkpoint::{CheckpointError, Checkpoints, DamagedCheckpoint, Progress, checkpoint_name};
pub use config::{
    AlignmentDistance, Augmentation, CheckpointChoice, Gradient, HeadName, Loss, ObjectiveName,
    OptimizerChoice, StartKind, TrainConfig, TrainConfigError, Violation,
};
pub use dataset::{DatasetError, HossPart, Image, Pair, classes, hold_out, hoss, hoss_pairs, optisar_pairs};
pub use delivered::Delivered;
pub use fingerprint::{fingerprint, fingerprint_of};
pub use fit::{FitEvent, FitInputs, Means, Plan, fit, other_world_size};
pub use fit_error::FitError;
pub use gallery_dataset::{Census, Count, Division, GalleryDataset, GalleryDatasetWriter};
pub use inputs::{DataSet, TrainingInputs, check_shared, start_report};
pub use learn::{LearnError, Learner, LearnerState, LossTerms, Samples, Source};
pub use loader::in_order;
pub use log::EventLog;
pub use peers::{Alone, Peers};
pub use random::{Purpose, stream};
pub use ranked_lists::{Extent, RankedLists};
pub use roots::{DataRoots, RootError};
pub use sampler::{IdentitySampler, SamplerError, pair_batches};
pub use schedule::{Rates, Schedule};
pub use shard::{Shard, ShardError};
pub use source::{IdentitySource, ImageReader, PairSource, read_chip};
pub use validation::{Validation, ValidationScores};
pub use yaml::AuthorsConfig;

/// The starting point of a run, as read by [`TrainingInputs`].
pub use crate::weights::start::StartingPoint;

#[cfg(feature = "torch")]
pub use heads::Head;
#[cfg(feature = "torch")]
pub use learner::{Teaching, TorchLearner, pace_on_cpu};
#[cfg(feature = "torch")]
pub use losses::{Triplet, center};
#[cfg(feature = "torch")]
pub use objective::{FineTune, Objective};
#[cfg(feature = "torch")]
pub use optimizer::{Optimizer, OptimizerSettings};
#[cfg(feature = "torch")]
pub use ranks::Ranks;
#[cfg(feature = "torch")]
pub use run::{Run, RunError, Trained};
