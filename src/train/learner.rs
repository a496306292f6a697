//! TransOSS that learns: a batch in, loss and gradients, a step of the optimizer.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::augment::plain;
use super::config::{Gradient, HeadName, Loss, ObjectiveName, Precision, TrainConfig};
use super::heads::Head;
use super::learn::{LearnError, Learner, LearnerState, LossTerms, Samples};
use super::losses::{self, Triplet};
use super::optimizer::{Optimizer, OptimizerSettings};
use super::schedule::Rates;
use crate::chip::{Chip, Modality};
use crate::embedding::Embedding;
use crate::encoder::ForwardError;
use crate::model::{Device, Input, Kernel, Mode, Tensors, TransOss, download, forward_error, upload};
use crate::weights::architecture::Architecture;
use crate::weights::tensors::NamedTensors;

/// What a network is taught.
#[derive(Clone, Debug, PartialEq)]
pub enum Objective {
    /// To tell identities apart.
    FineTune(FineTune),
    /// To find each optical image's SAR partner: the first half of a batch is optical, the second half its partners.
    Contrastive,
}

/// The terms of fine-tuning and their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct FineTune {
    pub identity_weight: f64,
    pub label_smoothing: f64,
    pub head: Head,
    pub triplet_weight: f64,
    pub triplet: Triplet,
    /// Of the class-wise modality alignment; 0 leaves it out.
    pub alignment_weight: f64,
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
        }
    }
}

impl From<&TrainConfig> for Objective {
    fn from(config: &TrainConfig) -> Self {
        match config.objective {
            ObjectiveName::Contrastive => Self::Contrastive,
            ObjectiveName::FineTune => Self::FineTune(FineTune::from(&config.loss)),
        }
    }
}

/// How a network is taught.
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
struct Batch {
    /// [B, 3, height, width], normalised.
    pixels: Tensor,
    modalities: Vec<Modality>,
    /// [B, 3]
    size_tokens: Tensor,
    /// [B]
    labels: Tensor,
}

/// A network in training, its optimizer, its objective.
#[derive(Debug)]
pub struct TorchLearner {
    architecture: Architecture,
    device: Device,
    /// f32 in every precision.
    tensors: Tensors,
    teaching: Teaching,
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
                let learns = learns(&name);
                (name, tensor.set_requires_grad(learns))
            })
            .collect();
        let optimizer = Optimizer::new(teaching.optimizer);
        Self { architecture: *architecture, device, tensors, teaching, optimizer }
    }

    fn kind(&self) -> Kind {
        match self.teaching.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        }
    }

    /// The network of the weights as they are. In bf16 it is made of rounded copies, through which gradients reach the
    /// f32 weights; the neck stays f32.
    fn network(&self) -> TransOss {
        let kind = self.kind();
        let tensors: Tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let kind = if name.starts_with("base.") { kind } else { tensor.kind() };
                (name.clone(), tensor.to_kind(kind))
            })
            .collect();
        TransOss::new(&self.architecture, &tensors, Kernel::Aten, 1)
    }

    /// Loss and gradients of a batch, in place of any gradients before.
    fn backward(&self, batch: &Samples, uniform: &mut dyn FnMut(i64) -> Tensor) -> LossTerms {
        for tensor in self.tensors.values() {
            let mut gradient = tensor.grad();
            if gradient.defined() {
                let _ = gradient.detach_().zero_();
            }
        }
        let mut terms = LossTerms::default();
        for rows in self.teaching.parts(batch.len()) {
            let share = rows.len() as f64 / batch.len() as f64;
            let (loss, of_part) = self.loss(&on_device(batch, &rows, self.device.tch()), uniform);
            (loss * share).backward();
            terms.add(&of_part, share);
        }
        terms
    }

    fn loss(&self, batch: &Batch, uniform: &mut dyn FnMut(i64) -> Tensor) -> (Tensor, LossTerms) {
        let kind = self.kind();
        let input = Input {
            pixels: &batch.pixels.to_kind(kind),
            modalities: &batch.modalities,
            size_tokens: &batch.size_tokens.to_kind(kind),
        };
        let network = self.network();
        let mut mode = Mode::Train { drop_path: self.teaching.drop_path, uniform };
        let before_neck = network.forward_before_neck(&input, &mut mode).to_kind(Kind::Float);
        match &self.teaching.objective {
            Objective::FineTune(fine_tune) => {
                let after_neck = network.forward_neck(&before_neck, &mode);
                fine_tune.loss(&before_neck, &after_neck, self.classifier(), batch)
            }
            Objective::Contrastive => contrastive(&before_neck, &self.tensors["logit_scale"]),
        }
    }

    fn classifier(&self) -> &Tensor {
        &self.tensors["classifier.weight"]
    }

    /// [B, D], the features before the neck.
    fn features(&self, chips: &[Chip]) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let samples = Samples {
            size: self.architecture.image,
            pixels: chips.iter().flat_map(plain).collect(),
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
        self.network().forward_before_neck(&input, &mut Mode::Evaluate).to_kind(Kind::Float)
    }
}

