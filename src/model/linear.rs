//! A linear layer, and the matrix multiplications that can compute it.

use std::ffi::{CStr, c_char};
use std::ptr;

use tch::Tensor;

/// What computes `x W^T + b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Whatever libtorch takes, with gradients, on any device.
    Aten,
    /// oneDNN with weights reordered for it; CPU and inference only. About twice as fast as ATen's f32 on AMD.
    OneDnn,
}

/// What follows the layer; oneDNN computes it in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    /// The exact form, with erf.
    Gelu,
}

/// `weight` [outputs, inputs], `bias` [outputs].
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    bias: Tensor,
}

#[derive(Debug)]
enum Weight {
    Aten(Tensor),
    OneDnn { packed: Tensor, outputs: i64 },
}

impl Linear {
    /// Reorders the weight if `kernel` wants that, for inputs of about `rows` rows.
    pub fn new(weight: Tensor, bias: Tensor, kernel: Kernel, rows: i64) -> Self {
        let weight = match kernel {
            Kernel::Aten => Weight::Aten(weight),
            Kernel::OneDnn => Weight::OneDnn { outputs: weight.size()[0], packed: pack(&weight, rows) },
        };
        Self { weight, bias }
    }

    /// [.., inputs] -> [.., outputs]
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Tensor {
        match &self.weight {
            Weight::Aten(weight) => {
                let y = x.linear(weight, Some(&self.bias));
                match activation {
                    Activation::None => y,
                    Activation::Gelu => y.gelu("none"),
                }
            }
            Weight::OneDnn { packed, outputs } => {
                let mut shape = x.size();
                let inputs = shape.pop().expect("a linear layer's input has an axis");
                shape.push(*outputs);
                onednn_linear(&x.reshape([-1, inputs]), packed, &self.bias, activation).view(&shape[..])
            }
        }
    }
}

unsafe extern "C" {
    fn shipreid_free(message: *mut c_char);
    fn shipreid_onednn_pack(
        weight: *const torch_sys::C_tensor,
        rows: i64,
        packed: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
    fn shipreid_onednn_linear(
        input: *const torch_sys::C_tensor,
        packed: *const torch_sys::C_tensor,
        bias: *const torch_sys::C_tensor,
        activation: *const c_char,
        output: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
}

fn pack(weight: &Tensor, rows: i64) -> Tensor {
    let mut packed = ptr::null_mut();
    // SAFETY: the shim borrows a live tensor, and writes one that is ours or a message.
    let message = unsafe { shipreid_onednn_pack(weight.as_ptr(), rows, &raw mut packed) };
    take(message, packed)
}

fn onednn_linear(x: &Tensor, packed: &Tensor, bias: &Tensor, activation: Activation) -> Tensor {
    let activation = match activation {
        Activation::None => c"none",
        Activation::Gelu => c"gelu",
    };
    let mut output = ptr::null_mut();
    // SAFETY: as in `pack`; the name of the activation is a constant.
    let message = unsafe {
        shipreid_onednn_linear(
            x.as_ptr(),
            packed.as_ptr(),
            bias.as_ptr(),
            activation.as_ptr(),
            &raw mut output,
        )
    };
    take(message, output)
}

/// The tensor that the shim made.
///
/// # Panics
/// With the shim's message, like every tensor operation of tch.
fn take(message: *mut c_char, tensor: *mut torch_sys::C_tensor) -> Tensor {
    if message.is_null() {
        // SAFETY: without a message the shim has written a tensor that nobody else owns.
        return unsafe { Tensor::from_ptr(tensor) };
    }
    // SAFETY: a message is a C string of the shim, freed once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        shipreid_free(message);
        text
    };
    panic!("{text}");
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn both_kernels_compute_the_same_layer() {
        tch::manual_seed(1);
        let cpu = (Kind::Float, tch::Device::Cpu);
        let (x, weight, bias) =
            (Tensor::randn([2, 5, 48], cpu), Tensor::randn([96, 48], cpu), Tensor::randn([96], cpu));
        for activation in [Activation::None, Activation::Gelu] {
            let layer = |kernel| Linear::new(weight.shallow_clone(), bias.shallow_clone(), kernel, 10);
            let [aten, onednn] = [Kernel::Aten, Kernel::OneDnn].map(|k| layer(k).forward(&x, activation));
            assert_eq!(onednn.size(), [2, 5, 96]);
            let difference = (aten - onednn).abs().max().double_value(&[]);
            assert!(difference < 2e-5, "{activation:?}: {difference}");
        }
    }
}
