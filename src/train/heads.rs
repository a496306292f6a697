//! The training heads after the neck: a linear classifier, or one on angles with a margin for the true class.
//!
//! Shapes: B batch, D embedding, C classes.

use std::f64::consts::PI;

use tch::{Kind, Tensor};

/// Keeps sin = sqrt(1 - cos^2) away from the point where its slope is infinite.
const SINE_SQUARED_MIN: f64 = 1e-12;

/// How features [B, D] and class weights [C, D] become logits [B, C]. `s` is the scale, `m` the margin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Head {
    Linear,
    /// Deng et al., 2019; `easy` adds the margin only where the true class is on the right side.
    ArcFace {
        s: f64,
        m: f64,
        easy: bool,
    },
    /// Wang et al., 2018; the same as AM-Softmax.
    CosFace {
        s: f64,
        m: f64,
    },
    /// Sun et al., 2020, with class weights as proxies.
    Circle {
        s: f64,
        m: f64,
    },
}

impl Head {
    /// Logits for features whose true classes are `labels` `[B]`.
    pub fn logits(&self, features: &Tensor, weight: &Tensor, labels: &Tensor) -> Tensor {
        let target = |cosine: &Tensor| labels.one_hot(cosine.size()[1]).to_kind(Kind::Bool);
        match *self {
            Self::Linear => features.linear(weight, None::<&Tensor>),
            Self::ArcFace { s, m, easy } => {
                let cosine = cosines(features, weight);
                let sine = (-cosine.square() + 1.0).clamp(SINE_SQUARED_MIN, 1.0).sqrt();
                let turned = &cosine * m.cos() - sine * m.sin();
                let with_margin = if easy {
                    turned.where_self(&cosine.gt(0.0), &cosine)
                } else {
                    turned.where_self(&cosine.gt((PI - m).cos()), &(&cosine - m * (PI - m).sin()))
                };
                with_margin.where_self(&target(&cosine), &cosine) * s
            }
            Self::CosFace { s, m } => {
                let cosine = cosines(features, weight);
                (&cosine - m).where_self(&target(&cosine), &cosine) * s
            }
            Self::Circle { s, m } => {
                let cosine = cosines(features, weight);
                // The logits are weighted by their distances from the optimum; no gradient flows
                // through these weights.
                let positive = (-cosine.detach() + (1.0 + m)).clamp_min(0.0) * (&cosine - (1.0 - m));
                let negative = (cosine.detach() + m).clamp_min(0.0) * (&cosine - m);
                positive.where_self(&target(&cosine), &negative) * s
            }
        }
    }
}

/// [B, C]
fn cosines(features: &Tensor, weight: &Tensor) -> Tensor {
    let unit = |rows: &Tensor| rows / rows.norm_scalaropt_dim(2, [1], true).clamp_min(1e-12);
    unit(features).linear(&unit(weight), None::<&Tensor>)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::on_host;
    use crate::train::losses::identity;
    use crate::weights::golden;

    #[test]
    fn every_head_gives_the_recorded_logits_and_gradients() {
        let recorded = golden::tensors("margin_losses");
        let labels = on_host(&recorded["label"]).to_kind(Kind::Int64);
        for (name, head, scale) in [
            ("arcface_s30_m05", Head::ArcFace { s: 30.0, m: 0.5, easy: false }, 30.0),
            ("arcface_easy_s30_m05", Head::ArcFace { s: 30.0, m: 0.5, easy: true }, 30.0),
            ("arcface_s64_m03", Head::ArcFace { s: 64.0, m: 0.3, easy: false }, 64.0),
            ("cosface_s30_m05", Head::CosFace { s: 30.0, m: 0.5 }, 30.0),
            ("amsoftmax_s30_m05", Head::CosFace { s: 30.0, m: 0.5 }, 30.0),
            ("circle_s30_m05", Head::Circle { s: 30.0, m: 0.5 }, 30.0),
            ("circle_s256_m025", Head::Circle { s: 256.0, m: 0.25 }, 256.0),
        ] {
            let features = on_host(&recorded["feat"]).set_requires_grad(true);
            let weight = on_host(&recorded["weight"]).set_requires_grad(true);
            let logits = head.logits(&features, &weight, &labels);
            let get = |what: &str| on_host(&recorded[&format!("{name}.{what}")]);
            let difference = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
            let off = difference(&logits, &get("logits"));
            assert!(off <= 1e-4 * scale / 30.0, "{name}: {off}");
            let loss = identity(&logits, &labels, 0.0);
            let expected = get("ce").double_value(&[]);
            assert!((loss.double_value(&[]) / expected - 1.0).abs() <= 1e-4, "{name}");
            loss.backward();
            let mut dweight = get("dweight");
            if name.starts_with("amsoftmax") {
                dweight = dweight.transpose(0, 1);
            }
            for (found, expected) in [(features.grad(), get("dfeat")), (weight.grad(), dweight)] {
                let off = difference(&found, &expected);
                let largest = expected.abs().max().double_value(&[]);
                assert!(off <= 1e-3 * largest, "{name}: {off} of {largest}");
            }
        }
    }
}
