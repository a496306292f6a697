//! Losses of fine-tuning and pretraining; those between modalities are in `modality_losses`.
//!
//! Shapes: B batch, D embedding, C classes, P pairs. Each loss is a scalar.

use tch::{Kind, Reduction, Tensor};

/// Keeps a square root away from the point where its slope is infinite.
pub(super) const SQUARE_MIN: f64 = 1e-12;
const NORM_MIN: f64 = 1e-12;
/// A label that no class has.
const NO_LABEL: i64 = -100;

/// Mean cross entropy of `scores` `[B, C]` against `labels` `[B]`. With smoothing, a true class has
/// weight 1 - smoothing + smoothing / C, every other smoothing / C.
pub fn identity(scores: &Tensor, labels: &Tensor, smoothing: f64) -> Tensor {
    scores.cross_entropy_loss(labels, None::<&Tensor>, Reduction::Mean, NO_LABEL, smoothing)
}

/// Triplet loss with the hardest examples of a batch (Hermans et al., 2017).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Triplet {
    /// `None`: the soft margin, log(1 + exp(positive - negative)).
    pub margin: Option<f64>,
    /// Whether features are normalised to unit length first.
    pub normalise: bool,
    /// Weight of positives is 1 + this, of negatives 1 - this.
    pub hard_factor: f64,
}

impl Default for Triplet {
    fn default() -> Self {
        Self { margin: None, normalise: false, hard_factor: 0.0 }
    }
}

impl Triplet {
    /// The loss of `features` `[B, D]` with `labels` `[B]`.
    pub fn loss(&self, features: &Tensor, labels: &Tensor) -> Tensor {
        let features = if self.normalise { unit(features) } else { features.shallow_clone() };
        let hardest = Hardest::of(&pairwise_distances(&features), labels);
        let positive = hardest.positive * (1.0 + self.hard_factor);
        let negative = hardest.negative * (1.0 - self.hard_factor);
        match self.margin {
            None => (positive - negative).softplus().mean(Kind::Float),
            Some(margin) => (positive - negative + margin).clamp_min(0.0).mean(Kind::Float),
        }
    }
}

/// For each anchor of a batch, the farthest sample of its own label, itself included, and the
/// nearest of another.
struct Hardest {
    /// `[B]`
    positive: Tensor,
    negative: Tensor,
    #[cfg(test)]
    indices: [Tensor; 2],
}

impl Hardest {
    /// The same from `distances` `[B, B]` and `labels` `[B]`.
    fn of(distances: &Tensor, labels: &Tensor) -> Self {
        let same = labels.unsqueeze(1).eq_tensor(&labels.unsqueeze(0));
        let (positive, _positive_index) =
            distances.masked_fill(&same.logical_not(), f64::NEG_INFINITY).max_dim(1, false);
        let (negative, _negative_index) = distances.masked_fill(&same, f64::INFINITY).min_dim(1, false);
        Self {
            positive,
            negative,
            #[cfg(test)]
            indices: [_positive_index, _negative_index],
        }
    }
}

/// sqrt(|a|^2 + |b|^2 - 2 a b) for every pair of rows: `[B, D]` -> `[B, B]`.
fn pairwise_distances(features: &Tensor) -> Tensor {
    let squares = features.square().sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    let products = features.matmul(&features.transpose(0, 1));
    (&squares + squares.transpose(0, 1) - products * 2.0).clamp_min(SQUARE_MIN).sqrt()
}

/// x / (|x| + 1e-12), row by row.
pub(super) fn unit(features: &Tensor) -> Tensor {
    features / (features.norm_scalaropt_dim(2, [1], true) + NORM_MIN)
}

/// exp(`logit_scale`) times the cosine of every SAR [P, D] with every optical feature [P, D]: [P, P], row SAR.
pub fn pair_logits(optical: &Tensor, sar: &Tensor, logit_scale: &Tensor) -> Tensor {
    let unit = |features: &Tensor| features / features.norm_scalaropt_dim(2, [1], true);
    unit(sar).matmul(&unit(optical).transpose(0, 1)) * logit_scale.exp()
}

/// Contrastive loss (CLIP; Radford et al., 2021) of [`pair_logits`]: each row and column must find its partner.
pub fn contrastive(logits: &Tensor) -> Tensor {
    let partner = Tensor::arange(logits.size()[0], (Kind::Int64, logits.device()));
    (identity(logits, &partner, 0.0) + identity(&logits.transpose(0, 1), &partner, 0.0)) / 2.0
}

