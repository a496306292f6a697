//! Recorded and closed-form weights for tests: those with which the reference program was run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};

use super::family::transoss::TransOssArchitecture;
use super::family::{ArchitectureHints, FamilyArchitecture as _};
use super::open::{Hints, OpenModel};
use super::tensors::{HostTensor, NamedTensors};
use crate::chip::{ChipSize, Modality};

/// The model of the `micro` fixtures and of the recorded checkpoints.
pub const MICRO: TransOssArchitecture = TransOssArchitecture {
    image: ChipSize { height: 64, width: 32 },
    embed_dim: 16,
    depth: 2,
    heads: 2,
    classes: 5,
    ..TransOssArchitecture::vit_base()
};

/// Classes of `base.fc` and of the classifier in the full-size recording.
const FULL_FC_CLASSES: usize = 1000;
const FULL_CLASSES: usize = 100;

/// A chip of the full-size recording.
pub struct FullSizeInput {
    /// `[3, 256, 128]`, already normalised.
    pub pixels: Vec<f32>,
    pub modality: Modality,
    pub size_token: [f32; 3],
}

/// The checkout: the one from which the tests were built, unless they were moved to another machine.
fn checkout() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

/// Path of a recorded file.
pub fn path(name: &str) -> PathBuf {
    checkout().join("tests/golden").join(name)
}

/// The model of `sdf_net.pth`, which `sdf_net.py` made.
pub fn sdf_net() -> OpenModel {
    let architecture =
        ArchitectureHints { image: Some(MICRO.image), heads: Some(2), ..ArchitectureHints::default() };
    let hints = Hints { architecture, ..Hints::default() };
    OpenModel::open(&path("sdf_net.pth"), &hints).expect("a checkpoint of an SDF-Net")
}

/// Path of a checkpoint saved in the manner of another program.
pub fn checkpoint_case(name: &str) -> PathBuf {
    checkout().join("tests/cases/checkpoints").join(name)
}

/// The bytes of a recorded file.
pub fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).expect("recorded files are part of the checkout")
}

/// The f32, f64 and i64 tensors, as f32, of `tests/golden/<name>.safetensors`.
pub fn tensors(name: &str) -> NamedTensors {
    let bytes = bytes(&format!("{name}.safetensors"));
    let file = SafeTensors::deserialize(&bytes).expect("a recorded file is well formed");
    file.iter()
        .filter_map(|(name, view)| {
            let values = match view.dtype() {
                Dtype::F32 => chunks(view.data()).map(f32::from_le_bytes).collect(),
                Dtype::F64 => chunks(view.data()).map(|bytes| f64::from_le_bytes(bytes) as f32).collect(),
                Dtype::I64 => chunks(view.data()).map(|bytes| i64::from_le_bytes(bytes) as f32).collect(),
                _ => return None,
            };
            Some((name.to_owned(), HostTensor { shape: view.shape().to_vec(), values }))
        })
        .collect()
}

/// Rows of the inputs that most sets share.
pub struct Inputs {
    /// `[rows, 3, 64, 32]`, already normalised.
    pub pixels: HostTensor,
    pub modalities: Vec<Modality>,
    /// `[rows, 3]`
    pub size_tokens: HostTensor,
}

