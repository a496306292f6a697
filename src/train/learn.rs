//! What training asks of whatever learns.

use rand_chacha::ChaCha8Rng;

use super::schedule::Rates;
use crate::chip::{Chip, ChipSize, Modality};
use crate::embedding::Embedding;
use crate::weights::tensors::NamedTensors;

/// A batch on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    pub size: ChipSize,
    /// `[B, 3, height, width]`, normalised.
    pub pixels: Vec<f32>,
    pub modalities: Vec<Modality>,
    pub size_tokens: Vec<[f32; 3]>,
    /// Classes from 0; pretraining does not read them.
    pub labels: Vec<i64>,
}

impl Samples {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// What a step measured, before it changed anything.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossTerms {
    pub total: f64,
    pub identity: f64,
    pub triplet: f64,
    pub alignment: f64,
    pub contrastive: f64,
    /// Share of images, or of SAR images, whose best score is the right one.
    pub accuracy: f64,
}

impl LossTerms {
    /// Adds the terms of a part of a batch that is `share` of it.
    pub fn add(&mut self, part: &Self, share: f64) {
        self.total += share * part.total;
        self.identity += share * part.identity;
        self.triplet += share * part.triplet;
        self.alignment += share * part.alignment;
        self.contrastive += share * part.contrastive;
        self.accuracy += share * part.accuracy;
    }
}

/// Everything that a learner needs to go on as if it had never stopped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnerState {
    /// The state dict of the network.
    pub weights: NamedTensors,
    pub optimizer: NamedTensors,
    /// Steps that the optimizer has taken.
    pub steps: u32,
}

impl LearnerState {
    /// The first tensor with a value that is infinite or no number.
    pub fn not_finite(&self) -> Option<&str> {
        let mut tensors = self.weights.iter().chain(&self.optimizer);
        tensors
            .find(|(_, tensor)| !tensor.values.iter().all(|value| value.is_finite()))
            .map(|(name, _)| name.as_str())
    }
}

/// Why a step could not be taken, or a state not be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LearnError {
    #[error("the device has not enough memory for a batch")]
    OutOfMemory,
    #[error("the step failed: {0}")]
    Failed(String),
    #[error("the state is not of this model: {0}")]
    OtherModel(String),
}

/// Learns from batches, one step each, on the thread that made it.
pub trait Learner {
    /// Loss and gradients of a batch, then one step. `random` is this step's own.
    ///
    /// # Errors
    /// The learner is then of no further use.
    fn step(
        &mut self,
        batch: &Samples,
        rates: Rates,
        random: &mut ChaCha8Rng,
    ) -> Result<LossTerms, LearnError>;

    /// Features of chips as serving would compute them; nothing is learned.
    ///
    /// # Errors
    /// The learner is then of no further use.
    fn embed(&mut self, chips: &[Chip]) -> Result<Vec<Embedding>, LearnError>;

    /// A copy on the host.
    fn state(&self) -> LearnerState;

    /// Goes on from a state of the same model.
    ///
    /// # Errors
    /// The state is of another model; the learner is then as it was.
    fn restore(&mut self, state: LearnerState) -> Result<(), LearnError>;
}

/// Where batches come from.
pub trait Source: Sync {
    /// One batch of an epoch, by place in the data set.
    type Item: Sync;

    /// The batches of an epoch, the same for the same seed.
    fn epoch(&self, seed: u64, epoch: u32) -> Vec<Self::Item>;

    /// Reads and augments a batch; its random numbers derive from seed, epoch and sample alone.
    ///
    /// # Errors
    /// A file that cannot be used, by name.
    fn batch(&self, item: &Self::Item, seed: u64, epoch: u32) -> Result<Samples, String>;
}
