//! Training of a network: a batch in, loss and gradients, a step of the optimizer.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, PoisonError};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::augment::plain;
use super::config::{Gradient, TrainConfig};
use super::learn::{LearnError, Learner, LearnerState, LossTerms, Samples};
use super::modality_losses::edges;
use super::objective::{FeatureParts, FineTune, FineTuneBatch, Objective, contrastive};
use super::optimizer::{Optimizer, OptimizerSettings};
use super::ranks::Ranks;
use super::schedule::Rates;
use crate::arithmetic::{Choice, Kernel, Pace, Precision};
use crate::chip::{Chip, Modality};
use crate::embedding::Embedding;
use crate::encoder::ForwardError;
use crate::model::{
    Activations, Device, Input, LayerShape, Mode, Network, Parts, SharedLayers, Tensors, download,
    forward_error, kind, network, training_speed, upload,
};
use crate::processor::Processor;
use crate::weights::family::{Architecture, FeaturePoint};
use crate::weights::tensors::NamedTensors;

/// The speed of a run's precision relative to f32 on the CPU; `None` for f32. Measured once per process for
/// each shape of network, in a second or two if the precision is slow.
pub fn pace_on_cpu(config: &TrainConfig) -> Option<Pace> {
    static KNOWN: LazyLock<Mutex<HashMap<LayerShape, f64>>> = LazyLock::new(Mutex::default);
    let architecture = config.model.architecture();
    if config.model.precision == Precision::F32 || architecture.validate().is_err() {
        return None;
    }
    let shape = LayerShape::of(&architecture);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let speed = *known.entry(shape).or_insert_with(|| {
        training_speed(shape, config.model.precision).unwrap_or_else(|cause| {
            tracing::warn!(cause, "a layer cannot be trained in this precision on this processor");
            0.0
        })
    });
    Some(Pace::new(config.model.precision, speed, Processor::here()))
}

/// Settings of the training.
#[derive(Clone, Debug, PartialEq)]
pub struct Teaching {
    pub objective: Objective,
    pub optimizer: OptimizerSettings,
    pub gradient: Gradient,
    /// Highest rate of stochastic depth.
    pub drop_path: f64,
    pub precision: Precision,
}

impl From<&TrainConfig> for Teaching {
    fn from(config: &TrainConfig) -> Self {
        Self {
            objective: Objective::from(config),
            optimizer: OptimizerSettings::from(config.optimizer),
            gradient: config.gradient,
            drop_path: config.model.drop_path,
            precision: config.model.precision,
        }
    }
}

/// A batch, or a part of one, on the device.
#[derive(Debug)]
struct TrainingBatch {
    /// [B, 3, height, width], normalised.
    pixels: Tensor,
    modalities: Vec<Modality>,
    /// [B, 3]
    size_tokens: Tensor,
    /// `[B]`
    labels: Tensor,
}

impl TrainingBatch {
    /// `[B]`
    fn is_sar(&self) -> Tensor {
        let is_sar: Vec<bool> = self.modalities.iter().map(|modality| *modality == Modality::Sar).collect();
        Tensor::from_slice(&is_sar).to_device(self.labels.device())
    }
}

/// A network in training, its optimizer and its objective.
#[derive(Debug)]
pub struct TorchLearner {
    architecture: Architecture,
    device: Device,
    /// f32 in every precision.
    tensors: Tensors,
    teaching: Teaching,
    ranks: Option<Ranks>,
    /// Whether the loss is that of the features of all ranks.
    gathers: bool,
    optimizer: Optimizer,
}

impl TorchLearner {
    /// A learner that starts from `tensors`, which are those of `architecture`.
    pub fn new(
        architecture: &Architecture,
        tensors: &NamedTensors,
        device: Device,
        teaching: Teaching,
    ) -> Self {
        let tensors: Tensors = upload(tensors, device, Kind::Float)
            .into_iter()
            .map(|(name, tensor)| {
                let learns = architecture.is_trained(&name);
                (name, tensor.set_requires_grad(learns))
            })
            .collect();
        let optimizer = Optimizer::new(teaching.optimizer);
        Self {
            architecture: *architecture,
            device,
            tensors,
            teaching,
            ranks: None,
            gathers: false,
            optimizer,
        }
    }