impl Teaching {
    /// Rows of a batch that go through the network together: whole identities, or pairs with both their halves.
    fn parts(&self, images: usize) -> Vec<Vec<usize>> {
        let parts = self.gradient.parts.max(1);
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
            let terms = self.backward(batch, &mut uniform);
            if terms.total.is_finite() {
                shorten(&self.tensors, self.teaching.gradient.norm_max);
                self.optimizer.step(&self.tensors, rates);
            }
            terms
        })
    }

    fn embed(&mut self, chips: &[Chip]) -> Result<Vec<Embedding>, LearnError> {
        let features = guarded(|| {
            let features = self.features(chips).to_device(tch::Device::Cpu).contiguous().view([-1]);
            Vec::<f32>::try_from(features).expect("f32 values")
        })?;
        let embeddings = features.chunks_exact(self.architecture.embed_dim);
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

/// Runs what calls libtorch, whose messages tch panics with.
fn guarded<R>(work: impl FnOnce() -> R) -> Result<R, LearnError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| match forward_error(panic.as_ref()) {
        ForwardError::OutOfMemory => LearnError::OutOfMemory,
        ForwardError::DeviceLost(message) | ForwardError::Failed(message) => LearnError::Failed(message),
    })
}

/// Scales all gradients alike so that together they are at most `norm_max` long; 0 leaves them.
fn shorten(tensors: &Tensors, norm_max: f64) {
    if norm_max <= 0.0 {
        return;
    }
    let gradients: Vec<Tensor> = tensors.values().map(Tensor::grad).filter(Tensor::defined).collect();
    let squares = gradients.iter().map(|gradient| gradient.square().sum(Kind::Double).double_value(&[]));
    let norm = squares.sum::<f64>().sqrt();
    if norm > norm_max {
        for mut gradient in gradients {
            let _ = gradient.g_mul_scalar_(norm_max / norm);
        }
    }
}

fn on_device(batch: &Samples, rows: &[usize], device: tch::Device) -> Batch {
    let size = batch.size;
    let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    let index = Tensor::from_slice(&index);
    let of_rows = |all: Tensor| all.index_select(0, &index).to_device(device);
    let shape = [batch.len() as i64, 3, size.height as i64, size.width as i64];
    Batch {
        pixels: of_rows(Tensor::from_slice(&batch.pixels).view(shape)),
        modalities: rows.iter().map(|row| batch.modalities[*row]).collect(),
        size_tokens: of_rows(Tensor::from_slice(batch.size_tokens.as_flattened()).view([-1, 3])),
        labels: of_rows(Tensor::from_slice(&batch.labels)),
    }
}

/// Whether the reference trains a tensor: all but the neck's statistics and its frozen bias.
fn learns(name: &str) -> bool {
    let kept = ["bias", "running_mean", "running_var", "num_batches_tracked"];
    !kept.iter().any(|part| name == format!("bottleneck.{part}"))
}

