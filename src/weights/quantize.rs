//! Models in int8 that are made from models in f32.

use super::coded::{Quantization, Quantized, weight_of};
use super::open::OpenModel;
use super::quantized::{QuantizeError, check_family};
use crate::embedding::ModelDigest;
use crate::int8::Rounded;

/// Why a model in int8 is not that of a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("it is not in int8")]
    NotInt8,
    #[error("it says that it was made from model {named}, which is an ensemble")]
    Ensemble { named: ModelDigest },
    #[error("it says that it was made from model {named}, not from {given}")]
    Other { named: ModelDigest, given: ModelDigest },
    #[error("it says that it was made from model {origin}, which gives model {expected} in int8")]
    Differs { origin: ModelDigest, expected: ModelDigest },
    #[error("it cannot have been made from its source: {0}")]
    Impossible(#[from] QuantizeError),
}

/// Rounds the linear layers of a model; the result is a model of its own.
///
/// # Errors
/// If it is one already, or its family has no such layers.
///
/// # Panics
/// If the model's tensors are not those of its architecture.
pub fn quantize(model: OpenModel) -> Result<OpenModel, QuantizeError> {
    let OpenModel { architecture, feature_point, digest, mut tensors, quantized } = model;
    if let Some(Quantized { origin, .. }) = quantized {
        return Err(QuantizeError::Already(origin.source));
    }
    check_family(&architecture)?;
    let round = |layer: String| {
        let weight = tensors.remove(&weight_of(&layer)).expect("the tensors are the architecture's");
        let rounded = Rounded::of(&weight.values, weight.shape[1]);
        (layer, rounded)
    };
    let layers = architecture.int8_layers().into_iter().map(round).collect();
    let quantized = Quantized { origin: Quantization::now(digest), layers };
    Ok(OpenModel::in_int8(architecture, feature_point, tensors, quantized))
}

/// Verifies that a model in int8 is what `source` gives.
///
/// # Errors
/// If it was made from another model, or differs in anything from what it would have to be.
pub fn check_source(model: &OpenModel, source: OpenModel) -> Result<(), SourceError> {
    let Some(quantized) = &model.quantized else { return Err(SourceError::NotInt8) };
    let (named, given) = (quantized.origin.source, source.digest);
    if named != given {
        return Err(SourceError::Other { named, given });
    }
    let expected = quantize(source)?.digest;
    if expected == model.digest { Ok(()) } else { Err(SourceError::Differs { origin: given, expected }) }
}

#[cfg(test)]
mod tests;