    /// The same learner as one of several, each of which learns from its part of a batch. With `gathers`, the loss
    /// and the batch normalisation are those of the whole batch; else of each part.
    pub fn among(self, ranks: Ranks, gathers: bool) -> Self {
        Self { ranks: Some(ranks), gathers, ..self }
    }

    /// Running statistics of batch normalisation.
    fn statistics(&self) -> impl Iterator<Item = &Tensor> {
        let is_statistic = |name: &str| name.contains(".running_") || name.ends_with(".num_batches_tracked");
        self.tensors.iter().filter(move |(name, _)| is_statistic(name)).map(|(_, tensor)| tensor)
    }

    /// The rows of all ranks, if the loss is that of the whole batch.
    fn gathered(&self, rows: &Tensor) -> Result<Tensor, LearnError> {
        match &self.ranks {
            Some(ranks) if self.gathers => ranks.gather_rows(rows),
            _ => Ok(rows.shallow_clone()),
        }
    }

    /// The gradients of a step, by tensor.
    fn gradients(&self) -> Tensors {
        let gradients = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.grad()));
        gradients.filter(|(_, gradient)| gradient.defined()).collect()
    }

    fn kind(&self) -> Kind {
        kind(self.teaching.precision)
    }

    /// The network of the current weights. In bf16 its backbone consists of rounded copies, through which
    /// gradients reach the f32 weights; the neck stays f32.
    fn network(&self) -> Box<dyn Network> {
        let kind = self.kind();
        let tensors: Tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let kind = if self.architecture.is_backbone(name) { kind } else { tensor.kind() };
                (name.clone(), tensor.to_kind(kind))
            })
            .collect();
        network(&self.architecture, &tensors, &Choice::only(Kernel::Aten, 1), &SharedLayers::default())
    }

    /// Loss and gradients of a batch, replacing any earlier gradients.
    fn backward(
        &mut self,
        batch: &Samples,
        uniform: &mut dyn FnMut(i64) -> Tensor,
    ) -> Result<LossTerms, LearnError> {
        // New leaves on the same storage: an earlier step's gradients need neither be cleared nor added to.
        for tensor in self.tensors.values_mut().filter(|tensor| tensor.requires_grad()) {
            *tensor = tensor.detach().set_requires_grad(true);
        }
        let mut terms = LossTerms::default();
        for rows in self.teaching.parts(batch.len()) {
            let share = rows.len() as f64 / batch.len() as f64;
            let (loss, of_part) = self.loss(&on_device(batch, &rows, self.device.tch()), uniform)?;
            (loss * share).backward();
            terms.add(&of_part, share);
        }
        Ok(terms)
    }

    fn loss(
        &self,
        batch: &TrainingBatch,
        uniform: &mut dyn FnMut(i64) -> Tensor,
    ) -> Result<(Tensor, LossTerms), LearnError> {
        let kind = self.kind();
        let input = Input {
            pixels: &batch.pixels.to_kind(kind),
            modalities: &batch.modalities,
            size_tokens: &batch.size_tokens.to_kind(kind),
        };
        let network = self.network();
        let mut mode = Mode::Train { drop_path: self.teaching.drop_path, uniform };
        let Activations { before_neck, parts } = network.forward_in_training(&input, &mut mode);
        let before_neck = before_neck.to_kind(Kind::Float);
        Ok(match &self.teaching.objective {
            Objective::FineTune(fine_tune) => {
                let before_neck = self.gathered(&before_neck)?;
                let after_neck = network.forward_neck(&before_neck, &mode);
                fine_tune.loss(&FineTuneBatch {
                    before_neck,
                    after_neck,
                    classifier: self.classifier(),
                    labels: self.gathered(&batch.labels)?,
                    is_sar: self.gathered(&batch.is_sar())?,
                    parts: self.parts(fine_tune, parts.as_ref())?,
                })
            }
            Objective::Contrastive => {
                let halves = before_neck.chunk(2, 0);
                let [optical, sar] = [self.gathered(&halves[0])?, self.gathered(&halves[1])?];
                contrastive(&optical, &sar, &self.tensors[self.architecture.logit_scale()])
            }
        })
    }

    /// The parts of features in f32, if the objective reads them.
    fn parts(&self, fine_tune: &FineTune, parts: Option<&Parts>) -> Result<Option<FeatureParts>, LearnError> {
        let Some(Parts { shared, specific, patches }) = parts.filter(|_| fine_tune.reads_parts()) else {
            return Ok(None);
        };
        Ok(Some(FeatureParts {
            shared: self.gathered(&shared.to_kind(Kind::Float))?,
            specific: self.gathered(&specific.to_kind(Kind::Float))?,
            edges: self.gathered(&edges(&patches.to_kind(Kind::Float)))?,
        }))
    }

    fn classifier(&self) -> &Tensor {
        &self.tensors[self.architecture.classifier()]
    }

    /// [B, D], the features that the family's authors evaluate.
    fn features(&self, chips: &[Chip]) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let preprocessing = self.architecture.preprocessing();
        let samples = Samples {
            size: preprocessing.size,
            pixels: chips.iter().flat_map(|chip| plain(chip, &preprocessing)).collect(),
            modalities: chips.iter().map(Chip::modality).collect(),
            size_tokens: chips.iter().map(Chip::size_token).collect(),
            labels: vec![0; chips.len()],
        };
        let rows: Vec<usize> = (0..chips.len()).collect();
        let batch = on_device(&samples, &rows, self.device.tch());
        let input = Input {
            pixels: &batch.pixels.to_kind(self.kind()),
            modalities: &batch.modalities,
            size_tokens: &batch.size_tokens.to_kind(self.kind()),
        };
        let network = self.network();
        let before_neck = network.forward_before_neck(&input, &mut Mode::Evaluate).to_kind(Kind::Float);
        match self.architecture.feature_point() {
            FeaturePoint::BeforeNeck => before_neck,
            FeaturePoint::AfterNeck => network.forward_neck(&before_neck, &Mode::Evaluate),
        }
    }
}

