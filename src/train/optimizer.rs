//! SGD with momentum and AdamW, each tensor its own group as in the reference; the state can be saved.

use std::collections::BTreeMap;

use tch::Tensor;

use super::config::OptimizerChoice;
use super::schedule::Rates;
use crate::model::{AdamW, KernelError, Sgd, Tensors, Updates};

/// The update rule. Every tensor that has a gradient decays by `weight_decay`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OptimizerSettings {
    /// buf = momentum * buf + g + decay * p, p -= lr * buf.
    Sgd { momentum: f64, weight_decay: f64 },
    /// Loshchilov and Hutter, 2019: the decay is decoupled from the moments.
    AdamW { beta1: f64, beta2: f64, epsilon: f64, weight_decay: f64 },
}

impl From<OptimizerChoice> for OptimizerSettings {
    fn from(choice: OptimizerChoice) -> Self {
        match choice {
            OptimizerChoice::Sgd { momentum, weight_decay } => Self::Sgd { momentum, weight_decay },
            OptimizerChoice::Adamw { weight_decay } => {
                Self::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay }
            }
        }
    }
}

/// Settings and, per tensor, the state left by earlier steps.
#[derive(Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    /// `NAME.momentum`, or `NAME.first` and `NAME.second`.
    state: Tensors,
    steps: u32,
}

impl Optimizer {
    pub fn new(settings: OptimizerSettings) -> Self {
        Self { settings, state: BTreeMap::new(), steps: 0 }
    }

    /// The state left by earlier steps.
    pub fn state(&self) -> &Tensors {
        &self.state
    }

    /// Steps taken.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Resumes from a state returned by [`Self::state`] and [`Self::steps`].
    pub fn restore(&mut self, state: Tensors, steps: u32) {
        (self.state, self.steps) = (state, steps);
    }

    /// Updates every tensor that has a gradient; the others are unchanged, without decay.
    ///
    /// # Panics
    /// With libtorch's message, like every tensor operation of tch.
    pub fn step(&mut self, tensors: &Tensors, rates: Rates) {
        let _no_grad = tch::no_grad_guard();
        self.steps += 1;
        let (mut of_biases, mut of_weights) = (Updates::default(), Updates::default());
        for (name, tensor) in tensors {
            let gradient = tensor.grad();
            if !gradient.defined() {
                continue;
            }
            let (rate, updates) = match name.contains("bias") {
                true => (rates.biases, &mut of_biases),
                false => (rates.weights, &mut of_weights),
            };
            if is_fused(tensor) {
                self.plan(name, tensor, gradient, updates);
            } else {
                self.update(name, tensor.shallow_clone(), &gradient, rate);
            }
        }
        for (updates, rate) in [(of_biases, rates.biases), (of_weights, rates.weights)] {
            if !updates.is_empty() {
                self.fused(&updates, rate).unwrap_or_else(|cause| panic!("{cause}"));
            }
        }
    }

    /// Adds a tensor to those that are updated in one pass.
    fn plan(&mut self, name: &str, tensor: &Tensor, gradient: Tensor, updates: &mut Updates) {
        match self.settings {
            OptimizerSettings::Sgd { .. } => {
                let momentum = self.moment(name, "momentum", &gradient);
                updates.add(tensor, gradient, [momentum]);
            }
            OptimizerSettings::AdamW { .. } => {
                let moments = ["first", "second"].map(|kind| self.moment(name, kind, &gradient));
                updates.add(tensor, gradient, moments);
            }
        }
    }

    fn fused(&self, updates: &Updates, rate: f64) -> Result<(), KernelError> {
        match self.settings {
            OptimizerSettings::Sgd { momentum, weight_decay } => {
                updates.sgd(Sgd { rate, momentum, weight_decay })
            }
            OptimizerSettings::AdamW { beta1, beta2, epsilon, weight_decay } => {
                updates.adamw(AdamW { rate, beta1, beta2, epsilon, weight_decay, step: self.steps })
            }
        }
    }

    /// In place throughout: apart from the network, the cost of a step is reading and writing memory.
    fn update(&mut self, name: &str, mut tensor: Tensor, gradient: &Tensor, rate: f64) {
        let factor = |value: f64| Tensor::from(value as f32).to_device(gradient.device());
        match self.settings {
            OptimizerSettings::Sgd { momentum, weight_decay } => {
                let mut buffer = self.moment(name, "momentum", gradient);
                let mut buffer = buffer.g_mul_scalar_(momentum).g_add_(gradient);
                let buffer = buffer.addcmul_(&tensor, &factor(weight_decay));
                let _ = tensor.addcmul_(&buffer, &factor(-rate));
            }
            OptimizerSettings::AdamW { beta1, beta2, epsilon, weight_decay } => {
                let mut first = self.moment(name, "first", gradient);
                let mut second = self.moment(name, "second", gradient);
                let first = first.g_mul_scalar_(beta1).addcmul_(gradient, &factor(1.0 - beta1));
                let second = second.g_mul_scalar_(beta2).addcmul_(gradient, &(gradient * (1.0 - beta2)));
                let bias = |beta: f64| 1.0 - beta.powf(f64::from(self.steps));
                let length = second.sqrt() / bias(beta2).sqrt() + epsilon;
                let _ = tensor.g_mul_scalar_(1.0 - rate * weight_decay);
                let _ = tensor.addcdiv_(&first, &(length * (-bias(beta1) / rate)));
            }
        }
    }

    /// The state left by earlier steps, or zeros of the gradient's shape.
    fn moment(&mut self, name: &str, kind: &str, gradient: &Tensor) -> Tensor {
        self.state.entry(format!("{name}.{kind}")).or_insert_with(|| gradient.zeros_like()).shallow_clone()
    }
}

/// Whether libtorch's fused kernels update a tensor, which read every number once.
fn is_fused(tensor: &Tensor) -> bool {
    tensor.device() == tch::Device::Cpu && tensor.is_contiguous()
}
