//! Values of a configuration that are out of bounds or incompatible with others.

use std::fmt;

use super::{
    Augmentation, BatchShape, CheckpointChoice, Gradient, ObjectiveName, OptimizerChoice, ScheduleChoice,
    StartKind, TrainConfig, ValidationChoice,
};
use crate::arithmetic::{Pace, Precision};
use crate::message::{bounded, excerpt, one_line};

/// A problem with one field, as a sentence that begins with the field's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub problem: String,
}

/// Maximum size in bytes of the message about one value, which may repeat the value.
const PROBLEM_MAX: usize = 1024;

impl Violation {
    /// Line breaks from the configuration become spaces.
    pub fn new(field: &str, problem: impl Into<String>) -> Self {
        Self { field: excerpt(field), problem: one_line(&bounded(&problem.into(), PROBLEM_MAX)) }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

impl TrainConfig {
    /// Every value that is out of bounds or incompatible with another.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut require = |holds: bool, field: &str, problem: &str| {
            if !holds {
                found.push(Violation::new(field, problem));
            }
        };
        self.require_model(&mut require);
        self.require_augmentation(&mut require);
        self.require_batch(&mut require);
        self.require_optimizer(&mut require);
        self.require_loss(&mut require);
        self.require_validation(&mut require);
        found
    }

    /// Problems with the precision on the training machine; a slow precision that is allowed
    /// nevertheless is logged.
    pub fn too_slow(&self, pace: &Pace) -> Option<Violation> {
        if pace.speed < self.model.precision_speed_min {
            let way_out = "\"f32\" is faster, and model.precision_speed_min = 0 trains all the same";
            return Some(Violation::new("model.precision", format!("is refused: {pace}; {way_out}")));
        }
        if pace.is_slow() {
            tracing::warn!(%pace, "model.precision = \"f32\" would train faster");
        }
        None
    }

    fn require_model(&self, require: &mut impl FnMut(bool, &str, &str)) {
        let (model, data) = (&self.model, &self.data);
        require((0.0..1.0).contains(&model.drop_path), "model.drop_path", "must be 0 up to below 1");
        require((1..=16).contains(&model.stride), "model.stride", "must be 1 to 16");
        require(
            (0.0..=100.0).contains(&model.precision_speed_min),
            "model.precision_speed_min",
            "must be 0 to 100",
        );
        require(
            model.precision != Precision::Int8,
            "model.precision",
            "must be \"f32\" or \"bf16\": int8 has no gradients",
        );
        let coefficient = model.mie_coefficient;
        require((-1000.0..=1000.0).contains(&coefficient), "model.mie_coefficient", "must be -1000 to 1000");
        require(data.loader_threads <= 256, "data.loader_threads", "must be 0 to 256");
        require(data.unreadable_max <= 100_000, "data.unreadable_max", "must be at most 100000");
        require(
            (self.start.from == StartKind::Scratch) == self.start.path.as_os_str().is_empty(),
            "start.path",
            "must be set if and only if start.from is not \"scratch\"",
        );
    }

    fn require_augmentation(&self, require: &mut impl FnMut(bool, &str, &str)) {
        let Augmentation { flip, padding, erase, jitter } = self.augmentation;
        require((0.0..=1.0).contains(&flip), "augmentation.flip", "must be 0 to 1");
        require(padding <= 128, "augmentation.padding", "must be at most 128");
        require((0.0..=1.0).contains(&erase), "augmentation.erase", "must be 0 to 1");
        require((0.0..=1.0).contains(&jitter), "augmentation.jitter", "must be 0 to 1");
    }

    fn require_batch(&self, require: &mut impl FnMut(bool, &str, &str)) {
        let BatchShape { images, images_per_identity } = self.batch;
        require((2..=4096).contains(&images), "batch.images", "must be 2 to 4096");
        let units = match self.objective {
            ObjectiveName::FineTune => {
                require(
                    images_per_identity >= 1 && images.is_multiple_of(images_per_identity),
                    "batch.images",
                    "must be a multiple of batch.images_per_identity, which is at least 1",
                );
                images / images_per_identity.max(1)
            }
            ObjectiveName::Contrastive => {
                require(images.is_multiple_of(2), "batch.images", "must be even: each pair has two");
                images / 2
            }
        };
        let Gradient { accumulation_steps, grad_norm_max } = self.gradient;
        require(
            accumulation_steps >= 1 && units.is_multiple_of(accumulation_steps),
            "gradient.accumulation_steps",
            "must divide the identities or pairs of a batch",
        );
        require((0.0..=1e6).contains(&grad_norm_max), "gradient.grad_norm_max", "must be 0 to 1000000");
    }