impl Teaching {
    /// Rows of a batch that pass through the network together: whole identities, or pairs with both halves.
    fn parts(&self, images: usize) -> Vec<Vec<usize>> {
        let parts = self.gradient.accumulation_steps.max(1);
        match self.objective {
            Objective::FineTune(_) => {
                let rows: Vec<usize> = (0..images).collect();
                rows.chunks(images.div_ceil(parts)).map(<[usize]>::to_vec).collect()
            }
            Objective::Contrastive => {
                let pairs: Vec<usize> = (0..images / 2).collect();
                let with_partners = |pairs: &[usize]| {
                    pairs.iter().copied().chain(pairs.iter().map(|pair| images / 2 + pair)).collect()
                };
                pairs.chunks(pairs.len().div_ceil(parts)).map(with_partners).collect()
            }
        }
    }
}

impl Learner for TorchLearner {
    fn step(
        &mut self,
        batch: &Samples,
        rates: Rates,
        random: &mut ChaCha8Rng,
    ) -> Result<LossTerms, LearnError> {
        guarded(|| {
            let device = self.device.tch();
            let mut uniform = |count: i64| {
                let numbers: Vec<f32> = (0..count).map(|_| random.random()).collect();
                Tensor::from_slice(&numbers).to_device(device)
            };
            let mut terms = self.backward(batch, &mut uniform)?;
            if let Some(ranks) = &self.ranks {
                terms = ranks.average_terms(&terms)?;
            }
            if terms.total.is_finite() {
                let gradients = self.gradients();
                if let Some(ranks) = &self.ranks {
                    ranks.average_gradients(&gradients)?;
                }
                clip_grad_norm(&gradients, self.teaching.gradient.grad_norm_max);
                self.optimizer.step(&self.tensors, rates);
                if let Some(ranks) = &self.ranks {
                    ranks.align(self.statistics())?;
                }
            }
            Ok(terms)
        })?
    }

