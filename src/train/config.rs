//! What a run is told, as TOML; `configs/train` has commented examples.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::schedule::Schedule;

/// Everything about a run but where it writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    pub seed: u64,
    pub objective: ObjectiveName,
    pub data: Data,
    pub model: ModelChoice,
    pub start: Start,
    pub batch: BatchShape,
    pub optimizer: OptimizerChoice,
    pub schedule: ScheduleChoice,
    #[serde(default)]
    pub gradient: Gradient,
    #[serde(default)]
    pub loss: Loss,
    #[serde(default)]
    pub validation: ValidationChoice,
    pub checkpoint: CheckpointChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveName {
    FineTune,
    Contrastive,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// HOSS layout for fine-tuning, OptiSar_Pair layout for pretraining.
    pub root: PathBuf,
    /// Threads that read and augment images; 0: one a core.
    pub loader_threads: usize,
    /// Files that may be unreadable before the run ends; others take their place.
    #[serde(default)]
    pub unreadable_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelChoice {
    pub preset: PresetName,
    pub size_token: bool,
    /// Highest rate of stochastic depth.
    pub drop_path: f64,
    #[serde(default)]
    pub precision: Precision,
}

/// In which numbers the network runs; weights and optimizer are f32 in either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresetName {
    Tiny,
    Small,
    VitBase,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub from: StartKind,
    /// The file or model folder; empty from scratch.
    #[serde(default)]
    pub path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    Scratch,
    /// A ViT that was trained on ImageNet, as `.pth`.
    Imagenet,
    /// A TransOSS: a `.pth` or a model folder.
    Model,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchShape {
    pub images: usize,
    /// Pretraining does not read it.
    pub images_per_identity: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerChoice {
    Sgd { momentum: f64, weight_decay: f64 },
    Adamw { weight_decay: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleChoice {
    pub base_rate: f64,
    pub warm_up_epochs: u32,
    pub epochs: u32,
}

/// What happens to gradients before the step; by default nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gradient {
    /// Parts of a batch that go through the network one after the other, to save memory.
    pub parts: usize,
    /// Longest gradient, over all tensors; 0: any.
    pub norm_max: f64,
}

impl Default for Gradient {
    fn default() -> Self {
        Self { parts: 1, norm_max: 0.0 }
    }
}

/// What a run measures on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationChoice {
    /// Epochs between evaluations; 0: none.
    pub epochs: u32,
    /// Share of a pair set's folders that are held out; a HOSS folder brings its own test set.
    pub held_out: f64,
}

/// Of fine-tuning; the defaults are the authors'.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    pub identity_weight: f64,
    pub label_smoothing: f64,
    pub triplet_weight: f64,
    /// 0: the soft margin.
    pub triplet_margin: f64,
    pub alignment_weight: f64,
    pub head: HeadName,
    /// Of heads with a margin.
    pub head_scale: f64,
    pub head_margin: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadName {
    Linear,
    Arcface,
    Cosface,
    Circle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointChoice {
    /// Epochs between checkpoints.
    pub epochs: u32,
    /// How many stay.
    pub keep: usize,
    /// Whether the best one by validation stays as well.
    #[serde(default)]
    pub keep_best: bool,
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            identity_weight: 1.0,
            label_smoothing: 0.0,
            triplet_weight: 1.0,
            triplet_margin: 0.0,
            alignment_weight: 0.0,
            head: HeadName::Linear,
            head_scale: 30.0,
            head_margin: 0.5,
        }
    }
}

impl ScheduleChoice {
    pub fn schedule(&self) -> Schedule {
        Schedule { base: self.base_rate, warm_up_epochs: self.warm_up_epochs, epochs: self.epochs }
    }
}

/// Why a configuration starts no run; every message is one line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TrainConfigError {
    #[error("{0}")]
    Syntax(String),
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
}

impl TrainConfig {
    /// Reads and checks a configuration as a whole.
    ///
    /// # Errors
    /// What TOML or the first wrong key says, or all values out of bounds at once.
    pub fn parse(text: &str) -> Result<Self, TrainConfigError> {
        let one_line = |cause: toml::de::Error| {
            let lines: Vec<_> = text[..cause.span().map_or(0, |span| span.start)].lines().collect();
            TrainConfigError::Syntax(format!(
                "line {}: {}",
                lines.len().max(1),
                cause.message().replace('\n', " ")
            ))
        };
        let config: Self = toml::from_str(text).map_err(one_line)?;
        let violations = config.violations();
        if violations.is_empty() { Ok(config) } else { Err(TrainConfigError::Invalid(violations)) }
    }

    fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut require = |holds: bool, text: &str| {
            if !holds {
                found.push(text.to_owned());
            }
        };
        let (batch, loss, schedule) = (&self.batch, &self.loss, &self.schedule);
        require((0.0..1.0).contains(&self.model.drop_path), "model.drop_path must be 0 up to below 1");
        require(self.data.loader_threads <= 256, "data.loader_threads must be 0 to 256");
        require(
            (self.start.from == StartKind::Scratch) == self.start.path.as_os_str().is_empty(),
            "start.path must be set if and only if start.from is not \"scratch\"",
        );
        require((2..=4096).contains(&batch.images), "batch.images must be 2 to 4096");
        require(self.data.unreadable_max <= 100_000, "data.unreadable_max must be at most 100000");
        self.require_gradient(&mut require);
        self.require_validation(&mut require);
        match self.objective {
            ObjectiveName::FineTune => require(
                batch.images_per_identity >= 1 && batch.images.is_multiple_of(batch.images_per_identity),
                "batch.images must be a multiple of batch.images_per_identity, which is at least 1",
            ),
            ObjectiveName::Contrastive => {
                require(batch.images.is_multiple_of(2), "batch.images must be even: each pair has two");
            }
        }
        let (momentum, decay) = match self.optimizer {
            OptimizerChoice::Sgd { momentum, weight_decay } => (momentum, weight_decay),
            OptimizerChoice::Adamw { weight_decay } => (0.0, weight_decay),
        };
        require((0.0..1.0).contains(&momentum), "optimizer.momentum must be 0 up to below 1");
        require((0.0..=1.0).contains(&decay), "optimizer.weight_decay must be 0 to 1");
        require(
            schedule.base_rate > 0.0 && schedule.base_rate <= 10.0,
            "schedule.base_rate must be above 0 and at most 10",
        );
        require((1..=100_000).contains(&schedule.epochs), "schedule.epochs must be 1 to 100000");
        require(
            schedule.warm_up_epochs <= schedule.epochs,
            "schedule.warm_up_epochs must be at most schedule.epochs",
        );
        for (name, weight) in [
            ("identity_weight", loss.identity_weight),
            ("triplet_weight", loss.triplet_weight),
            ("triplet_margin", loss.triplet_margin),
            ("alignment_weight", loss.alignment_weight),
        ] {
            require((0.0..=1000.0).contains(&weight), &format!("loss.{name} must be 0 to 1000"));
        }
        require((0.0..1.0).contains(&loss.label_smoothing), "loss.label_smoothing must be 0 up to below 1");
        require((1.0..=1024.0).contains(&loss.head_scale), "loss.head_scale must be 1 to 1024");
        require((0.0..=1.5).contains(&loss.head_margin), "loss.head_margin must be 0 to 1.5");
        require(self.checkpoint.epochs >= 1, "checkpoint.epochs must be at least 1");
        require((1..=1000).contains(&self.checkpoint.keep), "checkpoint.keep must be 1 to 1000");
        found
    }

    fn require_gradient(&self, require: &mut impl FnMut(bool, &str)) {
        let Gradient { parts, norm_max } = self.gradient;
        let units = match self.objective {
            ObjectiveName::FineTune => self.batch.images / self.batch.images_per_identity.max(1),
            ObjectiveName::Contrastive => self.batch.images / 2,
        };
        require(
            parts >= 1 && units.is_multiple_of(parts),
            "gradient.parts must divide the identities or pairs of a batch",
        );
        require((0.0..=1e6).contains(&norm_max), "gradient.norm_max must be 0 to 1000000");
    }

    fn require_validation(&self, require: &mut impl FnMut(bool, &str)) {
        let ValidationChoice { epochs, held_out } = self.validation;
        require((0.0..1.0).contains(&held_out), "validation.held_out must be 0 up to below 1");
        require(
            held_out == 0.0 || self.objective == ObjectiveName::Contrastive,
            "validation.held_out is for pairs; a HOSS folder brings its own test set",
        );
        require(
            epochs == 0 || self.objective == ObjectiveName::FineTune || held_out > 0.0,
            "validation.epochs of pretraining needs validation.held_out above 0",
        );
        require(
            !self.checkpoint.keep_best || (epochs > 0 && self.checkpoint.epochs.is_multiple_of(epochs)),
            "checkpoint.keep_best needs checkpoint.epochs to be a multiple of validation.epochs",
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shipped(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train").join(name);
        std::fs::read_to_string(path).expect("a shipped file")
    }

    #[test]
    fn the_shipped_files_are_the_authors_settings() {
        let hoss = TrainConfig::parse(&shipped("hoss_transoss.toml")).expect("valid");
        assert_eq!(hoss.loss, Loss::default());
        assert_eq!(hoss.batch, BatchShape { images: 32, images_per_identity: 4 });
        assert_eq!(hoss.schedule, ScheduleChoice { base_rate: 5e-4, warm_up_epochs: 5, epochs: 200 });
        let pretrain = TrainConfig::parse(&shipped("pretrain_transoss.toml")).expect("valid");
        assert_eq!(pretrain.objective, ObjectiveName::Contrastive);
        assert_eq!(pretrain.schedule, ScheduleChoice { base_rate: 3e-3, warm_up_epochs: 5, epochs: 60 });
        assert!(!pretrain.model.size_token);
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_and_a_wrong_key_by_its_line() {
        let text = shipped("hoss_transoss.toml");
        let change = |changes: &[(&str, &str)]| {
            let text = changes.iter().fold(text.clone(), |text, (from, to)| {
                assert!(text.contains(from), "{from}");
                text.replace(from, to)
            });
            TrainConfig::parse(&text).expect_err("invalid")
        };
        let changes = [
            ("images = 32", "images = 33"),
            ("drop_path = 0.1", "drop_path = 1.0"),
            ("keep = 2", "keep = 0"),
        ];
        match change(&changes) {
            TrainConfigError::Invalid(found) => assert_eq!(found.len(), 3, "{found:?}"),
            other => panic!("{other:?}"),
        }
        let error = change(&[("base_rate", "base_lr")]).to_string();
        assert!(error.contains("base_lr") && error.lines().count() == 1, "{error}");
    }
}
