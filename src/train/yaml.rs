//! Reads the authors' own YAML with overrides: which keys are used, ignored or unsupported.

mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;

use self::value::{Value, literal, settings};
use super::config::{
    Augmentation, BatchShape, CheckpointChoice, Data, Gradient, HeadName, Loss, ModelChoice, ObjectiveName,
    OptimizerChoice, ScheduleChoice, Start, StartKind, TrainConfig, TrainConfigError, ValidationChoice,
    Violation,
};
use crate::arithmetic::{PRECISION_SPEED_MIN, Precision};
use crate::chip::SarStretch;
use crate::message::{excerpt, nearest};
use crate::weights::family::{Family, Preset};

/// A run as the authors would start it.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorsConfig {
    pub config: TrainConfig,
    /// `OUTPUT_DIR`.
    pub out: Option<PathBuf>,
    /// Keys that were given but are ignored, and why.
    pub ignored: Vec<String>,
}

/// Keys that have no effect in the authors' training, or none here. A trailing `.` covers a whole section.
const INERT: &[(&str, &str)] = &[
    ("MODEL.DEVICE", "--device decides"),
    ("MODEL.DEVICE_ID", "--device decides"),
    ("MODEL.LAST_STRIDE", "of ResNet only"),
    ("MODEL.NECK", "a transformer has its neck either way"),
    ("MODEL.COS_LAYER", "MODEL.ID_LOSS_TYPE decides"),
    ("MODEL.SWIN.", "of Swin only"),
    ("SOLVER.CENTER_LR", "of the centre loss only"),
    ("SOLVER.CENTER_LOSS_WEIGHT", "of the centre loss only"),
    ("SOLVER.GAMMA", "the schedule is a cosine"),
    ("SOLVER.STEPS", "the schedule is a cosine"),
    ("SOLVER.WARMUP_FACTOR", "the warm-up starts at a hundredth"),
    ("SOLVER.WARMUP_METHOD", "the warm-up is linear"),
    ("SOLVER.LOG_PERIOD", "every step is reported"),
    ("TEST.IMS_PER_BATCH", "changes no number"),
    ("TEST.RE_RANKING", "read by no training"),
    ("TEST.WEIGHT", "read by no training"),
    ("TEST.DIST_MAT", "read by no training"),
    ("TEST.EVAL", "read by no training"),
];

impl AuthorsConfig {
    /// Reads one of the authors' files and `KEY VALUE` overrides like their program, including its defaults.
    ///
    /// # Errors
    /// If the text is not YAML; or every key that is unknown and every value that is unsupported or
    /// out of bounds, at once.
    pub fn read(text: &str, overrides: &[String]) -> Result<Self, TrainConfigError> {
        let mut values = settings(text).map_err(|problem| TrainConfigError::syntax(&problem))?;
        let (pairs, rest) = overrides.as_chunks::<2>();
        if let [key] = rest {
            return Err(TrainConfigError::syntax(&format!("{key} has no value; overrides are KEY VALUE")));
        }
        values.extend(pairs.iter().map(|[key, text]| (key.clone(), literal(text))));
        let mut reader = YamlReader { values, known: Vec::new(), violations: Vec::new() };
        let ignored = reader.ignored();
        let config = reader.config();
        let out = Some(reader.text("OUTPUT_DIR", "")).filter(|out| !out.is_empty()).map(PathBuf::from);
        reader.refuse_unknown();
        let mut violations = reader.violations;
        violations.extend(config.violations());
        if violations.is_empty() {
            Ok(Self { config, out, ignored })
        } else {
            Err(TrainConfigError::Invalid(violations))
        }
    }
}

/// Removes values by key and records problems with them.
struct YamlReader {
    values: BTreeMap<String, Value>,
    known: Vec<&'static str>,
    violations: Vec<Violation>,
}

impl YamlReader {
    fn ignored(&mut self) -> Vec<String> {
        let mut ignored = Vec::new();
        for (key, reason) in INERT {
            self.known.push(key);
            let given = self
                .values
                .extract_if(.., |name, _| name == key || (key.ends_with('.') && name.starts_with(key)));
            ignored.extend(given.map(|(name, _)| format!("{} ({reason})", excerpt(&name))));
        }
        ignored
    }

