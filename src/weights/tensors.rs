//! Named f32 tensors, the common form of every checkpoint.

use std::collections::BTreeMap;

/// A dense row-major tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Tensors by checkpoint name (`base.blocks.0.attn.qkv.weight`, ...), sorted.
///
/// Integer tensors (`num_batches_tracked`) are held as f32, exact up to 2^24.
pub type NamedTensors = BTreeMap<String, HostTensor>;
