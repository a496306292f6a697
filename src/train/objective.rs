//! What a run learns: the terms of its loss and their weights.
//!
//! Shapes: B batch, D embedding, P pairs.

use tch::{Kind, Tensor};

use super::config::{AlignmentDistance, HeadName, Loss, ObjectiveName, TrainConfig};
use super::heads::Head;
use super::learn::LossTerms;
use super::losses::{self, Triplet};
use super::modality_losses;

/// The training objective.
#[derive(Clone, Debug, PartialEq)]
pub enum Objective {
    /// To distinguish identities.
    FineTune(FineTune),
    /// To find each optical image's SAR partner: the first half of a batch is optical, the second
    /// half their partners.
    Contrastive,
}

/// The terms of fine-tuning and their weights; 0 disables a term, except those of identities and triplets, which are
/// always measured.
#[derive(Clone, Debug, PartialEq)]
pub struct FineTune {
    pub identity_weight: f64,
    pub label_smoothing: f64,
    pub head: Head,
    pub triplet_weight: f64,
    pub triplet: Triplet,
    /// Class-wise modality alignment.
    pub alignment_weight: f64,
    pub alignment_distance: AlignmentDistance,
    /// For networks that separate what modalities share.
    pub orthogonality_weight: f64,
    pub structure_weight: f64,
    pub supcon_weight: f64,
    pub info_nce_weight: f64,
    /// Of both contrastive terms.
    pub temperature: f64,
}

/// What fine-tuning reads of a batch.
#[derive(Debug)]
pub(super) struct FineTuneBatch<'a> {
    /// [B, D]
    pub before_neck: Tensor,
    /// [B, D]
    pub after_neck: Tensor,
    /// [C, D]
    pub classifier: &'a Tensor,
    /// `[B]`
    pub labels: Tensor,
    /// `[B]`
    pub is_sar: Tensor,
    /// Of a network that separates what modalities share from what is specific to each.
    pub parts: Option<FeatureParts>,
}

/// What the losses of a network that separates modalities read of a batch.
#[derive(Debug)]
pub(super) struct FeatureParts {
    /// [B, D]
    pub shared: Tensor,
    /// [B, D]
    pub specific: Tensor,
    /// [B, D], see [`modality_losses::edges`].
    pub edges: Tensor,
}

/// A term of a loss.
struct Term {
    weight: f64,
    /// Where its value is recorded.
    measured: fn(&mut LossTerms) -> &mut f64,
    loss: Tensor,
}

impl From<&TrainConfig> for Objective {
    fn from(config: &TrainConfig) -> Self {
        match config.objective {
            ObjectiveName::Contrastive => Self::Contrastive,
            ObjectiveName::FineTune => Self::FineTune(FineTune::from(&config.loss)),
        }
    }
}

impl From<&Loss> for FineTune {
    fn from(loss: &Loss) -> Self {
        let (s, m) = (loss.head_scale, loss.head_margin);
        Self {
            identity_weight: loss.identity_weight,
            label_smoothing: loss.label_smoothing,
            head: match loss.head {
                HeadName::Linear => Head::Linear,
                HeadName::Arcface => Head::ArcFace { s, m, easy: false },
                HeadName::Cosface => Head::CosFace { s, m },
                HeadName::Circle => Head::Circle { s, m },
            },
            triplet_weight: loss.triplet_weight,
            triplet: Triplet {
                margin: Some(loss.triplet_margin).filter(|margin| *margin > 0.0),
                ..Triplet::default()
            },
            alignment_weight: loss.alignment_weight,
            alignment_distance: loss.alignment_distance,
            orthogonality_weight: loss.orthogonality_weight,
            structure_weight: loss.structure_weight,
            supcon_weight: loss.supcon_weight,
            info_nce_weight: loss.info_nce_weight,
            temperature: loss.temperature,
        }
    }
}

impl FineTune {
    /// Whether it reads the parts of features, for which a network must separate them.
    pub(super) fn reads_parts(&self) -> bool {
        self.orthogonality_weight > 0.0 || self.structure_weight > 0.0
    }

    pub(super) fn loss(&self, batch: &FineTuneBatch) -> (Tensor, LossTerms) {
        let FineTuneBatch { before_neck, after_neck, classifier, labels, .. } = batch;
        let scores = self.head.logits(after_neck, classifier, labels);
        let identity = losses::identity(&scores, labels, self.label_smoothing);
        let triplet = self.triplet.loss(before_neck, labels);
        let mut loss = &identity * self.identity_weight + &triplet * self.triplet_weight;
        let mut terms = LossTerms {
            identity: identity.double_value(&[]),
            triplet: triplet.double_value(&[]),
            accuracy: accuracy(&scores, labels),
            ..LossTerms::default()
        };
        for Term { weight, measured, loss: term } in self.further_terms(batch) {
            *measured(&mut terms) = term.double_value(&[]);
            loss += term * weight;
        }
        terms.total = loss.double_value(&[]);
        (loss, terms)
    }

    /// The terms that are enabled.
    fn further_terms(&self, batch: &FineTuneBatch) -> Vec<Term> {
        let FineTuneBatch { before_neck, labels, is_sar, parts, .. } = batch;
        let mut enabled = Vec::new();
        let mut add = |weight: f64, measured: fn(&mut LossTerms) -> &mut f64, loss: &dyn Fn() -> Tensor| {
            if weight > 0.0 {
                enabled.push(Term { weight, measured, loss: loss() });
            }
        };
        add(self.alignment_weight, |terms| &mut terms.alignment, &|| {
            modality_losses::alignment(before_neck, labels, is_sar, self.alignment_distance)
        });
        if let Some(FeatureParts { shared, specific, edges }) = parts {
            add(self.orthogonality_weight, |terms| &mut terms.orthogonality, &|| {
                modality_losses::orthogonality(shared, specific)
            });
            add(self.structure_weight, |terms| &mut terms.structure, &|| {
                modality_losses::structure(edges, labels, is_sar)
            });
        }
        add(self.supcon_weight, |terms| &mut terms.supcon, &|| {
            modality_losses::supcon(before_neck, labels, self.temperature)
        });
        add(self.info_nce_weight, |terms| &mut terms.info_nce, &|| {
            modality_losses::info_nce(before_neck, labels, is_sar, self.temperature)
        });
        enabled
    }
}

/// The loss of the features [P, D] of optical images, and of their partners.
pub(super) fn contrastive(optical: &Tensor, sar: &Tensor, logit_scale: &Tensor) -> (Tensor, LossTerms) {
    let pairs = optical.size()[0];
    let logits = losses::pair_logits(optical, sar, logit_scale);
    let loss = losses::contrastive(&logits);
    let value = loss.double_value(&[]);
    let partner = Tensor::arange(pairs, (Kind::Int64, optical.device()));
    let accuracy = accuracy(&logits, &partner);
    (loss, LossTerms { total: value, contrastive: value, accuracy, ..LossTerms::default() })
}

fn accuracy(scores: &Tensor, labels: &Tensor) -> f64 {
    scores.argmax(1, false).eq_tensor(labels).to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
}
