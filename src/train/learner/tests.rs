//! Golden steps, resuming, parts, clipping, bf16, several ranks.

use super::*;
use crate::model::test_device::{bound, check_difference, device};
use crate::train::config::Loss;
use crate::train::random::{Purpose, stream};
use crate::weights::family::transoss::TransOssArchitecture;
use crate::weights::family::{Family, Preset};
use crate::weights::golden::{self, Inputs, MICRO};
use crate::weights::seed::seeded;
use crate::weights::tensors::HostTensor;

mod ranks;
mod ranks_faults;
mod ranks_recorded;
mod sdf_net;

const TINY: TransOssArchitecture = TransOssArchitecture { embed_dim: 48, depth: 3, heads: 3, ..MICRO };
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

fn learner(architecture: &TransOssArchitecture, weights: &str, objective: Objective) -> TorchLearner {
    let architecture = Architecture::from(*architecture);
    let mut tensors = golden::tensors(weights);
    let expected = architecture.expected_tensors();
    tensors.retain(|name, _| expected.contains_key(name));
    TorchLearner::new(&architecture, &tensors, device(), teaching(objective))
}

fn step(learner: &mut TorchLearner, batch: &Samples) -> LossTerms {
    learner.step(batch, RATES, &mut stream(0, 0, 0, Purpose::StochasticDepth)).expect("a step")
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, value| most.max(value.abs()))
}

/// Compares with a tensor, or with the digest of a large one: sum, sum of |x|, L2 norm, 16 elements. `atol`
/// yields the bound on the CPU relative to the largest number.
fn check(what: &str, found: &Tensor, recorded: &NamedTensors, name: &str, atol: impl Fn(f64) -> f64) {
    let flat = found.detach().to_device(tch::Device::Cpu).contiguous().view([-1]);
    let flat = Vec::<f32>::try_from(flat).expect("f32 values");
    let found: Vec<f64> = flat.iter().map(|value| f64::from(*value)).collect();
    let values =
        |tensor: &HostTensor| -> Vec<f64> { tensor.values.iter().map(|value| f64::from(*value)).collect() };
    if let Some(expected) = recorded.get(name) {
        let expected = values(expected);
        assert_eq!(found.len(), expected.len(), "{what} {name}");
        let off = largest(found.iter().zip(&expected).map(|(found, expected)| found - expected));
        check_difference(&format!("{what} {name}"), off, atol(largest(expected.iter().copied())));
        return;
    }
    let digest = values(&recorded[&format!("digest.{name}")]);
    let absolute: f64 = found.iter().map(|value| value.abs()).sum();
    let norm = found.iter().map(|value| value * value).sum::<f64>().sqrt();
    let relative = bound(1e-4);
    assert!((found.iter().sum::<f64>() - digest[0]).abs() <= relative * digest[1], "{what} {name}");
    assert!((absolute / digest[1] - 1.0).abs() <= relative && (norm / digest[2] - 1.0).abs() <= relative);
    let expected = digest[3..].iter().enumerate();
    let off = largest(expected.map(|(place, expected)| found[place * found.len() / 16] - expected));
    check_difference(&format!("{what} {name}"), off, 1e-4 * largest(found.iter().copied()));
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
            check_difference(&format!("{set} {number}.loss"), (terms.total - expected).abs(), allowed);
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
            // Mathematically zero, so both sides are noise.
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
        let architecture = TransOssArchitecture { size_token: false, ..architecture };
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
            check_difference(&format!("{set} {name}"), (terms.total - expected).abs(), allowed);
        }
    }
}

#[test]
fn a_batch_of_one_modality_decays_the_other_convolution() {
    let all = golden::inputs(&(0..12).collect::<Vec<_>>());
    let optical: Vec<usize> = (0..12).filter(|row| all.modalities[*row] == Modality::Optical).collect();
    let labels: Vec<f32> = optical.iter().map(|row| (row % 2) as f32).collect();
    let mut learner = learner(&MICRO, "micro_weights", Objective::FineTune(FineTune::from(&Loss::default())));
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
    let settings = OptimizerSettings::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
    let mut optimizer = Optimizer::new(settings);
    let tensors: Tensors = [("w".to_owned(), tensor.shallow_clone())].into();
    (&tensor * Tensor::from_slice(&[3.0_f32, -0.5])).sum(Kind::Float).backward();
    optimizer.step(&tensors, Rates { weights: 0.01, biases: 0.0 });
    let _ = tensor.detach_();
    // The first step is the sign of the gradient, whatever its norm.
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
    parted.teaching.gradient.accumulation_steps = 2;
    let (expected, found) = (step(&mut once, &whole), step(&mut parted, &double));
    assert!((expected.total - found.total).abs() < 1e-6 && expected.accuracy == found.accuracy);
    for (name, tensor) in once.tensors.iter().filter(|(name, _)| !name.contains("bottleneck.")) {
        let off = (tensor - &parted.tensors[name]).abs().max().double_value(&[]);
        assert!(off < 1e-6, "{name}: {off}");
    }
    let pairs = Teaching {
        gradient: Gradient { accumulation_steps: 2, ..Gradient::default() },
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
        learner.teaching.gradient.grad_norm_max = norm_max;
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
    // Steps far below the spacing of bf16 numbers accumulate.
    let name = "base.patch_embed.proj.weight";
    let before = rounded.tensors[name].copy();
    let tiny = Rates { weights: 1e-6, biases: 1e-6 };
    rounded.step(&batch, tiny, &mut stream(0, 0, 0, Purpose::StochasticDepth)).expect("a step");
    let moved = (&rounded.tensors[name] - before).abs().max().double_value(&[]);
    assert!(moved > 0.0 && moved < 1e-4, "{moved}");
}

#[test]
fn a_network_of_another_family_learns() {
    let architecture = Family::Toy.preset(Preset::Tiny).with_classes(2);
    let tensors = seeded(&architecture, 1);
    let mut teaching = teaching(fine_tuning());
    teaching.precision = Precision::Bf16;
    let mut learner = TorchLearner::new(&architecture, &tensors, device(), teaching);
    let size = architecture.preprocessing().size;
    let values = 3 * size.height * size.width;
    let batch = Samples {
        size,
        pixels: (0..4 * values).map(|place| if place < 2 * values { 1.0 } else { -1.0 }).collect(),
        modalities: vec![Modality::Optical, Modality::Sar, Modality::Optical, Modality::Sar],
        size_tokens: vec![[0.0; 3]; 4],
        labels: vec![0, 0, 1, 1],
    };
    let losses: Vec<f64> = (0..10).map(|_| step(&mut learner, &batch).total).collect();
    assert!(losses[9] < losses[0], "{losses:?}");
    let state = learner.state();
    assert_eq!(state.weights["toy.neck"], tensors["toy.neck"], "it is not trained");
    assert_ne!(state.weights["toy.pixels"], tensors["toy.pixels"]);
    let chip = Chip::new(vec![7; values], size, Modality::Sar, [0.0; 3]);
    assert_eq!(learner.embed(&[chip]).expect("embeddings")[0].as_slice().len(), architecture.embed_dim());
}
