//! Models whose linear layers are in int8: rounded from a model in f32, and stored as codes and scales.
//!
//! In `model.safetensors` such a layer has `NAME.weight` (I8, `[outputs, inputs]`) and `NAME.weight_scale` (F32,
//! `[outputs]`) in place of `NAME.weight` in f32. Everything else is as in other models.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::family::Architecture;
use super::misfits::{Misfits, Misshapen};
use super::native::{NativeError, Quantization};
use super::open::OpenModel;
use super::rules;
use super::tensors::{HostTensor, NamedTensors, printable};
use crate::embedding::ModelDigest;
use crate::int8::Rounded;

const WEIGHT: &str = ".weight";
const SCALE: &str = "_scale";

/// Rounded layers by name (`base.blocks.0.attn.qkv`, ...), sorted.
pub type Layers = BTreeMap<String, Rounded>;

/// What a model in int8 has beside the tensors that stayed in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    pub origin: Quantization,
    pub layers: Layers,
}

/// Why a model has no form in int8.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantizeError {
    #[error("it is in int8 already, made from model {0}")]
    Already(ModelDigest),
    #[error("no layer of a {0} can be computed in int8")]
    Family(&'static str),
}

/// Why a model in int8 is not that of a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("it is not in int8")]
    NotInt8,
    #[error("it says that it was made from model {named}, not from {given}")]
    Other { named: ModelDigest, given: ModelDigest },
    #[error("it says that it was made from model {origin}, which gives model {expected} in int8")]
    Differs { origin: ModelDigest, expected: ModelDigest },
    #[error("it cannot have been made from its source: {0}")]
    Impossible(#[from] QuantizeError),
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

/// `tensors` and `layers` as a safetensors file.
pub fn tensor_bytes(tensors: &NamedTensors, layers: &Layers) -> Vec<u8> {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut parts: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), Dtype::F32, tensor.shape.clone(), bytes(&tensor.values)))
        .collect();
    for (layer, rounded) in layers {
        let (outputs, codes) = (rounded.outputs(), rounded.codes().iter().map(|code| code.cast_unsigned()));
        let weight = weight_of(layer);
        parts.push((scale_of(&weight), Dtype::F32, vec![outputs], bytes(rounded.scales())));
        parts.push((weight, Dtype::I8, vec![outputs, rounded.inputs()], codes.collect()));
    }
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("as many values as the shape says"))
    });
    safetensors::serialize(views, None).expect("every tensor holds as many values as its shape")
}

/// The tensors and layers in `bytes`, which were read from `path`.
///
/// # Errors
/// If the bytes are malformed, or hold numbers of another type or codes that are not those of a layer.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<(NamedTensors, Layers), NativeError> {
    let malformed = |cause: String| NativeError::Tensors { path: path.to_owned(), cause };
    let file = SafeTensors::deserialize(bytes).map_err(|cause| malformed(cause.to_string()))?;
    let (mut tensors, mut coded) = (NamedTensors::new(), Vec::new());
    for (name, view) in file.iter() {
        match view.dtype() {
            Dtype::F32 => {
                let values = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                let tensor = HostTensor { shape: view.shape().to_vec(), values: values.collect() };
                tensors.insert(name.to_owned(), tensor);
            }
            Dtype::I8 => coded.push((name, view)),
            other => {
                return Err(malformed(format!("tensor {} holds {other:?}, not F32 or I8", printable(name))));
            }
        }
    }
    let mut layers = Layers::new();
    for (name, view) in coded {
        let layer = layer_in(name, &view, &mut tensors);
        let (layer, rounded) =
            layer.map_err(|cause| malformed(format!("tensor {}: {cause}", printable(name))))?;
        layers.insert(layer, rounded);
    }
    Ok((tensors, layers))
}

/// The layer with these codes, whose scales are taken from `tensors`.
fn layer_in(name: &str, codes: &TensorView, tensors: &mut NamedTensors) -> Result<(String, Rounded), String> {
    let layer = name.strip_suffix(WEIGHT).ok_or("codes are of a weight, and this is none")?;
    let &[outputs, inputs] = codes.shape() else {
        return Err(format!("a weight has 2 axes, this has {}", codes.shape().len()));
    };
    let scales = tensors.remove(&scale_of(name)).ok_or("it has no scales")?;
    if scales.shape != [outputs] {
        return Err(format!("{outputs} outputs have scales of the shape {:?}", scales.shape));
    }
    let codes = codes.data().iter().map(|code| code.cast_signed()).collect();
    let rounded = Rounded::new(inputs, codes, scales.values).map_err(|cause| cause.to_string())?;
    Ok((layer.to_owned(), rounded))
}

fn weight_of(layer: &str) -> String {
    format!("{layer}{WEIGHT}")
}

fn scale_of(weight: &str) -> String {
    format!("{weight}{SCALE}")
}

#[cfg(test)]
mod tests;