/// Squared distance of each feature `[B, D]` from the centre [C, D] of its class, averaged over the batch
/// (Wen et al., 2016, without their 1/2).
pub fn center(features: &Tensor, labels: &Tensor, centers: &Tensor) -> Tensor {
    let offsets = features - centers.index_select(0, labels);
    let squares = offsets.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    squares.clamp(1e-12, 1e12).mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::on_host;
    use crate::weights::golden;
    use crate::weights::tensors::{HostTensor, NamedTensors};

    fn close(what: &str, found: &Tensor, expected: &HostTensor, atol: f64) {
        let difference = (found - on_host(expected)).abs().max().double_value(&[]);
        assert!(difference <= atol, "{what}: {difference} > {atol}");
    }

    fn labels(recorded: &NamedTensors) -> Tensor {
        on_host(&recorded["label"]).to_kind(Kind::Int64)
    }

    /// The loss and its gradient with respect to `input`.
    fn check(recorded: &NamedTensors, name: &str, input: &str, loss: impl Fn(&Tensor, &Tensor) -> Tensor) {
        let input = on_host(&recorded[input]).set_requires_grad(true);
        let loss = loss(&input, &labels(recorded));
        close(name, &loss, &recorded[&format!("loss.{name}")], 1e-5);
        loss.backward();
        let gradient = &recorded[&format!("dloss.{name}")];
        let largest = gradient.values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        close(name, &input.grad(), gradient, 1e-4 * f64::from(largest));
    }

    #[test]
    fn every_loss_and_its_gradient_are_the_recorded_ones() {
        let recorded = golden::tensors("train_step");
        let check_id = |name, smoothing| {
            check(&recorded, name, "score", move |scores, labels| identity(scores, labels, smoothing));
        };
        check_id("id_ce", 0.0);
        check_id("id_ce_ls01", 0.1);
        check_id("id_ce_ls_timm01", 0.1);
        let check_triplet = |name, triplet: Triplet| {
            check(&recorded, name, "feat", move |features, labels| triplet.loss(features, labels));
        };
        let plain = Triplet::default();
        check_triplet("triplet_soft", plain);
        check_triplet("triplet_m03", Triplet { margin: Some(0.3), ..plain });
        check_triplet("triplet_soft_normfeat", Triplet { normalise: true, ..plain });
        check_triplet("triplet_soft_hf02", Triplet { hard_factor: 0.2, ..plain });
    }

    #[test]
    fn the_hardest_examples_are_the_recorded_ones() {
        let recorded = golden::tensors("train_step");
        let distances = pairwise_distances(&on_host(&recorded["feat"]));
        let off_diagonal =
            Tensor::ones([12, 12], tch::kind::FLOAT_CPU) - Tensor::eye(12, tch::kind::FLOAT_CPU);
        let expected = on_host(&recorded["dist_mat"]);
        let difference = ((&distances - expected) * off_diagonal).abs().max().double_value(&[]);
        assert!(difference <= 1e-4, "{difference}");
        let hardest = Hardest::of(&distances, &labels(&recorded));
        close("positive", &hardest.positive, &recorded["hard.dist_ap"], 1e-4);
        close("negative", &hardest.negative, &recorded["hard.dist_an"], 1e-4);
        close("positive index", &hardest.indices[0], &recorded["hard.p_index"], 0.0);
        close("negative index", &hardest.indices[1], &recorded["hard.n_index"], 0.0);
    }

    #[test]
    fn the_centre_loss_is_the_recorded_one() {
        let recorded = golden::tensors("margin_losses");
        let features = on_host(&recorded["feat"]).set_requires_grad(true);
        let centers = on_host(&recorded["weight"]).set_requires_grad(true);
        let loss = center(&features, &labels(&recorded), &centers);
        let expected = f64::from(recorded["center.loss"].values[0]);
        assert!((loss.double_value(&[]) / expected - 1.0).abs() <= 1e-4);
        loss.backward();
        for (tensor, name) in [(&features, "center.dfeat"), (&centers, "center.dcenters")] {
            let gradient = &recorded[name];
            let largest = gradient.values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            close(name, &tensor.grad(), gradient, 1e-3 * f64::from(largest));
        }
    }
}
