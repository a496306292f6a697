//! What a run is told, as TOML; `configs/train` has commented examples.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::schedule::Schedule;
use crate::arithmetic::{PRECISION_SPEED_MIN, Pace, Precision};
use crate::message::{bounded, excerpt, one_line};
use crate::weights::family::{Architecture, Family, LOGIT_SCALE, Options, Preset};

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
    pub augmentation: Augmentation,
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
    /// HOSS layout for fine-tuning; OptiSar_Pair layout, or the training images of a HOSS layout, for pretraining. Not
    /// read where a server learns from a gallery.
    #[serde(default)]
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
    #[serde(default, skip_serializing_if = "Family::is_default")]
    pub family: Family,
    pub preset: Preset,
    pub size_token: bool,
    /// Whether every token is told its modality.
    #[serde(default = "yes")]
    pub modality_embedding: bool,
    #[serde(default = "mie_coefficient")]
    pub mie_coefficient: f32,
    /// Distance between patches, in pixels.
    #[serde(default = "stride")]
    pub stride: usize,
    /// Highest rate of stochastic depth.
    pub drop_path: f64,
    /// In which numbers the network runs; weights and optimizer are f32 in either.
    #[serde(default)]
    pub precision: Precision,
    /// Share of f32's speed that another precision must reach where it is trained; 0: any.
    #[serde(default = "precision_speed_min")]
    pub precision_speed_min: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub from: StartKind,
    /// The file or model folder; empty from scratch.
    #[serde(default)]
    pub path: PathBuf,
    /// Which of several weights in the file: its own where this is empty, "ema" for averaged ones, or their key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub weights: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    Scratch,
    /// A ViT that was trained on ImageNet: a file of torch, or safetensors.
    Imagenet,
    /// A model of the same family: the same, or a model folder.
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
    /// Biases learn faster by this factor.
    #[serde(default = "bias_factor")]
    pub bias_factor: f64,
    pub warm_up_epochs: u32,
    pub epochs: u32,
}

/// How training images are changed at random; the defaults are the authors'.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Share of images that are mirrored.
    pub flip: f64,
    /// Black pixels on every side of 256 rows, among which the crop moves; other chips have as much for their size.
    pub padding: usize,
    /// Share of images in which a rectangle becomes noise.
    pub erase: f64,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self { flip: 0.5, padding: 10, erase: 0.5 }
    }
}

/// What happens to gradients before the step; by default nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gradient {
    /// Parts of a batch that go through the network one after the other, to save memory.
    #[serde(alias = "parts")]
    pub accumulation_steps: usize,
    /// Gradients are clipped to this norm, over all tensors; 0: they are not.
    #[serde(alias = "norm_max")]
    pub grad_norm_max: f64,
}

/// Keys that had another name until the release before: section, old name, new name. The old one goes with the next.
const RENAMED: [(&str, &str, &str); 2] =
    [("gradient", "parts", "accumulation_steps"), ("gradient", "norm_max", "grad_norm_max")];

impl Default for Gradient {
    fn default() -> Self {
        Self { accumulation_steps: 1, grad_norm_max: 0.0 }
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

/// The defaults are the authors'; all but the last are of fine-tuning.
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
    /// Of pretraining, at its start: the logarithm of the factor of the cosines, which is learned.
    pub logit_scale: f32,
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
    /// How many stay. The newest two always do, since the newest may turn out to be damaged.
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
            logit_scale: LOGIT_SCALE,
        }
    }
}

impl ModelChoice {
    /// Without a classifier, whose rows the data set decides.
    pub fn architecture(&self) -> Architecture {
        let &Self { size_token, modality_embedding, mie_coefficient, stride, .. } = self;
        let options = Options { size_token, modality_embedding, mie_coefficient, stride };
        self.family.configured(self.preset, &options)
    }
}

impl ScheduleChoice {
    pub fn schedule(&self) -> Schedule {
        Schedule {
            base: self.base_rate,
            bias_factor: self.bias_factor,
            warm_up_epochs: self.warm_up_epochs,
            epochs: self.epochs,
        }
    }
}

/// What is wrong with one field, as a sentence that begins with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub problem: String,
}

/// Bytes of what is said of one value, which may repeat it.
const PROBLEM_MAX: usize = 1024;