    fn config(&mut self) -> TrainConfig {
        self.refuse_unsupported();
        let objective =
            if self.flag("MODEL.PAIR", false) { ObjectiveName::Contrastive } else { ObjectiveName::FineTune };
        let validation_epochs = self.count("SOLVER.EVAL_PERIOD", 10);
        let momentum = self.number("SOLVER.MOMENTUM", 0.9);
        let weight_decay = self.number("SOLVER.WEIGHT_DECAY", 5e-4);
        self.same("SOLVER.WEIGHT_DECAY_BIAS", 5e-4, "SOLVER.WEIGHT_DECAY", weight_decay);
        TrainConfig {
            seed: self.count("SOLVER.SEED", 1234) as u64,
            objective,
            data: self.data(objective),
            model: self.model(),
            start: self.start(),
            batch: BatchShape {
                images: self.count("SOLVER.IMS_PER_BATCH", 64),
                images_per_identity: self.count("DATALOADER.NUM_INSTANCE", 16),
            },
            optimizer: match self.text("SOLVER.OPTIMIZER_NAME", "Adam").as_str() {
                "AdamW" => OptimizerChoice::Adamw { weight_decay },
                "SGD" => OptimizerChoice::Sgd { momentum, weight_decay },
                other => {
                    self.refuse("SOLVER.OPTIMIZER_NAME", other, "SGD or AdamW");
                    OptimizerChoice::Sgd { momentum, weight_decay }
                }
            },
            schedule: ScheduleChoice {
                base_rate: self.number("SOLVER.BASE_LR", 3e-4),
                bias_factor: self.number("SOLVER.BIAS_LR_FACTOR", 1.0),
                warm_up_epochs: self.count("SOLVER.WARMUP_EPOCHS", 5) as u32,
                epochs: self.count("SOLVER.MAX_EPOCHS", 100) as u32,
            },
            augmentation: Augmentation {
                flip: self.number("INPUT.PROB", 0.5),
                padding: self.count("INPUT.PADDING", 10),
                erase: self.number("INPUT.RE_PROB", 0.5),
                jitter: 0.0,
            },
            gradient: Gradient::default(),
            loss: self.loss(),
            validation: ValidationChoice {
                // The authors' pretraining never evaluates.
                epochs: if objective == ObjectiveName::FineTune { validation_epochs as u32 } else { 0 },
                held_out: 0.0,
            },
            checkpoint: CheckpointChoice {
                epochs: self.count("SOLVER.CHECKPOINT_PERIOD", 10) as u32,
                keep: 2,
                // The authors use the last weights.
                keep_best: Some(false),
            },
        }
    }

    /// Settings for which only one value is supported here.
    fn refuse_unsupported(&mut self) {
        let text = |text: &str| Value::Text(text.to_owned());
        let numbers = |numbers: &[f64]| Value::List(numbers.iter().copied().map(Value::Number).collect());
        for (key, default, supported) in [
            ("MODEL.NAME", text("transformer"), text("transformer")),
            ("MODEL.METRIC_LOSS_TYPE", text("triplet"), text("triplet")),
            ("MODEL.IF_WITH_CENTER", text("no"), text("no")),
            ("MODEL.TRANSFORMER_TYPE", text("None"), text("vit_base_patch16_224_TransOSS")),
            ("MODEL.DROP_OUT", Value::Number(0.0), Value::Number(0.0)),
            ("MODEL.ATT_DROP_RATE", Value::Number(0.0), Value::Number(0.0)),
            ("MODEL.DIST_TRAIN", Value::Flag(false), Value::Flag(false)),
            ("INPUT.SIZE_TRAIN", numbers(&[256.0, 128.0]), numbers(&[256.0, 128.0])),
            ("INPUT.SIZE_TEST", numbers(&[256.0, 128.0]), numbers(&[256.0, 128.0])),
            ("INPUT.PIXEL_MEAN", numbers(&[0.485, 0.456, 0.406]), numbers(&[0.485, 0.456, 0.406])),
            ("INPUT.PIXEL_STD", numbers(&[0.229, 0.224, 0.225]), numbers(&[0.229, 0.224, 0.225])),
            ("DATALOADER.SAMPLER", text("softmax"), text("softmax_triplet")),
            ("SOLVER.LARGE_FC_LR", Value::Flag(false), Value::Flag(false)),
            ("TEST.NECK_FEAT", text("after"), text("before")),
            ("TEST.FEAT_NORM", text("yes"), text("yes")),
        ] {
            let found = self.take(key).unwrap_or(default);
            if found != supported {
                self.refuse(key, &found.to_string(), &supported.to_string());
            }
        }
    }

    fn data(&mut self, objective: ObjectiveName) -> Data {
        let expected = match objective {
            ObjectiveName::FineTune => "HOSS",
            ObjectiveName::Contrastive => "Pretrain",
        };
        let name = self.text("DATASETS.NAMES", "HOSS");
        let folder = match (name.as_str(), objective) {
            ("HOSS", _) => "HOSS",
            ("Pretrain", ObjectiveName::Contrastive) => "OptiSar_Pair",
            (other, _) => {
                self.refuse("DATASETS.NAMES", other, expected);
                expected
            }
        };
        Data {
            root: PathBuf::from(self.text("DATASETS.ROOT_DIR", "./data")).join(folder),
            loader_threads: self.count("DATALOADER.NUM_WORKERS", 8),
            unreadable_max: 0,
        }
    }

