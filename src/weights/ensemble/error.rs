//! Why models are no ensemble.

use crate::embedding::{CompositionError, ModelDigest};

/// Why models are no ensemble.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EnsembleError {
    #[error(transparent)]
    Composition(#[from] CompositionError),
    #[error("there are {weights} weights for {members} members")]
    Weights { members: usize, weights: usize },
    #[error("member {0} is there twice")]
    Twice(ModelDigest),
    #[error("members {first} and {other} read different chips: their size or preprocessing differs")]
    Preprocessing { first: ModelDigest, other: ModelDigest },
    #[error("of members {first} and {other} only one is in int8")]
    Precision { first: ModelDigest, other: ModelDigest },
}
