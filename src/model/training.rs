//! What training on the CPU computes in one operation instead of many; `training/training.cpp` makes autograd know it.
//!
//! Shapes: B batch, N tokens, D embedding.

use std::ffi::c_char;
use std::ptr;

use tch::Tensor;

use super::linear::Linear;
use super::shim::{Activation, KernelError, outcome, take};
use super::tiles;

unsafe extern "C" {
    fn shipreid_training_linear(
        x: *const torch_sys::C_tensor,
        weight: *const torch_sys::C_tensor,
        bias: *const torch_sys::C_tensor,
        y: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
    fn shipreid_training_attention(
        qkv: *const torch_sys::C_tensor,
        heads: i64,
        attended: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
    fn shipreid_training_sgd(
        tensors: *const *const torch_sys::C_tensor,
        gradients: *const *const torch_sys::C_tensor,
        momenta: *const *const torch_sys::C_tensor,
        count: usize,
        rate: f64,
        momentum: f64,
        decay: f64,
    ) -> *mut c_char;
    fn shipreid_training_adamw(
        tensors: *const *const torch_sys::C_tensor,
        gradients: *const *const torch_sys::C_tensor,
        first: *const *const torch_sys::C_tensor,
        second: *const *const torch_sys::C_tensor,
        count: usize,
        rate: f64,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        decay: f64,
        number: i64,
    ) -> *mut c_char;
}

/// Inputs and outputs of a layer for which tiles are faster than sgemm: on an Intel Xeon (family 6, model 207) a step takes
/// longer on them at 192, and less at 384.
const WIDTH_MIN: i64 = 256;

/// A layer in training, on tiles where there are some and it is wide: [.., inputs] -> [.., outputs].
///
/// # Panics
/// With libtorch's message, like every tensor operation of tch.
pub fn linear(layer: &Linear, x: &Tensor) -> Tensor {
    match layer.numbers() {
        Some((weight, bias)) if tiles::fit(x) && is_wide(weight) => {
            on_tiles(x, weight, bias).unwrap_or_else(|cause| panic!("{cause}"))
        }
        _ => layer.forward(x, Activation::None),
    }
}

/// Whether splitting the numbers of a product of so many inputs and outputs costs less than tiles save.
fn is_wide(weight: &Tensor) -> bool {
    weight.size().iter().all(|length| *length >= WIDTH_MIN)
}

/// `x` [.., inputs], `weight` `[outputs, inputs]`, `bias` `[outputs]`.
fn on_tiles(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, KernelError> {
    assert!(tiles::fit(x), "tiles, and f32 on the CPU");
    let mut y = ptr::null_mut();
    // SAFETY: the shim borrows live tensors and writes either a tensor that we own or a message.
    let message = unsafe { shipreid_training_linear(x.as_ptr(), weight.as_ptr(), bias.as_ptr(), &raw mut y) };
    take(message, y)
}

/// softmax(q k^T / sqrt(h)) v in each of `heads`, `qkv` [B, N, 3 D] -> [B, N, D]; on the CPU only.
///
/// # Errors
/// If the shapes do not match, with libtorch's message.
pub fn attention(qkv: &Tensor, heads: i64) -> Result<Tensor, KernelError> {
    let mut attended = ptr::null_mut();
    // SAFETY: as in `on_tiles`.
    let message = unsafe { shipreid_training_attention(qkv.as_ptr(), heads, &raw mut attended) };
    take(message, attended)
}

/// Tensors on the CPU that an optimizer changes in one pass over each.
#[derive(Debug, Default)]
pub struct Updates {
    tensors: Vec<Tensor>,
    gradients: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
}

/// Settings of a step of SGD with momentum.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    pub rate: f64,
    pub momentum: f64,
    pub weight_decay: f64,
}

/// Settings of a step of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// From 1.
    pub step: u32,
}

impl Updates {
    /// Adds a tensor with its gradient and its moments, one for SGD and two for AdamW, all of one shape.
    pub fn add<const M: usize>(&mut self, tensor: &Tensor, gradient: Tensor, moments: [Tensor; M]) {
        self.tensors.push(tensor.shallow_clone());
        self.gradients.push(gradient);
        let mut moments = moments.into_iter();
        self.first.extend(moments.next());
        self.second.extend(moments.next());
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// buf = momentum * buf + g + decay * p, p -= rate * buf.
    ///
    /// # Errors
    /// With libtorch's message.
    pub fn sgd(&self, Sgd { rate, momentum, weight_decay }: Sgd) -> Result<(), KernelError> {
        let [tensors, gradients, first] =
            [&self.tensors, &self.gradients, &self.first].map(|list| pointers(list));
        // SAFETY: the shim borrows lists of live tensors, which are as long as it is told.
        outcome(unsafe {
            shipreid_training_sgd(
                tensors.as_ptr(),
                gradients.as_ptr(),
                first.as_ptr(),
                alike([&tensors, &gradients, &first]),
                rate,
                momentum,
                weight_decay,
            )
        })
    }

    /// Loshchilov and Hutter, 2019.
    ///
    /// # Errors
    /// With libtorch's message.
    pub fn adamw(&self, settings: AdamW) -> Result<(), KernelError> {
        let AdamW { rate, beta1, beta2, epsilon, weight_decay, step } = settings;
        let lists = [&self.tensors, &self.gradients, &self.first, &self.second];
        let [tensors, gradients, first, second] = lists.map(|list| pointers(list));
        // SAFETY: as above.
        outcome(unsafe {
            shipreid_training_adamw(
                tensors.as_ptr(),
                gradients.as_ptr(),
                first.as_ptr(),
                second.as_ptr(),
                alike([&tensors, &gradients, &first, &second]),
                rate,
                beta1,
                beta2,
                epsilon,
                weight_decay,
                i64::from(step),
            )
        })
    }
}

fn pointers(tensors: &[Tensor]) -> Vec<*const torch_sys::C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

/// The length of each of the lists.
fn alike<const N: usize>(lists: [&Vec<*const torch_sys::C_tensor>; N]) -> usize {
    assert!(lists.iter().all(|list| list.len() == lists[0].len()), "as many moments as tensors");
    lists[0].len()
}

#[cfg(test)]
mod tests;
