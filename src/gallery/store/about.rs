//! What a gallery is made for.

use crate::embedding::ModelDigest;
use crate::gallery::entry::Time;

/// What a gallery is made for.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// The model of its embeddings.
    pub model: ModelDigest,
    /// Values of an embedding.
    pub dimension: usize,
    /// Whether source chips are kept, so that the gallery can move to a new model.
    pub keeps_chips: bool,
    pub created_at: Time,
    /// Number of the active embeddings.
    pub(in crate::gallery) generation: u64,
    /// The embeddings that another model is computing of its chips, if any.
    pub shadow: Option<Shadow>,
}

/// Embeddings of a gallery that become active once there is one for every entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadow {
    pub model: ModelDigest,
    /// Values of an embedding.
    pub dimension: usize,
    pub(in crate::gallery) generation: u64,
}

impl About {
    /// A gallery with its first embeddings.
    pub fn new(model: ModelDigest, dimension: usize, keeps_chips: bool, created_at: Time) -> Self {
        Self { model, dimension, keeps_chips, created_at, generation: 1, shadow: None }
    }
}
