//! Models in int8 as files.
//!
//! In `model.safetensors` a rounded layer has `NAME.weight` (I8, `[outputs, inputs]`) and `NAME.weight_scale` (F32,
//! `[outputs]`) in place of `NAME.weight` in f32. Everything else is as in other models.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

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

/// How a model in int8 was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    precision: StoredPrecision,
    /// Digest of the model in f32; verified as a part of this model's own.
    #[serde(with = "digest_text")]
    pub source: ModelDigest,
    /// The program that made it, for display.
    pub tool: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredPrecision {
    Int8,
}

impl Quantization {
    /// Made by this program from `source`.
    pub fn now(source: ModelDigest) -> Self {
        let tool = concat!("shipreid ", env!("CARGO_PKG_VERSION")).to_owned();
        Self { precision: StoredPrecision::Int8, source, tool }
    }
}

mod digest_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::embedding::ModelDigest;

    pub fn serialize<S: Serializer>(digest: &ModelDigest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ModelDigest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
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

/// The tensors and layers in `bytes`.
///
/// # Errors
/// If the bytes are malformed, or hold numbers of another type or codes that are not those of a layer.
pub fn parse(bytes: &[u8]) -> Result<(NamedTensors, Layers), String> {
    let file = SafeTensors::deserialize(bytes).map_err(|cause| cause.to_string())?;
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
                return Err(format!("tensor {} holds {other:?}, not F32 or I8", printable(name)));
            }
        }
    }
    let mut layers = Layers::new();
    for (name, view) in coded {
        let layer = layer_in(name, &view, &mut tensors);
        let (layer, rounded) = layer.map_err(|cause| format!("tensor {}: {cause}", printable(name)))?;
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

/// The name of a layer's weight.
pub fn weight_of(layer: &str) -> String {
    format!("{layer}{WEIGHT}")
}

fn scale_of(weight: &str) -> String {
    format!("{weight}{SCALE}")
}