    fn model(&mut self) -> ModelChoice {
        let stride = match self.take("MODEL.STRIDE_SIZE") {
            None => 16,
            Some(Value::List(sides)) if matches!(sides[..], [Value::Number(a), Value::Number(b)] if a == b) => {
                self.whole("MODEL.STRIDE_SIZE", &sides[0], 16)
            }
            Some(other) => {
                self.refuse("MODEL.STRIDE_SIZE", &other.to_string(), "two equal numbers");
                16
            }
        };
        ModelChoice {
            family: Family::TransOss,
            preset: Preset::VitBase,
            size_token: self.flag("MODEL.SSE", false),
            modality_embedding: self.flag("MODEL.MIE", false),
            mie_coefficient: self.number("MODEL.MIE_COE", 3.0) as f32,
            stride,
            image: None,
            sar_stretch: SarStretch::Maximum,
            drop_path: self.number("MODEL.DROP_PATH", 0.1),
            precision: Precision::F32,
            precision_speed_min: PRECISION_SPEED_MIN,
        }
    }

    fn start(&mut self) -> Start {
        let path = PathBuf::from(self.text("MODEL.PRETRAIN_PATH", ""));
        let from = match self.text("MODEL.PRETRAIN_CHOICE", "imagenet").as_str() {
            "imagenet" => StartKind::Imagenet,
            "clip" => StartKind::Model,
            "none" => {
                return Start { from: StartKind::Scratch, path: PathBuf::new(), weights: String::new() };
            }
            other => {
                self.refuse("MODEL.PRETRAIN_CHOICE", other, "imagenet, clip or none");
                StartKind::Model
            }
        };
        Start { from, path, weights: String::new() }
    }

    fn loss(&mut self) -> Loss {
        let margin = self.number("SOLVER.MARGIN", 0.3);
        let smooth = match self.text("MODEL.IF_LABELSMOOTH", "on").as_str() {
            "on" => 0.1,
            "off" => 0.0,
            other => {
                self.refuse("MODEL.IF_LABELSMOOTH", other, "on or off");
                0.0
            }
        };
        Loss {
            identity_weight: self.number("MODEL.ID_LOSS_WEIGHT", 1.0),
            label_smoothing: smooth,
            triplet_weight: self.number("MODEL.TRIPLET_LOSS_WEIGHT", 1.0),
            triplet_margin: if self.flag("MODEL.NO_MARGIN", false) { 0.0 } else { margin },
            head: match self.text("MODEL.ID_LOSS_TYPE", "softmax").as_str() {
                "softmax" => HeadName::Linear,
                "arcface" => HeadName::Arcface,
                "cosface" | "amsoftmax" => HeadName::Cosface,
                "circle" => HeadName::Circle,
                other => {
                    self.refuse(
                        "MODEL.ID_LOSS_TYPE",
                        other,
                        "softmax, arcface, cosface, amsoftmax or circle",
                    );
                    HeadName::Linear
                }
            },
            head_scale: self.number("SOLVER.COSINE_SCALE", 30.0),
            head_margin: self.number("SOLVER.COSINE_MARGIN", 0.5),
            ..Loss::default()
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.values.remove(key)
    }

    fn text(&mut self, key: &'static str, default: &str) -> String {
        match self.take(key) {
            None => default.to_owned(),
            Some(Value::Text(text)) => text,
            Some(other) => {
                self.refuse(key, &other.to_string(), "a text");
                default.to_owned()
            }
        }
    }

    fn flag(&mut self, key: &'static str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(Value::Flag(flag)) => flag,
            Some(other) => {
                self.refuse(key, &other.to_string(), "True or False");
                default
            }
        }
    }

    fn number(&mut self, key: &'static str, default: f64) -> f64 {
        match self.take(key) {
            None => default,
            Some(Value::Number(number)) => number,
            Some(other) => {
                self.refuse(key, &other.to_string(), "a number");
                default
            }
        }
    }

    fn count(&mut self, key: &'static str, default: usize) -> usize {
        self.take(key).map_or(default, |value| self.whole(key, &value, default))
    }

    fn whole(&mut self, key: &'static str, value: &Value, default: usize) -> usize {
        match value {
            Value::Number(number) if number.fract() == 0.0 && (0.0..=1e9).contains(number) => {
                *number as usize
            }
            other => {
                self.refuse(key, &other.to_string(), "a whole number up to 1000000000");
                default
            }
        }
    }

    /// Refuses a number that differs from another one: the authors may set them separately, but
    /// they are the same here.
    fn same(&mut self, key: &'static str, default: f64, other: &str, value: f64) {
        let found = self.number(key, default);
        if found != value {
            self.refuse(key, &found.to_string(), &format!("{value}, as {other}"));
        }
    }

    fn refuse(&mut self, key: &str, found: &str, supported: &str) {
        self.violations.push(Violation::new(key, format!("is {}; supported: {supported}", excerpt(found))));
    }

    fn refuse_unknown(&mut self) {
        for name in std::mem::take(&mut self.values).into_keys() {
            let nearest = nearest(&name, self.known.iter().copied()).unwrap_or_default();
            self.violations.push(Violation::new(&name, format!("is unknown; did you mean {nearest}?")));
        }
    }
}

#[cfg(test)]
mod tests;
