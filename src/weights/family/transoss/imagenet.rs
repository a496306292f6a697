//! Starting weights from a ViT trained on ImageNet: no size token, one patch convolution, a square grid.

use super::TransOssArchitecture;
use crate::weights::family::FamilyArchitecture as _;
use crate::weights::fit::{Fit, Untaken, UntakenReason};
use crate::weights::misfits::Misfits;
use crate::weights::tensors::{HostTensor, NamedTensors};

const OPTICAL: &str = "patch_embed.proj";
const SAR: &str = "patch_embed_SAR.proj";

/// Replaces the backbone of `initial` by `checkpoint`, whose names lack the prefix `base.`.
///
/// Position embeddings are resized to the architecture's grid, flattened patch convolutions are unfolded, and
/// the SAR convolution is initialised with the optical one unless the checkpoint has its own.
///
/// # Errors
/// Names that the model lacks, and tensors with values that are not finite; `initial` is then unchanged.
pub(in crate::weights::family) fn initialise(
    initial: &mut NamedTensors,
    architecture: &TransOssArchitecture,
    mut checkpoint: NamedTensors,
) -> Result<Fit, Misfits> {
    let foreign = |name: &str| match name {
        name if is_foreign(name) => Some(UntakenReason::Head),
        "mie_embed" if !architecture.modality_embedding => Some(UntakenReason::NoModality),
        _ => None,
    };
    let mut untaken: Vec<Untaken> = checkpoint
        .extract_if(.., |name, _| foreign(name).is_some())
        .filter_map(|(name, tensor)| {
            let reason = foreign(&name)?;
            Some(Untaken { name, found: Some(tensor.shape), expected: None, reason })
        })
        .collect();
    let has_copy = copy_optical_convolution(&mut checkpoint);
    let (mut taken, mut misfits) = (NamedTensors::new(), Misfits::default());
    for (name, tensor) in checkpoint {
        let Some(own) = initial.get(&format!("base.{name}")) else {
            misfits.unexpected.push(name);
            continue;
        };
        let tensor = adapt(&name, tensor, &own.shape, architecture.grid());
        if tensor.shape == own.shape {
            misfits.compare(&name, &own.shape, &tensor);
            taken.insert(format!("base.{name}"), tensor);
        } else if !(has_copy && name.starts_with(SAR)) {
            let (found, expected) = (Some(tensor.shape), Some(own.shape.clone()));
            untaken.push(Untaken { name, found, expected, reason: UntakenReason::Shape });
        }
    }
    if misfits != Misfits::default() {
        return Err(misfits);
    }
    Ok(Fit::overlay(initial, architecture.block_prefix(), taken, untaken))
}

/// Resizes `[1, 1 + side * side, D]` to `[1, 1 + rows * columns, D]`: the class row stays, the square grid is
/// [`resized`].
///
/// `None` if the tensor is not a class row and a square grid.
fn resize_positions(positions: &HostTensor, (rows, columns): (usize, usize)) -> Option<HostTensor> {
    let &[1, count, width] = positions.shape.as_slice() else { return None };
    let side = count.checked_sub(1)?.isqrt();
    if side == 0 || side * side + 1 != count || width == 0 {
        return None;
    }
    let (class, grid) = positions.values.split_at_checked(width)?;
    let values = [class, &resized(grid, (side, side), (rows, columns))].concat();
    Some(HostTensor { shape: vec![1, 1 + rows * columns, width], values })
}

/// Interpolates a grid of vectors, row by row, to other numbers of rows and columns: bilinearly between pixel centres,
/// without antialiasing, clamped at the edges.
pub(in crate::weights::family) fn resized(
    grid: &[f32],
    (old_rows, old_columns): (usize, usize),
    (rows, columns): (usize, usize),
) -> Vec<f32> {
    let width = grid.len() / (old_rows * old_columns);
    let mut values = Vec::with_capacity(rows * columns * width);
    for row in 0..rows {
        let (top, bottom, down) = neighbours(row, rows, old_rows);
        for column in 0..columns {
            let (left, right, across) = neighbours(column, columns, old_columns);
            values.extend((0..width).map(|channel| {
                let at = |row: usize, column: usize| grid[(row * old_columns + column) * width + channel];
                let upper = at(top, left) * (1.0 - across) + at(top, right) * across;
                let lower = at(bottom, left) * (1.0 - across) + at(bottom, right) * across;
                upper * (1.0 - down) + lower * down
            }));
        }
    }
    values
}

