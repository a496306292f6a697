//! The interface between the training loop and learners.

use rand_chacha::ChaCha8Rng;

use super::schedule::Rates;
use crate::chip::{Chip, ChipSize, Modality};
use crate::distributed::RankFailure;
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
    /// Classes from 0; ignored by pretraining.
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

/// Measurements of a step, before it changed anything.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossTerms {
    pub total: f64,
    pub identity: f64,
    pub triplet: f64,
    pub alignment: f64,
    pub orthogonality: f64,
    pub structure: f64,
    pub supcon: f64,
    pub info_nce: f64,
    pub contrastive: f64,
    /// Fraction of images, or of SAR images, whose best score is the correct one.
    pub accuracy: f64,
}

impl LossTerms {
    /// How many numbers they are.
    pub const COUNT: usize = 10;

    /// All of them, in a fixed order.
    pub fn numbers(mut self) -> [f64; Self::COUNT] {
        self.places().map(|place| *place)
    }

    /// The inverse of [`Self::numbers`].
    pub fn of(numbers: [f64; Self::COUNT]) -> Self {
        let mut terms = Self::default();
        terms.places().into_iter().zip(numbers).for_each(|(place, number)| *place = number);
        terms
    }

    /// Adds the terms of a part that makes up `share` of the batch.
    pub fn add(&mut self, part: &Self, share: f64) {
        self.places().into_iter().zip(part.numbers()).for_each(|(place, number)| *place += share * number);
    }

    fn places(&mut self) -> [&mut f64; Self::COUNT] {
        let Self {
            total,
            identity,
            triplet,
            alignment,
            orthogonality,
            structure,
            supcon,
            info_nce,
            contrastive,
            accuracy,
        } = self;
        [
            total,
            identity,
            triplet,
            alignment,
            orthogonality,
            structure,
            supcon,
            info_nce,
            contrastive,
            accuracy,
        ]
    }
}

/// Everything that a learner needs to resume as if it had never stopped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnerState {
    /// The state dict of the network.
    pub weights: NamedTensors,
    pub optimizer: NamedTensors,
    /// Steps taken by the optimizer.
    pub steps: u32,
}

impl LearnerState {
    /// The first tensor with an infinite or NaN value.
    pub fn not_finite(&self) -> Option<&str> {
        let mut tensors = self.weights.iter().chain(&self.optimizer);
        tensors
            .find(|(_, tensor)| !tensor.values.iter().all(|value| value.is_finite()))
            .map(|(name, _)| name.as_str())
    }
}

/// Why a step could not be taken or a state not be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LearnError {
    #[error("the device has not enough memory for a batch")]
    OutOfMemory,
    #[error("the step failed: {0}")]
    Failed(String),
    #[error("the state is not of this model: {0}")]
    OtherModel(String),
    /// One of several processes has a loss that is not a finite number.
    #[error("the loss of rank {rank} is {loss}")]
    NotFinite { rank: usize, loss: String },
    /// Another process of the run has failed or is gone.
    #[error("{0}")]
    Lost(RankFailure),
}

/// Learns from batches, one step each, on the thread that created it.
pub trait Learner {
    /// Computes loss and gradients of a batch, then takes one step. `random` is specific to this step.
    ///
    /// # Errors
    /// If the step fails; the learner is then unusable.
    fn step(
        &mut self,
        batch: &Samples,
        rates: Rates,
        random: &mut ChaCha8Rng,
    ) -> Result<LossTerms, LearnError>;

    /// Features of chips as serving would compute them, without learning.
    ///
    /// # Errors
    /// If it fails; the learner is then unusable.
    fn embed(&mut self, chips: &[Chip]) -> Result<Vec<Embedding>, LearnError>;

    /// A copy on the host.
    fn state(&self) -> LearnerState;

    /// Restores a state of the same model.
    ///
    /// # Errors
    /// If the state belongs to another model; the learner is then unchanged.
    fn restore(&mut self, state: LearnerState) -> Result<(), LearnError>;
}

/// A source of batches.
pub trait Source: Sync {
    /// One batch of an epoch, by index in the data set.
    type Item: Sync;

    /// The batches of an epoch; deterministic for a seed.
    fn epoch(&self, seed: u64, epoch: u32) -> Vec<Self::Item>;

    /// Reads and augments a batch. Its random numbers derive only from seed, epoch and sample.
    ///
    /// # Errors
    /// If a file cannot be used; the error names it.
    fn batch(&self, item: &Self::Item, seed: u64, epoch: u32) -> Result<Samples, String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_survive_as_numbers_and_parts_of_a_batch_add_up() {
        let numbers = std::array::from_fn(|place| place as f64 + 1.0);
        let terms = LossTerms::of(numbers);
        assert_eq!((terms.total, terms.accuracy), (1.0, LossTerms::COUNT as f64));
        assert_eq!(terms.numbers(), numbers);
        let mut sum = LossTerms::default();
        sum.add(&terms, 0.25);
        sum.add(&LossTerms::of([4.0; LossTerms::COUNT]), 0.75);
        assert_eq!(sum.numbers(), numbers.map(|number| 0.25 * number + 3.0));
    }
}
