//! Losses between the modalities of an identity, and contrastive ones.
//!
//! Shapes: B batch, D embedding. `labels` `[B]` are integers, `is_sar` `[B]` is boolean. Each loss is a scalar, and zero
//! where the batch has nothing to compare.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::config::AlignmentDistance;
use super::losses::{SQUARE_MIN, unit};

/// Keeps a sample's deviation away from zero.
const DEVIATION_MIN: f64 = 1e-5;

/// Class-wise modality alignment (MOS, arXiv 2512.03404): over the identities with both modalities in the batch, the mean
/// distance between the two modalities' means plus that between their biased variances, on unit features `[B, D]`.
pub fn alignment(features: &Tensor, labels: &Tensor, is_sar: &Tensor, distance: AlignmentDistance) -> Tensor {
    let features = unit(features);
    let distances = with_both_modalities(labels, is_sar).into_iter().map(|rows| {
        let [(mean, variance), (sar_mean, sar_variance)] = rows.map(|rows| moments(&of(&features, &rows)));
        between(&sar_mean, &mean, distance) + between(&sar_variance, &variance, distance)
    });
    mean_or_zero(distances.collect(), &features)
}

/// Orthogonality of the two parts [B, D] of a feature (SDF-Net, arXiv 2603.12588): the mean absolute cosine.
pub fn orthogonality(shared: &Tensor, specific: &Tensor) -> Tensor {
    (unit(shared) * unit(specific))
        .sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
        .abs()
        .mean(Kind::Float)
}

/// The edges of a chip, as SDF-Net's program takes them: the mean absolute forward differences of its patches
/// [B, rows, columns, D] along the height and along the width, added, each chip's standardised over its channels: [B, D].
pub fn edges(patches: &Tensor) -> Tensor {
    let along = |axis: i64| {
        let steps = patches.size()[axis as usize] - 1;
        let differences = patches.narrow(axis, 1, steps) - patches.narrow(axis, 0, steps);
        differences.abs().mean_dim([1i64, 2].as_slice(), false, Kind::Float)
    };
    let edges = along(1) + along(2);
    edges.layer_norm([edges.size()[1]], None::<&Tensor>, None, DEVIATION_MIN, false)
}

/// Structural consistency (SDF-Net): the mean squared difference between the modalities' mean [`edges`] [B, D], over
/// channels and over the identities with both modalities. The paper sums over channels.
pub fn structure(edges: &Tensor, labels: &Tensor, is_sar: &Tensor) -> Tensor {
    let distances = with_both_modalities(labels, is_sar).into_iter().map(|rows| {
        let [optical, sar] =
            rows.map(|rows| of(edges, &rows).mean_dim([0i64].as_slice(), false, Kind::Float));
        (optical - sar).square().mean(Kind::Float)
    });
    mean_or_zero(distances.collect(), edges)
}

/// Supervised contrastive loss (Khosla et al., 2020, outside the logarithm) of the cosines of `features` [B, D] over
/// `temperature`: the images of an anchor's identity, itself excepted, share the mass of its target.
pub fn supcon(features: &Tensor, labels: &Tensor, temperature: f64) -> Tensor {
    let features = unit(features);
    let itself = Tensor::eye(features.size()[0], (Kind::Float, features.device())).to_kind(Kind::Bool);
    let logits = features.matmul(&features.transpose(0, 1)) / temperature;
    let logits = logits.masked_fill(&itself, f64::NEG_INFINITY);
    let positives = labels.unsqueeze(1).eq_tensor(&labels.unsqueeze(0)).logical_and(&itself.logical_not());
    shared_mass(&logits, &positives)
}

/// Cross-modal InfoNCE: the mean of the cross entropies of optical images against all SAR images of the batch and of SAR
/// against optical ones, each over its own softmax, among identities with both modalities; the positives of a row share
/// the mass of its target. `features` are [B, D], their cosines are divided by `temperature`.
pub fn info_nce(features: &Tensor, labels: &Tensor, is_sar: &Tensor, temperature: f64) -> Tensor {
    let features = unit(features);
    let identities = with_both_modalities(labels, is_sar);
    if identities.is_empty() {
        return zero(&features);
    }
    let [optical, sar] = [0, 1].map(|side: usize| {
        let rows: Vec<&Tensor> = identities.iter().map(|rows| &rows[side]).collect();
        Tensor::cat(&rows, 0)
    });
    let logits = of(&features, &optical).matmul(&of(&features, &sar).transpose(0, 1)) / temperature;
    let positives = of(labels, &optical).unsqueeze(1).eq_tensor(&of(labels, &sar).unsqueeze(0));
    let back = shared_mass(&logits.transpose(0, 1), &positives.transpose(0, 1));
    (shared_mass(&logits, &positives) + back) / 2.0
}