/// Classifier heads and distillation tokens, by the rule of the reference. `fc` does not exist in
/// models here.
fn is_foreign(name: &str) -> bool {
    name.contains("head") || name.contains("dist") || name.starts_with("fc.")
}

/// Whether the file lacks a separate convolution for SAR.
fn copy_optical_convolution(checkpoint: &mut NamedTensors) -> bool {
    if checkpoint.contains_key(&format!("{SAR}.bias")) {
        return false;
    }
    for part in ["weight", "bias"] {
        if let Some(optical) = checkpoint.get(&format!("{OPTICAL}.{part}")).cloned() {
            checkpoint.insert(format!("{SAR}.{part}"), optical);
        }
    }
    true
}

/// The tensor converted to the model's shape if there is a rule for it, otherwise unchanged.
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

/// The two old positions around a new one, and the interpolation weight of the second.
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
    use crate::weights::start::VIT_WRAPPERS;
    use crate::weights::wrapper::WeightsChoice;

    const TARGET: TransOssArchitecture = TransOssArchitecture { embed_dim: 8, depth: 1, heads: 2, ..MICRO };

    fn initial() -> NamedTensors {
        let constant = |shape: Vec<usize>| HostTensor { values: vec![0.25; shape.iter().product()], shape };
        TARGET.expected_tensors().into_iter().map(|(name, shape)| (name, constant(shape))).collect()
    }

    fn read(file: &str) -> NamedTensors {
        pth::read(&golden::path(file), VIT_WRAPPERS, &WeightsChoice::Own).expect("a checkpoint").tensors
    }

    fn is_untaken(fit: &Fit, name: &str) -> bool {
        fit.untaken.iter().any(|tensor| tensor.name == name)
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
            let mut tensors = initial();
            let fit = initialise(&mut tensors, &TARGET, read(file)).expect("a backbone");
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
                assert!(fit.kept.iter().any(|kept| kept == name), "{name}");
                assert_eq!(tensors[name], initial()[name]);
            }
            assert!(is_untaken(&fit, "head.weight") && is_untaken(&fit, "fc.weight"), "{:?}", fit.untaken);
            assert!(
                fit.untaken.iter().all(|tensor| tensor.reason == UntakenReason::Head),
                "{:?}",
                fit.untaken
            );
            assert_eq!((fit.blocks.whole, fit.blocks.of), (1, 1));
        }
    }

    #[test]
    fn an_own_sar_convolution_is_kept_and_an_absent_modality_embedding_skipped() {
        let mut checkpoint = read("load_imagenet.pth");
        let bias = HostTensor { shape: vec![8], values: vec![7.0; 8] };
        checkpoint.insert(format!("{SAR}.bias"), bias.clone());
        checkpoint.insert("mie_embed".to_owned(), HostTensor { shape: vec![2, 1, 8], values: vec![1.0; 16] });
        let without = TransOssArchitecture { modality_embedding: false, ..TARGET };
        let mut tensors = initial();
        tensors.remove("base.mie_embed");
        let fit = initialise(&mut tensors, &without, checkpoint).expect("a backbone");
        assert_eq!(tensors[&format!("base.{SAR}.bias")], bias);
        assert_eq!(tensors[&format!("base.{SAR}.weight")], initial()[&format!("base.{SAR}.weight")]);
        assert!(is_untaken(&fit, "mie_embed"));
    }

    #[test]
    fn another_shape_is_reported_and_an_unknown_name_stops() {
        let mut checkpoint = NamedTensors::from([(
            "norm.bias".to_owned(),
            HostTensor { shape: vec![9], values: vec![0.0; 9] },
        )]);
        let mut tensors = initial();
        let fit = initialise(&mut tensors, &TARGET, checkpoint.clone()).expect("only reported");
        let (found, expected) = (Some(vec![9]), Some(vec![8]));
        let untaken = Untaken { name: "norm.bias".to_owned(), found, expected, reason: UntakenReason::Shape };
        assert_eq!(untaken.to_string(), "norm.bias [9] (the model's has [8])");
        assert_eq!((fit.untaken, fit.loaded.len(), fit.blocks.touched), (vec![untaken], 0, 0));
        checkpoint
            .insert("blocks.1.norm1.bias".to_owned(), HostTensor { shape: vec![8], values: vec![0.0; 8] });
        let misfits = initialise(&mut tensors, &TARGET, checkpoint).expect_err("a second block");
        assert_eq!(misfits.unexpected, ["blocks.1.norm1.bias"]);
        assert_eq!(tensors, initial());
    }
}