/// Rows `index` of the shared inputs, whose pixels are stored as 32nds in i8.
pub fn inputs(index: &[usize]) -> Inputs {
    let bytes = bytes("inputs.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("a recorded file is well formed");
    let pixels = file.tensor("images_q").expect("recorded").data().to_vec();
    let pixels: Vec<f32> = pixels.into_iter().map(|byte| f32::from(byte.cast_signed()) / 32.0).collect();
    let others = tensors("inputs");
    let select = |values: &[f32], row: &[usize]| {
        let length: usize = row.iter().product();
        let values = index.iter().flat_map(|number| values[number * length..][..length].to_vec()).collect();
        HostTensor { shape: [&[index.len()], row].concat(), values }
    };
    Inputs {
        pixels: select(&pixels, &[3, 64, 32]),
        modalities: index.iter().map(|row| modality(others["cam"].values[*row])).collect(),
        size_tokens: select(&others["img_wh"].values, &[3]),
    }
}

/// The modality of a recorded id: 0 optical, 1 SAR.
pub fn modality(id: f32) -> Modality {
    if id == 0.0 { Modality::Optical } else { Modality::Sar }
}

/// The architecture of the full-size recording.
pub fn full_size_architecture() -> TransOssArchitecture {
    TransOssArchitecture { classes: FULL_CLASSES, ..TransOssArchitecture::vit_base() }
}

/// All 164 tensors of the full-size recording (ViT-B), rebuilt from their closed formula.
pub fn full_size_golden() -> NamedTensors {
    let mut shapes = full_size_architecture().expected_tensors();
    shapes.insert("base.fc.weight".to_owned(), vec![FULL_FC_CLASSES, 768]);
    shapes.insert("base.fc.bias".to_owned(), vec![FULL_FC_CLASSES]);
    closed_form(shapes)
}

/// Input `index` (0 to 3) of the full-size recording.
pub fn full_size_input(index: usize) -> FullSizeInput {
    let (height, width) = (256, 128);
    let [image, block, colour, size] =
        ["image", "block", "colour", "wh"].map(|part| seed(&format!("input.{part}.{index}")));
    let pixels = (0..3 * height * width)
        .map(|flat| {
            let (channel, y, x) = (flat / (height * width), flat / width % height, flat % width);
            let block_index = (channel * height / 16 + y / 16) * (width / 16) + x / 16;
            (uniform(image, flat) * 0.5 + uniform(block, block_index)) + uniform(colour, channel)
        })
        .collect();
    FullSizeInput {
        pixels,
        modality: modality((index % 2) as f32),
        size_token: [0, 1, 2].map(|k| uniform(size, k) * 4.0),
    }
}

fn closed_form(shapes: BTreeMap<String, Vec<usize>>) -> NamedTensors {
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let seed = seed(&name);
            let value = formula(&name, &shape);
            let values = (0..shape.iter().product()).map(|flat| value(uniform(seed, flat))).collect();
            (name, HostTensor { shape, values })
        })
        .collect()
}

/// How a tensor's values are derived from its uniform numbers; every factor is a power of two.
fn formula(name: &str, shape: &[usize]) -> Box<dyn Fn(f32) -> f32> {
    if name.ends_with("num_batches_tracked") {
        return Box::new(|_| 0.0);
    }
    if name == "logit_scale" {
        return Box::new(|_| 2.6592);
    }
    let (offset, scale) = if name.ends_with("running_var") {
        (1.0, 0.25)
    } else if name.ends_with("running_mean") {
        (0.0, 0.125)
    } else if name.ends_with(".bias") {
        (0.0, 0.0625)
    } else if name.contains("norm") || name == "bottleneck.weight" {
        (1.0, 0.125)
    } else if ["base.cls_token", "base.pos_embed", "base.mie_embed"].contains(&name) {
        (0.0, 0.25)
    } else {
        match shape.iter().skip(1).product::<usize>() {
            3 => (0.0, 1.0),
            3072 => (0.0, 1.0 / 32.0),
            _ => (0.0, 1.0 / 16.0),
        }
    };
    Box::new(move |uniform| offset + uniform * scale)
}

/// 32-bit FNV-1a of the name.
fn seed(name: &str) -> u32 {
    name.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A number in [-1, 1) that is exact in f32.
fn uniform(seed: u32, flat: usize) -> f32 {
    let mut x = (flat as u32).wrapping_mul(0x9E37_79B9).wrapping_add(seed);
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^= x >> 16;
    (x >> 8) as f32 * f32::exp2(-23.0) - 1.0
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shape, sum of all f32 bit patterns and first values, as recorded for every tensor.
    #[derive(serde::Deserialize)]
    struct Recorded {
        shape: Vec<usize>,
        sum_u32: u32,
        first: Vec<f32>,
    }

    fn bit_sum(values: &[f32]) -> u32 {
        values.iter().fold(0, |sum: u32, value| sum.wrapping_add(value.to_bits()))
    }

    #[test]
    fn the_closed_formula_gives_every_recorded_tensor_bit_for_bit() {
        let mut manifest: BTreeMap<String, Recorded> =
            serde_json::from_slice(&bytes("full/manifest.json")).expect("a well-formed manifest");
        let input = manifest.remove("input.image.0").expect("the first input is recorded");
        assert_eq!(input.sum_u32, bit_sum(&full_size_input(0).pixels));
        let mut tensors = full_size_golden();
        assert_eq!(tensors.len(), 164);
        let counter = tensors.remove("bottleneck.num_batches_tracked").expect("part of the state dict");
        assert_eq!(
            (counter.shape, counter.values),
            (vec![], vec![0.0]),
            "an integer, so without recorded bits"
        );
        assert!(tensors.keys().eq(manifest.keys()));
        for (name, tensor) in &tensors {
            let recorded = &manifest[name];
            assert_eq!(tensor.shape, recorded.shape, "{name}");
            assert!(recorded.first.iter().zip(&tensor.values).all(|(a, b)| a == b), "{name}");
            assert_eq!(bit_sum(&tensor.values), recorded.sum_u32, "{name}");
        }
    }
}
