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

#[cfg(target_endian = "big")]
compile_error!("files have the lowest byte of a number first, and are read as they are");

/// `values` as a file holds them.
pub fn file_bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// `values` to be read from a file.
pub fn file_bytes_mut(values: &mut [f32]) -> &mut [u8] {
    bytemuck::cast_slice_mut(values)
}

/// Maximum number of characters of a name that a message shows.
const SHOWN_MAX: usize = 120;

/// The beginning of a name from a file, without anything that could act on a terminal.
pub fn printable(name: &str) -> String {
    name.chars().take(SHOWN_MAX).flat_map(char::escape_default).collect()
}
