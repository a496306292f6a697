//! The configuration of a run, as TOML; `configs/train` has commented examples.

mod read;
mod violations;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use read::TrainConfigError;
pub use violations::Violation;

use super::schedule::Schedule;
use crate::arithmetic::{PRECISION_SPEED_MIN, Precision};
use crate::chip::{ChipSize, SarStretch};
use crate::weights::family::{Architecture, Family, LOGIT_SCALE, Options, Preset};

/// All settings of a run except its output folder.
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
    /// HOSS layout for fine-tuning; OptiSar_Pair layout, or the training images of a HOSS layout, for
    /// pretraining. Ignored where a server learns from a gallery.
    #[serde(default)]
    pub root: PathBuf,
    /// Threads that read and augment images; 0: one per core.
    pub loader_threads: usize,
    /// Number of files that may be unreadable before the run ends; other files replace them.
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
    /// Whether every token receives a modality embedding.
    #[serde(default = "yes")]
    pub modality_embedding: bool,
    #[serde(default = "mie_coefficient")]
    pub mie_coefficient: f32,
    /// Distance between patches, in pixels.
    #[serde(default = "stride")]
    pub stride: usize,
    /// Size of chips, if not the preset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ChipSize>,
    /// How the amplitudes of SAR images become bytes, here and wherever the model is served.
    #[serde(default, skip_serializing_if = "SarStretch::is_default")]
    pub sar_stretch: SarStretch,
    /// Highest rate of stochastic depth.
    pub drop_path: f64,
    /// Number format in which the network runs; weights and optimizer are f32 in either.
    #[serde(default)]
    pub precision: Precision,
    /// Fraction of f32's speed that another precision must reach on the training machine; 0: any.
    #[serde(default = "precision_speed_min")]
    pub precision_speed_min: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub from: StartKind,
    /// The file or model folder; empty to start from scratch.
    #[serde(default)]
    pub path: PathBuf,
    /// Selects one of several sets of weights in the file: the model's own if empty, "ema" for
    /// averaged ones, or their key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub weights: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    Scratch,
    /// A ViT trained on ImageNet: a torch or safetensors file.
    Imagenet,
    /// A model of the same family: such a file or a model folder.
    Model,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchShape {
    pub images: usize,
    /// Ignored by pretraining.
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
    /// Factor on the learning rate of biases.
    #[serde(default = "bias_factor")]
    pub bias_factor: f64,
    pub warm_up_epochs: u32,
    pub epochs: u32,
}

/// Random augmentation of training images; the defaults are the authors'.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Fraction of images that are mirrored.
    pub flip: f64,
    /// Black pixels on every side of 256 rows, within which the crop moves; scaled with the size of
    /// other chips.
    pub padding: usize,
    /// Fraction of images in which a rectangle is replaced by noise.
    pub erase: f64,
    /// Brightness, contrast and saturation of every image, SAR too, are multiplied by 1 minus to 1 plus this. Not in
    /// TransOSS.
    #[serde(skip_serializing_if = "is_zero")]
    pub jitter: f64,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self { flip: 0.5, padding: 10, erase: 0.5, jitter: 0.0 }
    }
}

/// Processing of gradients before the step; none by default.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gradient {
    /// Parts of a batch that pass through the network one after the other, to save memory.
    #[serde(alias = "parts")]
    pub accumulation_steps: usize,
    /// Gradients are clipped to this norm over all tensors; 0 disables clipping.
    #[serde(alias = "norm_max")]
    pub grad_norm_max: f64,
}

impl Default for Gradient {
    fn default() -> Self {
        Self { accumulation_steps: 1, grad_norm_max: 0.0 }
    }
}

/// Measurements during a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationChoice {
    /// Epochs between evaluations; 0: none.
    pub epochs: u32,
    /// Fraction of a pair set's folders that are held out; a HOSS folder contains its own test set.
    pub held_out: f64,
}

/// The defaults are the authors'; all but the last apply to fine-tuning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    pub identity_weight: f64,
    pub label_smoothing: f64,
    pub triplet_weight: f64,
    /// 0: the soft margin.
    pub triplet_margin: f64,
    /// Of the class-wise alignment of modalities (MOS), and what it compares by.
    pub alignment_weight: f64,
    pub alignment_distance: AlignmentDistance,
    /// Of the orthogonality of the two parts of a feature, and of the structure that modalities share (SDF-Net).
    pub orthogonality_weight: f64,
    pub structure_weight: f64,
    /// Of the supervised contrastive loss over all images, and of the one between modalities.
    pub supcon_weight: f64,
    pub info_nce_weight: f64,
    /// By which both divide cosines.
    pub temperature: f64,
    pub head: HeadName,
    /// For heads with a margin.
    pub head_scale: f64,
    pub head_margin: f64,
    /// For pretraining, the initial logarithm of the factor of the cosines, which is learned.
    pub logit_scale: f32,
    /// Where several processes train: whether features are gathered, so that triplets are mined and batches normalised
    /// over the whole batch. Otherwise each process does so in its part, as the authors' program.
    pub gather_features: bool,
}

/// How far apart the moments of two modalities are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlignmentDistance {
    /// As in the code of MOS: its gradient has the same length at every distance.
    #[default]
    Euclidean,
    /// As in the paper of MOS.
    Squared,
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
    /// Number of checkpoints to keep. The newest two are always kept, since the newest may turn out
    /// to be damaged.
    pub keep: usize,
    /// Whether the best one by validation is kept as well and becomes the model. If absent: where every
    /// checkpoint is evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_best: Option<bool>,
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            identity_weight: 1.0,
            label_smoothing: 0.0,
            triplet_weight: 1.0,
            triplet_margin: 0.0,
            alignment_weight: 0.0,
            alignment_distance: AlignmentDistance::Euclidean,
            orthogonality_weight: 0.0,
            structure_weight: 0.0,
            supcon_weight: 0.0,
            info_nce_weight: 0.0,
            temperature: 0.07,
            head: HeadName::Linear,
            head_scale: 30.0,
            head_margin: 0.5,
            logit_scale: LOGIT_SCALE,
            gather_features: false,
        }
    }
}

impl ModelChoice {
    /// Without a classifier, whose number of rows depends on the data set.
    pub fn architecture(&self) -> Architecture {
        let &Self { family, preset, size_token, modality_embedding, mie_coefficient, stride, .. } = self;
        let &Self { image, sar_stretch, .. } = self;
        let options = Options { size_token, modality_embedding, mie_coefficient, stride, image, sar_stretch };
        family.configured(preset, &options)
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

/// Whether a setting is that of configurations which predate it.
fn is_zero(value: &f64) -> bool {
    *value == 0.0
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

#[cfg(test)]
mod tests;