/// Cross entropy of rows of `logits` against `positives`, both [R, C], which share a row's mass; the mean over the rows
/// that have any.
fn shared_mass(logits: &Tensor, positives: &Tensor) -> Tensor {
    let counts = positives.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let of_positives = logits.log_softmax(1, Kind::Float).masked_fill(&positives.logical_not(), 0.0);
    let rows = of_positives.sum_dim_intlist([1i64].as_slice(), false, Kind::Float) / counts.clamp_min(1.0);
    -rows.sum(Kind::Float) / counts.gt(0.0).sum(Kind::Float).clamp_min(1.0)
}

/// For each identity with both modalities, the numbers of its rows in the batch: optical ones and SAR ones.
fn with_both_modalities(labels: &Tensor, is_sar: &Tensor) -> Vec<[Tensor; 2]> {
    let device = labels.device();
    let labels = Vec::<i64>::try_from(labels.to_device(tch::Device::Cpu)).expect("labels are integers");
    let is_sar = Vec::<bool>::try_from(is_sar.to_device(tch::Device::Cpu)).expect("a mask");
    let mut identities: BTreeMap<i64, [Vec<i64>; 2]> = BTreeMap::new();
    for (row, (label, is_sar)) in labels.into_iter().zip(is_sar).enumerate() {
        identities.entry(label).or_default()[usize::from(is_sar)].push(row as i64);
    }
    let of_both = identities.into_values().filter(|rows| rows.iter().all(|rows| !rows.is_empty()));
    of_both.map(|rows| rows.map(|rows| Tensor::from_slice(&rows).to_device(device))).collect()
}

fn of(all: &Tensor, rows: &Tensor) -> Tensor {
    all.index_select(0, rows)
}

/// Mean and biased variance of rows: [R, D] -> `[D]` each.
fn moments(rows: &Tensor) -> (Tensor, Tensor) {
    let mean = rows.mean_dim([0i64].as_slice(), true, Kind::Float);
    let variance = (rows - &mean).square().mean_dim([0i64].as_slice(), false, Kind::Float);
    (mean.squeeze_dim(0), variance)
}

fn between(a: &Tensor, b: &Tensor, distance: AlignmentDistance) -> Tensor {
    let squares = (a - b).square().sum(Kind::Float);
    match distance {
        AlignmentDistance::Euclidean => squares.clamp_min(SQUARE_MIN).sqrt(),
        AlignmentDistance::Squared => squares,
    }
}

fn mean_or_zero(losses: Vec<Tensor>, of: &Tensor) -> Tensor {
    if losses.is_empty() { zero(of) } else { Tensor::stack(&losses, 0).mean(Kind::Float) }
}