impl FineTune {
    /// The loss of features [B, D] before and after the neck.
    fn loss(
        &self,
        before: &Tensor,
        after: &Tensor,
        classifier: &Tensor,
        batch: &Batch,
    ) -> (Tensor, LossTerms) {
        let scores = self.head.logits(after, classifier, &batch.labels);
        let identity = losses::identity(&scores, &batch.labels, self.label_smoothing);
        let triplet = self.triplet.loss(before, &batch.labels);
        let mut loss = &identity * self.identity_weight + &triplet * self.triplet_weight;
        let mut terms = LossTerms {
            identity: identity.double_value(&[]),
            triplet: triplet.double_value(&[]),
            accuracy: accuracy(&scores, &batch.labels),
            ..LossTerms::default()
        };
        if self.alignment_weight > 0.0 {
            let is_sar: Vec<bool> =
                batch.modalities.iter().map(|modality| *modality == Modality::Sar).collect();
            let is_sar = Tensor::from_slice(&is_sar).to_device(before.device());
            let alignment = losses::modality_alignment(before, &batch.labels, &is_sar);
            terms.alignment = alignment.double_value(&[]);
            loss += alignment * self.alignment_weight;
        }
        terms.total = loss.double_value(&[]);
        (loss, terms)
    }
}

/// The loss of features [B, D], optical ones first, then their partners.
fn contrastive(features: &Tensor, logit_scale: &Tensor) -> (Tensor, LossTerms) {
    let pairs = features.size()[0] / 2;
    let (optical, sar) = (features.narrow(0, 0, pairs), features.narrow(0, pairs, pairs));
    let logits = losses::pair_logits(&optical, &sar, logit_scale);
    let loss = losses::contrastive(&logits);
    let value = loss.double_value(&[]);
    let partner = Tensor::arange(pairs, (Kind::Int64, features.device()));
    let accuracy = accuracy(&logits, &partner);
    (loss, LossTerms { total: value, contrastive: value, accuracy, ..LossTerms::default() })
}

