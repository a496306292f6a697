//! Learning: data sets, samplers, augmentation and schedules (pure); losses, optimizers and the learner (libtorch).

#[cfg(feature = "torch")]
mod heads;
#[cfg(feature = "torch")]
mod learner;
#[cfg(feature = "torch")]
mod losses;
#[cfg(feature = "torch")]
mod optimizer;

#[cfg(feature = "torch")]
pub use heads::Head;
#[cfg(feature = "torch")]
pub use learner::{Batch, FineTune, LossTerms, Objective, TorchLearner};
#[cfg(feature = "torch")]
pub use losses::{Triplet, center};
#[cfg(feature = "torch")]
pub use optimizer::{Optimizer, OptimizerSettings, Rates};