/// Zero, with a gradient of zeros.
fn zero(of: &Tensor) -> Tensor {
    of.sum(Kind::Float) * 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::on_host;
    use crate::weights::golden;
    use crate::weights::tensors::NamedTensors;

    const TEMPERATURE: f64 = 0.07;

    fn close(what: &str, found: &Tensor, expected: &Tensor, atol: f64) {
        let difference = (found - expected).abs().max().double_value(&[]);
        assert!(difference <= atol, "{what}: {difference} > {atol}");
    }

    fn labels(recorded: &NamedTensors) -> Tensor {
        on_host(&recorded["label"]).to_kind(Kind::Int64)
    }

    /// A loss and its gradients with respect to `inputs`, by their recorded names.
    fn check(recorded: &NamedTensors, name: &str, inputs: &[(&Tensor, String)], loss: &Tensor) {
        close(name, loss, &on_host(&recorded[&format!("loss.{name}")]), 1e-5);
        loss.backward();
        for (input, gradient) in inputs {
            let expected = on_host(&recorded[gradient]);
            let largest = expected.abs().max().double_value(&[]);
            close(gradient, &input.grad(), &expected, 1e-4 * largest);
        }
    }

    #[test]
    fn losses_on_features_and_their_gradients_are_those_of_a_program_in_torch() {
        let recorded = golden::tensors("modality_losses");
        let (labels, is_sar) = (labels(&recorded), on_host(&recorded["is_sar"]).to_kind(Kind::Bool));
        let check = |name: &str, loss: &dyn Fn(&Tensor) -> Tensor| {
            let features = on_host(&recorded["feat"]).set_requires_grad(true);
            let value = loss(&features);
            check(&recorded, name, &[(&features, format!("dloss.{name}"))], &value);
        };
        check("alignment", &|features| alignment(features, &labels, &is_sar, AlignmentDistance::Euclidean));
        check("alignment_squared", &|features| {
            alignment(features, &labels, &is_sar, AlignmentDistance::Squared)
        });
        check("supcon", &|features| supcon(features, &labels, TEMPERATURE));
        check("info_nce", &|features| info_nce(features, &labels, &is_sar, TEMPERATURE));
    }

    #[test]
    fn losses_of_an_sdf_net_and_their_gradients_are_those_of_a_program_in_torch() {
        let recorded = golden::tensors("sdf_net");
        let is_sar: Vec<bool> = golden::inputs(&(0..12).collect::<Vec<_>>())
            .modalities
            .into_iter()
            .map(|modality| modality == crate::chip::Modality::Sar)
            .collect();
        let leaf = |name: &str| on_host(&recorded[name]).set_requires_grad(true);
        let [shared, specific, patches] = ["shared", "specific", "patches"].map(leaf);
        let inputs = [
            (&shared, "dloss.orthogonality.shared".to_owned()),
            (&specific, "dloss.orthogonality.specific".to_owned()),
        ];
        check(&recorded, "orthogonality", &inputs, &orthogonality(&shared, &specific));
        let edges = edges(&patches.view([12, 8, 4, 16]));
        let loss = structure(&edges, &labels(&recorded), &Tensor::from_slice(&is_sar));
        check(&recorded, "structure", &[(&patches, "dloss.structure.patches".to_owned())], &loss);
    }

    #[test]
    fn modalities_are_compared_where_an_identity_shows_both() {
        let features = Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]).view([4, 2]);
        let is_sar = Tensor::from_slice(&[false, true, false, true]);
        let check = |labels: [i64; 4], euclidean: f64, squared: f64| {
            let labels = Tensor::from_slice(&labels);
            for (distance, expected) in
                [(AlignmentDistance::Euclidean, euclidean), (AlignmentDistance::Squared, squared)]
            {
                let found = alignment(&features, &labels, &is_sar, distance).double_value(&[]);
                assert!((found - expected).abs() < 1e-5, "{distance:?}: {found}");
            }
        };
        // Means (1, 0) and (0, 1), zero variance.
        check([0, 0, 1, 1], 2.0_f64.sqrt(), 2.0);
        // Identity 0 has both modalities, identity 1 optical only.
        check([0, 0, 1, 0], 2.0_f64.sqrt(), 2.0);
        check([0, 1, 2, 3], 0.0, 0.0);
    }

    #[test]
    fn a_batch_with_nothing_to_compare_has_no_loss_and_gradients_of_zero() {
        type Loss<'a> = &'a dyn Fn(&Tensor) -> Tensor;
        let labels = Tensor::from_slice(&[0i64, 1, 2, 3]);
        let is_sar = Tensor::from_slice(&[false, true, false, true]);
        let losses: [(&str, Loss); 4] = [
            ("alignment", &|x| alignment(x, &labels, &is_sar, AlignmentDistance::Euclidean)),
            ("structure", &|x| structure(x, &labels, &is_sar)),
            ("supcon", &|x| supcon(x, &labels, TEMPERATURE)),
            ("info_nce", &|x| info_nce(x, &labels, &is_sar, TEMPERATURE)),
        ];
        for (name, loss) in losses {
            let features = Tensor::arange(8, tch::kind::FLOAT_CPU).view([4, 2]).set_requires_grad(true);
            let loss = loss(&features);
            loss.backward();
            assert_eq!(loss.double_value(&[]), 0.0, "{name}");
            assert_eq!(features.grad().abs().max().double_value(&[]), 0.0, "{name}");
        }
    }
}