impl Violation {
    /// What stands in for a line break of the configuration is a space.
    pub fn new(field: &str, problem: impl Into<String>) -> Self {
        Self { field: excerpt(field), problem: one_line(&bounded(&problem.into(), PROBLEM_MAX)) }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

/// Why a configuration starts no run; every message is one line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TrainConfigError {
    #[error("{0}")]
    Syntax(String),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
}

impl TrainConfigError {
    pub(super) fn syntax(problem: &str) -> Self {
        Self::Syntax(one_line(problem))
    }
}

impl TrainConfig {
    /// Reads a configuration, and checks its values as a whole.
    ///
    /// # Errors
    /// What TOML or the first wrong key says, or all values out of bounds at once.
    pub fn parse(text: &str) -> Result<Self, TrainConfigError> {
        let config = Self::read(text, &[])?;
        let violations = config.violations();
        if violations.is_empty() { Ok(config) } else { Err(TrainConfigError::Invalid(violations)) }
    }

    /// Reads a configuration whose values may be out of bounds. `settings` are `section.key=value` and win over the
    /// text; a value that is no TOML is text.
    ///
    /// # Errors
    /// What TOML or the first wrong key says.
    pub fn read(text: &str, settings: &[String]) -> Result<Self, TrainConfigError> {
        let one_line = |cause: toml::de::Error| {
            let lines = text[..cause.span().map_or(0, |span| span.start)].lines().count();
            TrainConfigError::syntax(&format!("line {}: {}", lines.max(1), cause.message()))
        };
        let mut table: Table = toml::from_str(text).map_err(one_line)?;
        take_new_names(&mut table);
        for setting in settings {
            apply(&mut table, setting).map_err(|problem| TrainConfigError::syntax(&problem))?;
            take_new_names(&mut table);
        }
        if settings.is_empty() {
            // Read from the text, an error knows its line.
            return toml::from_str(text).map_err(one_line);
        }
        let unfit = |cause: toml::de::Error| TrainConfigError::syntax(cause.to_string().trim());
        table.try_into().map_err(unfit)
    }

    /// Every value that is out of bounds or does not go with another one.
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

    /// What is wrong with the precision where the run would be; one that is slow and wanted all the same is logged.
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
        let Augmentation { flip, padding, erase } = self.augmentation;
        require((0.0..=1.0).contains(&flip), "augmentation.flip", "must be 0 to 1");
        require(padding <= 128, "augmentation.padding", "must be at most 128");
        require((0.0..=1.0).contains(&erase), "augmentation.erase", "must be 0 to 1");
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
        ] {
            require((0.0..=1000.0).contains(&weight), field, "must be 0 to 1000");
        }
        require(
            (0.0..1.0).contains(&loss.label_smoothing),
            "loss.label_smoothing",
            "must be 0 up to below 1",
        );
        require((1.0..=1024.0).contains(&loss.head_scale), "loss.head_scale", "must be 1 to 1024");
        require((0.0..=1.5).contains(&loss.head_margin), "loss.head_margin", "must be 0 to 1.5");
        require((0.0..=5.0).contains(&loss.logit_scale), "loss.logit_scale", "must be 0 to 5");
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
            !keep_best || (epochs > 0 && period.is_multiple_of(epochs)),
            "checkpoint.keep_best",
            "needs checkpoint.epochs to be a multiple of validation.epochs",
        );
    }
}

const fn yes() -> bool {
    true
}

const fn mie_coefficient() -> f32 {
    Options::AUTHORS.mie_coefficient
}

const fn stride() -> usize {
    Options::AUTHORS.stride
}

const fn precision_speed_min() -> f64 {
    PRECISION_SPEED_MIN
}

const fn bias_factor() -> f64 {
    Schedule::BIAS_FACTOR
}

fn take_new_names(table: &mut Table) {
    for (name, old, new) in RENAMED {
        let section = table.get_mut(name).and_then(Value::as_table_mut);
        if let Some((section, value)) =
            section.and_then(|section| section.remove(old).map(|value| (section, value)))
        {
            tracing::warn!("{name}.{old} is now {name}.{new}; the old name goes with the next release");
            section.insert(new.to_owned(), value);
        }
    }
}

/// Puts `section.key=value` into a table.
fn apply(table: &mut Table, setting: &str) -> Result<(), String> {
    let (key, text) = setting
        .split_once('=')
        .ok_or_else(|| format!("{} has no value: write section.key=value", excerpt(setting)))?;
    let parsed: Result<Table, _> = toml::from_str(&format!("value = {text}"));
    let value = parsed.ok().and_then(|mut parsed| parsed.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
    match key.split_once('.') {
        None => table.insert(key.to_owned(), value),
        Some((section, key)) => {
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            let section = section
                .as_table_mut()
                .ok_or_else(|| format!("{}: {} is in no section", excerpt(setting), excerpt(key)))?;
            section.insert(key.to_owned(), value)
        }
    };
    Ok(())
}

#[cfg(test)]
mod tests;