fn accuracy(scores: &Tensor, labels: &Tensor) -> f64 {
    scores.argmax(1, false).eq_tensor(labels).to_kind(Kind::Float).mean(Kind::Float).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::random::{Purpose, stream};
    use crate::weights::golden::{self, Inputs, MICRO};
    use crate::weights::tensors::HostTensor;

    const TINY: Architecture = Architecture { embed_dim: 48, depth: 3, heads: 3, ..MICRO };
    const SGD: OptimizerSettings = OptimizerSettings::Sgd { momentum: 0.9, weight_decay: 1e-4 };
    const RATES: Rates = Rates { weights: 0.02, biases: 0.04 };

    fn batch(index: &[usize], labels: &[f32]) -> Samples {
        let Inputs { pixels, modalities, size_tokens } = golden::inputs(index);
        Samples {
            size: MICRO.image,
            pixels: pixels.values,
            modalities,
            size_tokens: size_tokens.values.as_chunks().0.to_vec(),
            labels: labels.iter().map(|label| *label as i64).collect(),
        }
    }

    fn teaching(objective: Objective) -> Teaching {
        Teaching {
            objective,
            optimizer: SGD,
            gradient: Gradient::default(),
            drop_path: 0.0,
            precision: Precision::F32,
        }
    }

    fn learner(architecture: &Architecture, weights: &str, objective: Objective) -> TorchLearner {
        let mut tensors = golden::tensors(weights);
        let expected = architecture.expected_tensors();
        tensors.retain(|name, _| expected.contains_key(name));
        let cpu = Device::open("cpu").expect("there is a processor");
        TorchLearner::new(architecture, &tensors, cpu, teaching(objective))
    }

    fn step(learner: &mut TorchLearner, batch: &Samples) -> LossTerms {
        learner.step(batch, RATES, &mut stream(0, 0, 0, Purpose::StochasticDepth)).expect("a step")
    }

    fn largest(values: impl Iterator<Item = f64>) -> f64 {
        values.fold(0.0, |most, value| most.max(value.abs()))
    }

    /// Compares with a tensor, or with the digest of a large one: sum, sum of |x|, L2 norm, 16 elements.
    fn check(what: &str, found: &Tensor, recorded: &NamedTensors, name: &str, atol: impl Fn(f64) -> f64) {
        let flat = Vec::<f32>::try_from(found.detach().contiguous().view([-1])).expect("f32 values");
        let found: Vec<f64> = flat.iter().map(|value| f64::from(*value)).collect();
        let values = |tensor: &HostTensor| -> Vec<f64> {
            tensor.values.iter().map(|value| f64::from(*value)).collect()
        };
        if let Some(expected) = recorded.get(name) {
            let expected = values(expected);
            assert_eq!(found.len(), expected.len(), "{what} {name}");
            let off = largest(found.iter().zip(&expected).map(|(found, expected)| found - expected));
            let allowed = atol(largest(expected.iter().copied()));
            assert!(off <= allowed, "{what} {name}: {off} > {allowed}");
            return;
        }
        let digest = values(&recorded[&format!("digest.{name}")]);
        let absolute: f64 = found.iter().map(|value| value.abs()).sum();
        let norm = found.iter().map(|value| value * value).sum::<f64>().sqrt();
        assert!((found.iter().sum::<f64>() - digest[0]).abs() <= 1e-4 * digest[1], "{what} {name}");
        assert!((absolute / digest[1] - 1.0).abs() <= 1e-4 && (norm / digest[2] - 1.0).abs() <= 1e-4);
        let allowed = 1e-4 * largest(found.iter().copied());
        for (place, expected) in digest[3..].iter().enumerate() {
            assert!((found[place * found.len() / 16] - expected).abs() <= allowed, "{what} {name}");
        }
    }

    fn is_recorded(recorded: &NamedTensors, name: &str) -> bool {
        recorded.contains_key(name) || recorded.contains_key(&format!("digest.{name}"))
    }

    #[test]
    fn three_fine_tuning_steps_are_the_recorded_ones() {
        for (set, weights, architecture) in
            [("train_step", "micro_weights", MICRO), ("train_step_tiny", "tiny_weights", TINY)]
        {
            let recorded = golden::tensors(set);
            let labels = &golden::tensors("train_step")["label"].values;
            let batch = batch(&(0..12).collect::<Vec<_>>(), labels);
            let mut learner =
                learner(&architecture, weights, Objective::FineTune(FineTune::from(&Loss::default())));
            for number in 1..=3 {
                let terms = step(&mut learner, &batch);
                let expected = f64::from(recorded[&format!("step{number}.loss_total")].values[0]);
                let allowed = if number == 1 { 1e-5 } else { 1e-4 };
                assert!(
                    (terms.total - expected).abs() <= allowed,
                    "{set} {number}: {} {expected}",
                    terms.total
                );
                if number == 1 {
                    let expected = f64::from(recorded["acc"].values[0]);
                    assert!((terms.accuracy - expected).abs() < 1e-6);
                    check_gradients(set, &learner, &recorded);
                }
                if number != 2 {
                    let atol = if number == 1 { 1e-6 } else { 1e-4 };
                    for (name, tensor) in learner.tensors.iter().filter(|(name, _)| *name != "logit_scale") {
                        check(set, tensor, &recorded, &format!("step{number}.{name}"), |_| atol);
                    }
                }
            }
        }
    }

    fn check_gradients(set: &str, learner: &TorchLearner, recorded: &NamedTensors) {
        for (name, tensor) in &learner.tensors {
            let (gradient, key) = (tensor.grad(), format!("grad.{name}"));
            assert_eq!(gradient.defined(), is_recorded(recorded, &key), "{set} {name}");
            if gradient.defined() {
                // Mathematically zero, so noise beside noise.
                let noise = if name == "base.norm.bias" { 1e-5 } else { 0.0 };
                check(set, &gradient, recorded, &key, |largest| (1e-4 * largest).max(noise));
            }
        }
    }

    #[test]
    fn two_pretraining_steps_are_the_recorded_ones() {
        for (set, weights, architecture) in
            [("pretrain_step", "micro_weights", MICRO), ("pretrain_step_tiny", "tiny_weights", TINY)]
        {
            let recorded = golden::tensors(set);
            let architecture = Architecture { size_token: false, ..architecture };
            let index: Vec<usize> =
                golden::tensors("pretrain_step")["index"].values.iter().map(|row| *row as usize).collect();
            let batch = batch(&index, &[0.0; 12]);
            let mut learner = learner(&architecture, weights, Objective::Contrastive);
            let before = learner.tensors.iter().map(|(name, t)| (name.clone(), t.copy()));
            let before: Tensors = before.collect();
            let first = step(&mut learner, &batch);
            check_gradients(set, &learner, &recorded);
            for (name, tensor) in &learner.tensors {
                let key = format!("step1.{name}");
                if is_recorded(&recorded, &key) {
                    check(set, tensor, &recorded, &key, |_| 1e-6);
                } else {
                    assert!(tensor.equal(&before[name]), "{set} {name} must stay as it was");
                }
            }
            let second = step(&mut learner, &batch);
            for (terms, name, allowed) in [(first, "step1.loss", 1e-5), (second, "step2.loss", 1e-4)] {
                let expected = f64::from(recorded[name].values[0]);
                assert!((terms.total - expected).abs() <= allowed, "{set} {name}: {}", terms.total);
            }
        }
    }

    #[test]
    fn a_batch_of_one_modality_decays_the_other_convolution() {
        let all = golden::inputs(&(0..12).collect::<Vec<_>>());
        let optical: Vec<usize> = (0..12).filter(|row| all.modalities[*row] == Modality::Optical).collect();
        let labels: Vec<f32> = optical.iter().map(|row| (row % 2) as f32).collect();
        let mut learner =
            learner(&MICRO, "micro_weights", Objective::FineTune(FineTune::from(&Loss::default())));
        let name = "base.patch_embed_SAR.proj.weight";
        let before = learner.tensors[name].copy();
        step(&mut learner, &batch(&optical, &labels));
        let after = &learner.tensors[name];
        let expected = before * (1.0 - RATES.weights * 1e-4);
        assert!((after - expected).abs().max().double_value(&[]) < 1e-7);
    }

    #[test]
    fn adamw_takes_steps_of_the_rate_and_decays_apart() {
        let mut tensor = Tensor::from_slice(&[1.0_f32, -2.0]).set_requires_grad(true);
        let settings =
            OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
        let mut optimizer = Optimizer::new(settings);
        let tensors: Tensors = [("w".to_owned(), tensor.shallow_clone())].into();
        (&tensor * Tensor::from_slice(&[3.0_f32, -0.5])).sum(Kind::Float).backward();
        optimizer.step(&tensors, Rates { weights: 0.01, biases: 0.0 });
        let _ = tensor.detach_();
        // The first step is the sign of the gradient, whatever its length.
        let expected = [1.0 * 0.999 - 0.01, -2.0 * 0.999 + 0.01];
        for (found, expected) in Vec::<f32>::try_from(tensor).expect("two numbers").iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn a_restored_learner_takes_the_same_steps_bit_for_bit() {
        let rows: Vec<usize> = (0..12).collect();
        let batch = batch(&rows, &golden::tensors("train_step")["label"].values);
        for settings in
            [SGD, OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.05 }]
        {
            let new = || {
                let mut learner =
                    learner(&MICRO, "micro_weights", Objective::FineTune(FineTune::from(&Loss::default())));
                learner.optimizer = Optimizer::new(settings);
                learner.teaching.drop_path = 0.5;
                learner
            };
            let mut whole = new();
            step(&mut whole, &batch);
            let mut resumed = new();
            resumed.restore(whole.state()).expect("its own state");
            for _ in 0..3 {
                let (expected, found) = (step(&mut whole, &batch), step(&mut resumed, &batch));
                assert_eq!(expected.total.to_bits(), found.total.to_bits());
            }
            assert_eq!(whole.state(), resumed.state());
        }
        let mut other = learner(&TINY, "tiny_weights", Objective::Contrastive);
        let state = learner(&MICRO, "micro_weights", Objective::Contrastive).state();
        assert!(matches!(other.restore(state), Err(LearnError::OtherModel(_))));
    }

    fn fine_tuning() -> Objective {
        Objective::FineTune(FineTune::from(&Loss::default()))
    }

    #[test]
    fn two_equal_parts_of_a_batch_step_as_one_of_them() {
        let labels = &golden::tensors("train_step")["label"].values;
        let whole = batch(&(0..12).collect::<Vec<_>>(), labels);
        let twice: Vec<usize> = (0..12).chain(0..12).collect();
        let double = batch(&twice, &[&labels[..], &labels[..]].concat());
        let mut once = learner(&MICRO, "micro_weights", fine_tuning());
        let mut parted = learner(&MICRO, "micro_weights", fine_tuning());
        parted.teaching.gradient.parts = 2;
        let (expected, found) = (step(&mut once, &whole), step(&mut parted, &double));
        assert!((expected.total - found.total).abs() < 1e-6 && expected.accuracy == found.accuracy);
        for (name, tensor) in once.tensors.iter().filter(|(name, _)| !name.contains("bottleneck.")) {
            let off = (tensor - &parted.tensors[name]).abs().max().double_value(&[]);
            assert!(off < 1e-6, "{name}: {off}");
        }
        let pairs = Teaching {
            gradient: Gradient { parts: 2, ..Gradient::default() },
            ..teaching(Objective::Contrastive)
        };
        assert_eq!(pairs.parts(6), [vec![0, 1, 3, 4], vec![2, 5]]);
    }

    #[test]
    fn a_long_gradient_is_shortened_and_a_short_one_is_not() {
        let labels = &golden::tensors("train_step")["label"].values;
        let batch = batch(&(0..12).collect::<Vec<_>>(), labels);
        let norm = |norm_max| {
            let mut learner = learner(&MICRO, "micro_weights", fine_tuning());
            learner.teaching.gradient.norm_max = norm_max;
            step(&mut learner, &batch);
            let gradients = learner.tensors.values().map(Tensor::grad).filter(Tensor::defined);
            let squares = gradients.map(|gradient| gradient.square().sum(Kind::Double).double_value(&[]));
            squares.sum::<f64>().sqrt()
        };
        let free = norm(0.0);
        assert!((norm(free / 3.0) / (free / 3.0) - 1.0).abs() < 1e-5);
        assert_eq!(norm(free * 3.0), free);
    }

    #[test]
    fn bf16_learns_like_f32_and_keeps_every_small_step() {
        let labels = &golden::tensors("train_step")["label"].values;
        let batch = batch(&(0..12).collect::<Vec<_>>(), labels);
        let mut exact = learner(&MICRO, "micro_weights", fine_tuning());
        let mut rounded = learner(&MICRO, "micro_weights", fine_tuning());
        rounded.teaching.precision = Precision::Bf16;
        for _ in 0..3 {
            let (expected, found) = (step(&mut exact, &batch).total, step(&mut rounded, &batch).total);
            assert!((found / expected - 1.0).abs() < 0.05, "{found} {expected}");
        }
        assert!(rounded.tensors.values().all(|tensor| tensor.kind() == Kind::Float));
        // Steps far below the spacing of bf16 numbers add up.
        let name = "base.patch_embed.proj.weight";
        let before = rounded.tensors[name].copy();
        let tiny = Rates { weights: 1e-6, biases: 1e-6 };
        rounded.step(&batch, tiny, &mut stream(0, 0, 0, Purpose::StochasticDepth)).expect("a step");
        let moved = (&rounded.tensors[name] - before).abs().max().double_value(&[]);
        assert!(moved > 0.0 && moved < 1e-4, "{moved}");
    }
}
