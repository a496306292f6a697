//! Starting weights from a ViT trained on ImageNet: no size token, one patch convolution, a square grid.

use std::collections::BTreeSet;

use super::architecture::Architecture;
use super::rules::{Misfits, Misshapen, Overlay, overlay};
use super::tensors::{HostTensor, NamedTensors};

/// Keys under which such a checkpoint may hold its tensors, outermost first.
pub const WRAPPERS: &[&str] = &["model", "state_dict"];

const OPTICAL: &str = "patch_embed.proj";
const SAR: &str = "patch_embed_SAR.proj";

/// What came of an initialisation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Initialisation {
    pub overlay: Overlay,
    /// Tensors of the checkpoint that no backbone takes: heads, distillation, `fc`.
    pub ignored: Vec<String>,
    /// Tensors of the checkpoint with another shape; the initial ones stay.
    pub misshapen: Vec<Misshapen>,
}

/// Replaces the backbone of `initial` by `checkpoint`, whose names have no `base.` in front.
///
/// Position embeddings are resized to the architecture's grid, flattened patch convolutions are unfolded, and
/// the SAR convolution starts as the optical one unless the checkpoint has its own.
///
/// # Errors
/// Names that the model lacks; `initial` is then unchanged.
pub fn initialise(
    initial: &mut NamedTensors,
    architecture: &Architecture,
    mut checkpoint: NamedTensors,
) -> Result<Initialisation, Misfits> {
    let mut ignored = BTreeSet::new();
    checkpoint.retain(|name, _| {
        let foreign = is_foreign(name) || (name == "mie_embed" && !architecture.modality_embedding);
        if foreign {
            ignored.insert(name.clone());
        }
        !foreign
    });
    copy_optical_convolution(&mut checkpoint);
    let mut taken = NamedTensors::new();
    let (mut misshapen, mut misfits) = (Vec::new(), Misfits::default());
    for (name, tensor) in checkpoint {
        let Some(own) = initial.get(&format!("base.{name}")) else {
            misfits.unexpected.push(name);
            continue;
        };
        let tensor = adapt(&name, tensor, &own.shape, architecture.grid());
        if tensor.shape == own.shape {
            taken.insert(format!("base.{name}"), tensor);
        } else {
            misshapen.push(Misshapen { name, expected: own.shape.clone(), found: tensor.shape });
        }
    }
    if misfits != Misfits::default() {
        return Err(misfits);
    }
    Ok(Initialisation { overlay: overlay(initial, taken), ignored: ignored.into_iter().collect(), misshapen })
}

/// Resizes `[1, 1 + side * side, D]` to `[1, 1 + rows * columns, D]`: the class row stays, the square grid is
/// interpolated bilinearly between pixel centres, without antialiasing, clamped at the edges.
///
/// `None` where the tensor is no class row and square grid.
pub fn resize_positions(positions: &HostTensor, (rows, columns): (usize, usize)) -> Option<HostTensor> {
    let &[1, count, width] = positions.shape.as_slice() else { return None };
    let side = count.checked_sub(1)?.isqrt();
    if side == 0 || side * side + 1 != count || width == 0 {
        return None;
    }
    let (class, grid) = positions.values.split_at_checked(width)?;
    let mut values = class.to_vec();
    for row in 0..rows {
        let (top, bottom, down) = neighbours(row, rows, side);
        for column in 0..columns {
            let (left, right, across) = neighbours(column, columns, side);
            values.extend((0..width).map(|channel| {
                let at = |row: usize, column: usize| grid[(row * side + column) * width + channel];
                let upper = at(top, left) * (1.0 - across) + at(top, right) * across;
                let lower = at(bottom, left) * (1.0 - across) + at(bottom, right) * across;
                upper * (1.0 - down) + lower * down
            }));
        }
    }
    Some(HostTensor { shape: vec![1, 1 + rows * columns, width], values })
}

/// Classifier heads and distillation tokens by the rule of the reference; `fc` has no place in a model here.
fn is_foreign(name: &str) -> bool {
    name.contains("head") || name.contains("dist") || name.starts_with("fc.")
}

fn copy_optical_convolution(checkpoint: &mut NamedTensors) {
    if checkpoint.contains_key(&format!("{SAR}.bias")) {
        return;
    }
    for part in ["weight", "bias"] {
        if let Some(optical) = checkpoint.get(&format!("{OPTICAL}.{part}")).cloned() {
            checkpoint.insert(format!("{SAR}.{part}"), optical);
        }
    }
}

/// The tensor in the model's shape where there is a rule for it, else as it is.
fn adapt(name: &str, tensor: HostTensor, shape: &[usize], grid: (usize, usize)) -> HostTensor {
    let is_flat_convolution = [OPTICAL, SAR].iter().any(|conv| name == format!("{conv}.weight"))
        && tensor.shape.len() == 2
        && tensor.shape[0] == shape[0]
        && tensor.values.len() == shape.iter().product::<usize>();
    if is_flat_convolution {
        HostTensor { shape: shape.to_vec(), values: tensor.values }
    } else if name == "pos_embed" && tensor.shape != shape {
        resize_positions(&tensor, grid).unwrap_or(tensor)
    } else {
        tensor
    }
}