    fn require_optimizer(&self, require: &mut impl FnMut(bool, &str, &str)) {
        let (momentum, decay) = match self.optimizer {
            OptimizerChoice::Sgd { momentum, weight_decay } => (momentum, weight_decay),
            OptimizerChoice::Adamw { weight_decay } => (0.0, weight_decay),
        };
        require((0.0..1.0).contains(&momentum), "optimizer.momentum", "must be 0 up to below 1");
        require((0.0..=1.0).contains(&decay), "optimizer.weight_decay", "must be 0 to 1");
        let ScheduleChoice { base_rate, bias_factor, warm_up_epochs, epochs } = self.schedule;
        require(base_rate > 0.0 && base_rate <= 10.0, "schedule.base_rate", "must be above 0 and at most 10");
        require((0.0..=100.0).contains(&bias_factor), "schedule.bias_factor", "must be 0 to 100");
        require((1..=100_000).contains(&epochs), "schedule.epochs", "must be 1 to 100000");
        require(warm_up_epochs <= epochs, "schedule.warm_up_epochs", "must be at most schedule.epochs");
    }

    fn require_loss(&self, require: &mut impl FnMut(bool, &str, &str)) {
        let loss = &self.loss;
        for (field, weight) in [
            ("loss.identity_weight", loss.identity_weight),
            ("loss.triplet_weight", loss.triplet_weight),
            ("loss.triplet_margin", loss.triplet_margin),
            ("loss.alignment_weight", loss.alignment_weight),
            ("loss.orthogonality_weight", loss.orthogonality_weight),
            ("loss.structure_weight", loss.structure_weight),
            ("loss.supcon_weight", loss.supcon_weight),
            ("loss.info_nce_weight", loss.info_nce_weight),
        ] {
            require((0.0..=1000.0).contains(&weight), field, "must be 0 to 1000");
        }
        require(
            (0.0..1.0).contains(&loss.label_smoothing),
            "loss.label_smoothing",
            "must be 0 up to below 1",
        );
        let separates = self.model.architecture().separates_modalities();
        for (field, weight) in [
            ("loss.orthogonality_weight", loss.orthogonality_weight),
            ("loss.structure_weight", loss.structure_weight),
        ] {
            require(
                weight == 0.0 || separates,
                field,
                "needs a network that separates what modalities share: model.family = \"sdf_net\"",
            );
        }
        require((0.001..=10.0).contains(&loss.temperature), "loss.temperature", "must be 0.001 to 10");
        require((1.0..=1024.0).contains(&loss.head_scale), "loss.head_scale", "must be 1 to 1024");
        require((0.0..=1.5).contains(&loss.head_margin), "loss.head_margin", "must be 0 to 1.5");
        require((0.0..=5.0).contains(&loss.logit_scale), "loss.logit_scale", "must be 0 to 5");
    }

    /// Whether the best checkpoint is kept and becomes the model.
    pub fn keeps_best(&self) -> bool {
        self.checkpoint.keep_best.unwrap_or_else(|| self.evaluates_checkpoints())
    }

    /// Whether every checkpoint is evaluated.
    fn evaluates_checkpoints(&self) -> bool {
        let (evaluation, checkpoint) = (self.validation.epochs, self.checkpoint.epochs);
        evaluation > 0 && checkpoint.is_multiple_of(evaluation)
    }

    fn require_validation(&self, require: &mut impl FnMut(bool, &str, &str)) {
        let ValidationChoice { epochs, held_out } = self.validation;
        let CheckpointChoice { epochs: period, keep, keep_best } = self.checkpoint;
        require((0.0..1.0).contains(&held_out), "validation.held_out", "must be 0 up to below 1");
        require(
            held_out == 0.0 || self.objective == ObjectiveName::Contrastive,
            "validation.held_out",
            "is for pairs; a HOSS folder brings its own test set",
        );
        require(
            epochs == 0 || self.objective == ObjectiveName::FineTune || held_out > 0.0,
            "validation.epochs",
            "of pretraining needs validation.held_out above 0",
        );
        require(period >= 1, "checkpoint.epochs", "must be at least 1");
        require((1..=1000).contains(&keep), "checkpoint.keep", "must be 1 to 1000");
        require(
            keep_best != Some(true) || self.evaluates_checkpoints(),
            "checkpoint.keep_best",
            "needs checkpoint.epochs to be a multiple of validation.epochs",
        );
    }
}