    fn embed(&mut self, chips: &[Chip]) -> Result<Vec<Embedding>, LearnError> {
        let features = guarded(|| {
            let features = self.features(chips).to_device(tch::Device::Cpu).contiguous().view([-1]);
            Vec::<f32>::try_from(features).expect("f32 values")
        })?;
        let embeddings = features.chunks_exact(self.architecture.embed_dim());
        embeddings
            .map(|feature| Embedding::from_feature(feature.to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|cause| LearnError::Failed(cause.to_string()))
    }

    fn state(&self) -> LearnerState {
        LearnerState {
            weights: download(&self.tensors),
            optimizer: download(self.optimizer.state()),
            steps: self.optimizer.steps(),
        }
    }

    fn restore(&mut self, state: LearnerState) -> Result<(), LearnError> {
        let other = |name: &String| Err(LearnError::OtherModel(name.clone()));
        for (name, tensor) in &self.tensors {
            let shape = |length: &usize| *length as i64;
            match state.weights.get(name) {
                Some(found) if found.shape.iter().map(shape).eq(tensor.size()) => {}
                _ => return other(name),
            }
        }
        if let Some(name) = state.weights.keys().find(|name| !self.tensors.contains_key(*name)) {
            return other(name);
        }
        let _no_grad = tch::no_grad_guard();
        for (name, values) in upload(&state.weights, self.device, Kind::Float) {
            self.tensors[&name].shallow_clone().copy_(&values);
        }
        self.optimizer.restore(upload(&state.optimizer, self.device, Kind::Float), state.steps);
        Ok(())
    }
}

/// Runs code that calls libtorch, whose errors tch raises as panics.
fn guarded<R>(work: impl FnOnce() -> R) -> Result<R, LearnError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| match forward_error(panic.as_ref()) {
        ForwardError::OutOfMemory => LearnError::OutOfMemory,
        ForwardError::DeviceLost(message) | ForwardError::Failed(message) => LearnError::Failed(message),
    })
}

/// Scales all gradients by a common factor so that their joint norm is at most `norm_max`; 0 leaves
/// them unchanged.
fn clip_grad_norm(gradients: &Tensors, norm_max: f64) {
    if norm_max <= 0.0 {
        return;
    }
    let squares = gradients.values().map(|gradient| gradient.square().sum(Kind::Double).double_value(&[]));
    let norm = squares.sum::<f64>().sqrt();
    if norm > norm_max {
        for gradient in gradients.values() {
            let _ = gradient.shallow_clone().g_mul_scalar_(norm_max / norm);
        }
    }
}

fn on_device(batch: &Samples, rows: &[usize], device: tch::Device) -> TrainingBatch {
    let size = batch.size;
    let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    let index = Tensor::from_slice(&index);
    let of_rows = |all: Tensor| all.index_select(0, &index).to_device(device);
    let shape = [batch.len() as i64, 3, size.height as i64, size.width as i64];
    TrainingBatch {
        pixels: of_rows(Tensor::from_slice(&batch.pixels).view(shape)),
        modalities: rows.iter().map(|row| batch.modalities[*row]).collect(),
        size_tokens: of_rows(Tensor::from_slice(batch.size_tokens.as_flattened()).view([-1, 3])),
        labels: of_rows(Tensor::from_slice(&batch.labels)),
    }
}

#[cfg(test)]
mod tests;
