//! What a gallery is made for.

use crate::arithmetic::Precision;
use crate::embedding::{Composition, ModelDigest};
use crate::gallery::entry::{Entry, Time};

/// What a gallery is made for.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// The model of its embeddings.
    pub model: ModelDigest,
    /// Values of an embedding.
    pub dimension: usize,
    /// If the model is an ensemble.
    pub composition: Option<Composition>,
    /// Whether source chips are kept, so that the gallery can move to a new model.
    pub keeps_chips: bool,
    pub created_at: Time,
    /// The last time that all embeddings were made anew, for another model.
    pub reembedded: Option<Reembedded>,
    /// Number of the active embeddings.
    pub(in crate::gallery) generation: u64,
    /// The embeddings that another model is computing of its chips, if any.
    pub shadow: Option<Shadow>,
}

/// Embeddings of a gallery that become active once there is one for every entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shadow {
    pub model: ModelDigest,
    /// Values of an embedding.
    pub dimension: usize,
    /// If the model is an ensemble.
    pub composition: Option<Composition>,
    /// In which they are computed; `None` if it is more than one, or not known.
    pub precision: Option<Precision>,
    pub(in crate::gallery) generation: u64,
}

/// What a gallery is to be re-embedded with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShadowTarget {
    pub model: ModelDigest,
    /// Values of an embedding.
    pub dimension: usize,
    /// If the model is an ensemble.
    pub composition: Option<Composition>,
    pub precision: Precision,
}

/// When a gallery moved to another model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reembedded {
    pub at: Time,
    /// As of a [`Shadow`].
    pub precision: Option<Precision>,
}

impl About {
    /// A gallery with its first embeddings, of a model that is no ensemble.
    pub fn new(model: ModelDigest, dimension: usize, keeps_chips: bool, created_at: Time) -> Self {
        Self {
            model,
            dimension,
            composition: None,
            keeps_chips,
            created_at,
            reembedded: None,
            generation: 1,
            shadow: None,
        }
    }

    /// How vectors of one of its models are composed, if that is an ensemble.
    pub(in crate::gallery) fn composition_of(&self, model: ModelDigest) -> Option<Composition> {
        if model == self.model {
            return self.composition;
        }
        self.shadow.filter(|shadow| shadow.model == model)?.composition
    }

    /// In which the entry's embedding was computed; `None` if that is not known.
    pub fn precision_of(&self, entry: &Entry) -> Option<Precision> {
        match self.reembedded {
            Some(Reembedded { at, precision }) if entry.enrolled_at <= at => precision,
            Some(_) | None => entry.precision,
        }
    }
}
