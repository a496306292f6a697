//! The path of a chip to its embedding: admission, queue, batch, device thread. No tensors here.

mod admission;
mod canary;
mod ensemble;
mod mailbox;
mod pipeline;
mod predict;
mod projection;
mod queue;
mod residency;
mod schedule;
mod types;
mod worker;

pub use admission::{Admission, Admitted, Refusal};
pub use canary::keep_canaries;
pub use ensemble::Members;
pub use pipeline::{Caller, EmbedError, Embedded, Examined, Pipeline, UnknownModel};
pub use projection::PixelProjection;
pub use queue::{EncodeQueue, thread_name};
pub use residency::{
    LoadedModel, ModelCard, ModelLease, RESIDENT_MAX, Residency, ResidencyError, ResidencySettings,
};
pub use schedule::{Buckets, Priority};
pub use types::{
    CanaryOutcome, EncodeError, EncodeJob, Encoded, EncoderEvent, EncoderFactory, Health, LoadError, Observe,
    QueueSettings,
};

use crate::chip::{Chip, ChipSize, Modality, PreparedPixels};
use crate::embedding::{Embedding, ModelDigest};

/// Chips that pass through one model in one pass.
#[derive(Debug)]
pub struct Batch {
    pub model: ModelDigest,
    pub chips: Vec<EncoderInput>,
}

/// What an encoder reads.
#[derive(Clone, Debug, PartialEq)]
pub enum EncoderInput {
    /// The encoder normalises it as its model requires.
    Chip(Chip),
    /// Used as they are.
    Prepared(PreparedPixels),
}

impl From<Chip> for EncoderInput {
    fn from(chip: Chip) -> Self {
        Self::Chip(chip)
    }
}

impl From<PreparedPixels> for EncoderInput {
    fn from(pixels: PreparedPixels) -> Self {
        Self::Prepared(pixels)
    }
}

impl EncoderInput {
    pub fn chip(&self) -> Option<&Chip> {
        match self {
            Self::Chip(chip) => Some(chip),
            Self::Prepared(_) => None,
        }
    }

    pub fn size(&self) -> ChipSize {
        match self {
            Self::Chip(chip) => chip.size(),
            Self::Prepared(pixels) => pixels.size(),
        }
    }

    pub fn modality(&self) -> Modality {
        match self {
            Self::Chip(chip) => chip.modality(),
            Self::Prepared(pixels) => pixels.modality(),
        }
    }

    pub fn size_token(&self) -> [f32; 3] {
        match self {
            Self::Chip(chip) => chip.size_token(),
            Self::Prepared(pixels) => pixels.size_token(),
        }
    }
}

/// Turns chips into embeddings on one device. Created, used and dropped on one thread.
pub trait Encoder {
    /// One embedding per chip, in the batch's order.
    ///
    /// # Errors
    /// A failure of the device; all chips of the batch share it.
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError>;

    /// What a batch of a new size needs to run first, if that is less than a whole forward pass.
    fn rehearsal(&mut self) -> Option<Rehearsal<'_>> {
        None
    }
}

/// A part of a forward pass that allocates and compiles all that the whole one does.
pub struct Rehearsal<'e> {
    pub part: &'e mut dyn Encoder,
    /// How many times longer the whole takes, at most.
    pub times: u32,
}

/// Why a forward pass produced no embeddings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("the device has not enough memory for the batch")]
    OutOfMemory,
    #[error("the device is lost: {0}")]
    DeviceLost(String),
    #[error("the forward pass failed: {0}")]
    Failed(String),
}
