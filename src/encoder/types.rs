//! Messages between callers, device threads and observers.

use std::sync::Arc;
use std::time::Duration;

use super::schedule::Priority;
use super::{Encoder, EncoderInput};
use crate::embedding::{Embedding, ModelDigest};
use crate::reason::Reason;

/// The layout of the device threads.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    /// Device threads, at least 1.
    pub workers: usize,
    /// Chips in one forward pass.
    pub batch_max: usize,
}

/// Whether chips can be embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No model has been warmed yet.
    Warming,
    Serving,
    /// Canaries fail, or hang, on a device thread; the next forward pass there, by the same model, ends this.
    Failing,
    /// Another model is active on all servers, and cannot serve here.
    Outdated,
    /// Shutting down: waiting chips are still embedded.
    Draining,
    /// A device thread lost its device; only a restart helps.
    DeviceLost,
}

impl Health {
    pub const ALL: [Self; 6] =
        [Self::Warming, Self::Serving, Self::Failing, Self::Outdated, Self::Draining, Self::DeviceLost];

    /// Stable and suitable for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warming => "warming",
            Self::Serving => "serving",
            Self::Failing => "failing",
            Self::Outdated => "outdated",
            Self::Draining => "draining",
            Self::DeviceLost => "device_lost",
        }
    }
}

/// Events of the device threads, for metrics and logs.
#[derive(Clone, Debug, PartialEq)]
pub enum EncoderEvent {
    BatchDone {
        size: usize,
        forward: Duration,
        waits: Vec<Duration>,
        /// How far chips ended past their deadlines, for those that did.
        late: Vec<Duration>,
    },
    /// The outcome of a canary.
    Canary {
        worker: usize,
        model: ModelDigest,
        outcome: CanaryOutcome,
    },
    /// The canaries of a device thread have begun or ceased to fail.
    Thread {
        worker: usize,
        is_failing: bool,
    },
    /// Number of chips waiting now.
    Depth(usize),
    /// A chip left the queue without using the device.
    Dropped {
        reason: &'static str,
    },
    OutOfMemory {
        size: usize,
    },
    Failed {
        size: usize,
        message: String,
    },
    Panicked {
        size: usize,
        message: String,
    },
    DeviceLost {
        message: String,
    },
}

/// Called on device threads and in callers' tasks, also under the queue's lock: must be quick and must not call back.
pub type Observe = Arc<dyn Fn(EncoderEvent) + Send + Sync>;

/// One chip and how it is to be served.
#[derive(Debug)]
pub struct EncodeJob {
    pub model: ModelDigest,
    pub tenant: Arc<str>,
    pub priority: Priority,
    pub deadline: Option<tokio::time::Instant>,
    pub chip: EncoderInput,
}

/// An embedding and its cost.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub embedding: Embedding,
    /// From the queue to the device.
    pub queued: Duration,
    /// The forward pass of its batch.
    pub forward: Duration,
    /// Chips in its batch.
    pub batch_size: usize,
}

/// Why a chip has no embedding. The device's own message stays in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("the deadline has passed")]
    DeadlineExceeded,
    #[error("the forward pass failed")]
    Failed,
    #[error("the device has not enough memory")]
    OutOfMemory,
    #[error("the device is lost")]
    DeviceLost,
    #[error("the queue is closed")]
    Closed,
    #[error("the model is not resident")]
    UnknownModel,
}

impl EncodeError {
    /// Stable and suitable for programs and labels.
    pub fn reason(self) -> Reason {
        match self {
            Self::DeadlineExceeded => Reason::DeadlineExceeded,
            Self::Failed => Reason::ForwardFailed,
            Self::OutOfMemory => Reason::DeviceOutOfMemory,
            Self::DeviceLost => Reason::DeviceLost,
            Self::Closed => Reason::Draining,
            Self::UnknownModel => Reason::ModelNotFound,
        }
    }
}

/// Why a canary failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanaryError {
    #[error("the forward pass failed")]
    Failed,
    #[error("the model has left the device thread")]
    UnknownModel,
    #[error("the queue is closed, or the device is lost")]
    Closed,
}

/// A model could not be put on a device thread.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// The outcome of a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryOutcome {
    Passed,
    /// The forward pass failed.
    Failed,
    /// It did not succeed in time.
    Late,
}

impl CanaryOutcome {
    /// Stable and suitable for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "failed",
            Self::Late => "late",
        }
    }
}

/// Creates a model's encoder on the device thread of the given number.
pub type EncoderFactory = Arc<dyn Fn(usize) -> Result<Box<dyn Encoder>, String> + Send + Sync>;
