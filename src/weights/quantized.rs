//! Which models can be in int8, and what those that are consist of.

use super::coded::{Layers, weight_of};
use super::family::Architecture;
use super::misfits::{Misfits, Misshapen};
use super::rules;
use super::tensors::NamedTensors;
use crate::embedding::ModelDigest;

/// Why a model has no form in int8.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantizeError {
    #[error("it is in int8 already, made from model {0}")]
    Already(ModelDigest),
    #[error("no layer of a {0} can be computed in int8")]
    Family(&'static str),
}

/// Whether models of this architecture can be computed in int8.
///
/// # Errors
/// If none of their layers can.
pub fn check_family(architecture: &Architecture) -> Result<(), QuantizeError> {
    match architecture.int8_layers().as_slice() {
        [] => Err(QuantizeError::Family(architecture.family().title())),
        _ => Ok(()),
    }
}

/// The tensors of a model in int8 for serving; see [`rules::for_serving`].
///
/// # Errors
/// All missing, unexpected, misshapen and non-finite tensors, in one error.
pub fn for_serving(
    architecture: &Architecture,
    tensors: NamedTensors,
    layers: &Layers,
) -> Result<NamedTensors, Misfits> {
    let (mut expected, mut misfits) = (architecture.expected_tensors(), Misfits::default());
    let mut unexpected: Vec<&String> = layers.keys().collect();
    for layer in architecture.int8_layers() {
        let weight = weight_of(&layer);
        let shape = expected.remove(&weight).unwrap_or_default();
        unexpected.retain(|name| **name != layer);
        match layers.get(&layer).map(|rounded| vec![rounded.outputs(), rounded.inputs()]) {
            None => misfits.missing.push(format!("{weight} in int8")),
            Some(found) if found == shape => {}
            Some(found) => misfits.misshapen.push(Misshapen { name: weight, expected: shape, found }),
        }
    }
    misfits.unexpected =
        unexpected.into_iter().map(|layer| format!("{} in int8", weight_of(layer))).collect();
    rules::served(architecture, &expected, tensors, misfits)
}