/// The two old places around a new one, and how far it lies towards the second.
fn neighbours(index: usize, new: usize, old: usize) -> (usize, usize, f32) {
    let scale = old as f32 / new as f32;
    let place = ((index as f32 + 0.5) * scale - 0.5).max(0.0);
    let first = (place as usize).min(old - 1);
    (first, (first + 1).min(old - 1), place - first as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::golden::{self, MICRO};
    use crate::weights::pth;

    const TARGET: Architecture = Architecture { embed_dim: 8, depth: 1, heads: 2, ..MICRO };

    fn initial() -> NamedTensors {
        let constant = |shape: Vec<usize>| HostTensor { values: vec![0.25; shape.iter().product()], shape };
        TARGET.expected_tensors().into_iter().map(|(name, shape)| (name, constant(shape))).collect()
    }

    fn assert_close(found: &HostTensor, expected: &HostTensor, tolerance: f32) {
        assert_eq!(found.shape, expected.shape);
        let distance = |(a, b): (&f32, &f32)| (a - b).abs();
        let worst = found.values.iter().zip(&expected.values).map(distance).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{worst}");
    }

    #[test]
    fn positions_are_resized_as_recorded() {
        let recorded = golden::tensors("pos_embed");
        for (name, grid) in [("resized_16x8", (16, 8)), ("resized_4x2", (4, 2)), ("resized_21x10", (21, 10))]
        {
            let resized = resize_positions(&recorded["pos_embed_14x14"], grid).expect("a square grid");
            assert_close(&resized, &recorded[name], 1e-5);
        }
        let tensor =
            |shape: &[usize]| HostTensor { shape: shape.to_vec(), values: vec![0.0; shape.iter().product()] };
        for shape in [&[1, 7, 4][..], &[1, 1, 4], &[1, 0, 4], &[1, 5, 0], &[5, 4]] {
            assert_eq!(resize_positions(&tensor(shape), (4, 2)), None, "{shape:?}");
        }
    }

    #[test]
    fn both_recorded_files_initialise_the_recorded_backbone() {
        let expected = golden::tensors("load_imagenet_expected");
        for file in ["load_imagenet.pth", "load_imagenet_legacy.pth"] {
            let checkpoint = pth::read(&golden::path(file), WRAPPERS).expect("a checkpoint");
            let mut tensors = initial();
            let report = initialise(&mut tensors, &TARGET, checkpoint).expect("a backbone");
            for (name, tensor) in &expected {
                match name.strip_suffix(".first_row") {
                    Some(name) => assert_eq!(tensors[&format!("base.{name}")].values[..768], tensor.values),
                    None if name == "pos_embed" => assert_close(&tensors["base.pos_embed"], tensor, 1e-5),
                    None => assert_eq!(&tensors[&format!("base.{name}")], tensor, "{file} {name}"),
                }
            }
            for part in ["weight", "bias"] {
                let [optical, sar] = [OPTICAL, SAR].map(|conv| &tensors[&format!("base.{conv}.{part}")]);
                assert_eq!(optical, sar);
            }
            for name in ["base.mie_embed", "base.wh_embed.linear_layer.weight", "bottleneck.weight"] {
                assert!(report.overlay.kept.iter().any(|kept| kept == name), "{name}");
                assert_eq!(tensors[name], initial()[name]);
            }
            assert!(report.ignored.iter().any(|name| name == "head.weight"), "{:?}", report.ignored);
            assert!(report.ignored.iter().any(|name| name == "fc.weight"), "{:?}", report.ignored);
            assert_eq!(report.misshapen, []);
        }
    }

    #[test]
    fn an_own_sar_convolution_is_kept_and_an_absent_modality_embedding_skipped() {
        let mut checkpoint = pth::read(&golden::path("load_imagenet.pth"), WRAPPERS).expect("a checkpoint");
        let bias = HostTensor { shape: vec![8], values: vec![7.0; 8] };
        checkpoint.insert(format!("{SAR}.bias"), bias.clone());
        checkpoint.insert("mie_embed".to_owned(), HostTensor { shape: vec![2, 1, 8], values: vec![1.0; 16] });
        let without = Architecture { modality_embedding: false, ..TARGET };
        let mut tensors = initial();
        tensors.remove("base.mie_embed");
        let report = initialise(&mut tensors, &without, checkpoint).expect("a backbone");
        assert_eq!(tensors[&format!("base.{SAR}.bias")], bias);
        assert_eq!(tensors[&format!("base.{SAR}.weight")], initial()[&format!("base.{SAR}.weight")]);
        assert!(report.ignored.iter().any(|name| name == "mie_embed"));
    }

    #[test]
    fn another_shape_is_reported_and_an_unknown_name_stops() {
        let mut checkpoint = NamedTensors::from([(
            "norm.bias".to_owned(),
            HostTensor { shape: vec![9], values: vec![0.0; 9] },
        )]);
        let mut tensors = initial();
        let report = initialise(&mut tensors, &TARGET, checkpoint.clone()).expect("only reported");
        let expected = Misshapen { name: "norm.bias".to_owned(), expected: vec![8], found: vec![9] };
        assert_eq!((report.misshapen, report.overlay.loaded.len()), (vec![expected], 0));
        checkpoint
            .insert("blocks.1.norm1.bias".to_owned(), HostTensor { shape: vec![8], values: vec![0.0; 8] });
        let misfits = initialise(&mut tensors, &TARGET, checkpoint).expect_err("a second block");
        assert_eq!(misfits.unexpected, ["blocks.1.norm1.bias"]);
        assert_eq!(tensors, initial());
    }
}
