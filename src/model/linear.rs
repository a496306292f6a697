//! A linear layer, and the matrix multiplications that can compute it.

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::Arc;

use tch::{TchError, Tensor};

use super::int8;
use crate::arithmetic::{Choice, Kernel};
use crate::int8::{After, Linear8};

/// The operation after the layer; oneDNN computes it in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    /// The exact form, with erf.
    Gelu,
}

/// Which kernel computes a layer, by the number of input rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan(Vec<(i64, Kernel)>);

impl Plan {
    /// The kernels of batches whose chips have this many rows each.
    pub fn new(choice: &Choice, tokens: usize) -> Self {
        let kernels = choice.kernels().iter();
        Self(kernels.map(|(chips, kernel)| ((chips * tokens) as i64, *kernel)).collect())
    }

    /// One kernel for everything, tuned for inputs of about `rows` rows.
    pub fn only(kernel: Kernel, rows: i64) -> Self {
        Self(vec![(rows, kernel)])
    }

    /// Whether everything is computed in int8, which no other kernel is mixed with.
    pub fn is_int8(&self) -> bool {
        self.0.iter().any(|(_, kernel)| *kernel == Kernel::Int8)
    }

    fn kernel(&self, rows: i64) -> Kernel {
        let found = self.0.iter().find(|(most, _)| rows <= *most).or(self.0.last());
        found.map_or(Kernel::Aten, |(_, kernel)| *kernel)
    }

    /// The largest number of rows that a kernel computes; `None` if it computes nothing.
    fn rows(&self, kernel: Kernel) -> Option<i64> {
        self.0.iter().rev().find(|(_, of_rows)| *of_rows == kernel).map(|(rows, _)| *rows)
    }
}

/// A kernel that cannot compute a layer, with the first line of libtorch's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KernelError(String);

impl From<TchError> for KernelError {
    fn from(cause: TchError) -> Self {
        Self(first_line(&cause.to_string()))
    }
}

/// `weight` `[outputs, inputs]`, `bias` `[outputs]`.
#[derive(Debug)]
pub struct Linear(Form);

#[derive(Debug)]
enum Form {
    Float { weight: Weight, bias: Tensor, plan: Plan },
    Int8(Arc<Linear8>),
}

/// A weight in the orders that its kernels read.
#[derive(Debug)]
enum Weight {
    /// `[outputs, inputs]`
    Plain(Tensor),
    /// In oneDNN's order.
    Packed(Tensor),
    Both {
        plain: Tensor,
        packed: Tensor,
    },
}

impl Weight {
    fn new(plain: Tensor, plan: &Plan) -> Result<Self, KernelError> {
        let Some(rows) = plan.rows(Kernel::OneDnn) else { return Ok(Self::Plain(plain)) };
        let packed = pack(&plain, rows)?;
        Ok(match plan.rows(Kernel::Aten) {
            Some(_) => Self::Both { plain, packed },
            None => Self::Packed(packed),
        })
    }

    fn handle(&self) -> Self {
        match self {
            Self::Plain(plain) => Self::Plain(plain.shallow_clone()),
            Self::Packed(packed) => Self::Packed(packed.shallow_clone()),
            Self::Both { plain, packed } => {
                Self::Both { plain: plain.shallow_clone(), packed: packed.shallow_clone() }
            }
        }
    }
}

impl Linear {
    /// Rounds or packs the weight if the plan has a kernel that needs it, and keeps only what the plan uses.
    ///
    /// # Errors
    /// If that kernel does not run here.
    pub fn new(weight: Tensor, bias: Tensor, plan: &Plan) -> Result<Self, KernelError> {
        if plan.is_int8() {
            return Ok(Self(Form::Int8(Arc::new(int8::round(&weight, &bias)?))));
        }
        Ok(Self(Form::Float { weight: Weight::new(weight, plan)?, bias, plan: plan.clone() }))
    }

    /// A layer that is rounded already.
    pub fn int8(layer: Linear8) -> Self {
        Self(Form::Int8(Arc::new(layer)))
    }

    /// The same layer with the same memory, for another thread.
    pub fn handle(&self) -> Self {
        Self(match &self.0 {
            Form::Float { weight, bias, plan } => {
                Form::Float { weight: weight.handle(), bias: bias.shallow_clone(), plan: plan.clone() }
            }
            Form::Int8(layer) => Form::Int8(Arc::clone(layer)),
        })
    }

    /// Weight and bias, unless they are rounded or packed.
    pub fn numbers(&self) -> Option<(&Tensor, &Tensor)> {
        match &self.0 {
            Form::Float {
                weight: Weight::Plain(weight) | Weight::Both { plain: weight, .. }, bias, ..
            } => Some((weight, bias)),
            Form::Float { weight: Weight::Packed(_), .. } | Form::Int8(_) => None,
        }
    }

    /// [.., inputs] -> [.., outputs]
    ///
    /// # Panics
    /// With libtorch's message, like every tensor operation of tch.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Tensor {
        self.try_forward(x, activation).unwrap_or_else(|cause| panic!("{cause}"))
    }

    /// The layer's output added to `residual`, which has its shape.
    ///
    /// # Panics
    /// As above.
    pub fn added_to(&self, residual: &Tensor, x: &Tensor) -> Tensor {
        match &self.0 {
            Form::Float { .. } => residual + self.forward(x, Activation::None),
            Form::Int8(layer) => {
                in_int8(layer, x, Activation::None, Some(residual)).unwrap_or_else(|cause| panic!("{cause}"))
            }
        }
    }

    /// # Errors
    /// If libtorch fails, with its message.
    pub fn try_forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor, KernelError> {
        let (weight, bias, plan) = match &self.0 {
            Form::Float { weight, bias, plan } => (weight, bias, plan),
            Form::Int8(layer) => return in_int8(layer, x, activation, None),
        };
        let mut shape = x.size();
        let inputs = shape.pop().unwrap_or(1).max(1);
        let rows = shape.iter().product();
        match (weight, plan.kernel(rows)) {
            (Weight::Packed(packed), _) | (Weight::Both { packed, .. }, Kernel::OneDnn) => {
                shape.push(bias.size()[0]);
                let y = onednn_linear(&x.f_reshape([rows, inputs])?, packed, bias, activation)?;
                Ok(y.f_view(&shape[..])?)
            }
            (Weight::Plain(plain) | Weight::Both { plain, .. }, _) => {
                let y = x.f_linear(plain, Some(bias))?;
                Ok(match activation {
                    Activation::None => y,
                    Activation::Gelu => y.f_gelu("none")?,
                })
            }
        }
    }
}

/// [.., inputs] -> [.., outputs], plus `residual`.
fn in_int8(
    layer: &Linear8,
    x: &Tensor,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor, KernelError> {
    let after = match activation {
        Activation::None => After::Nothing,
        Activation::Gelu => After::Gelu,
    };
    let mut shape = x.size();
    let inputs = shape.pop().unwrap_or(1).max(1);
    let rows: i64 = shape.iter().product();
    let residual = residual.map(|residual| residual.f_reshape([rows, layer.outputs() as i64])).transpose()?;
    let y = int8::forward(layer, &x.f_reshape([rows, inputs])?, after, residual.as_ref())?;
    shape.push(layer.outputs() as i64);
    Ok(y.f_view(&shape[..])?)
}

/// Messages of libtorch end in a backtrace; the first line holds the error.
pub fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

unsafe extern "C" {
    fn shipreid_free(message: *mut c_char);
    fn shipreid_disable_tf32() -> *mut c_char;
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

fn pack(weight: &Tensor, rows: i64) -> Result<Tensor, KernelError> {
    let mut packed = ptr::null_mut();
    // SAFETY: the shim borrows a live tensor and writes either a tensor that we own or a message.
    let message = unsafe { shipreid_onednn_pack(weight.as_ptr(), rows, &raw mut packed) };
    take(message, packed)
}

fn onednn_linear(
    x: &Tensor,
    packed: &Tensor,
    bias: &Tensor,
    activation: Activation,
) -> Result<Tensor, KernelError> {
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

/// Makes GPUs compute f32 convolutions and matrix products in f32, not in TF32, whose mantissa has
/// 10 bits. Applies to all later operations.
///
/// # Errors
/// If libtorch fails, with its message.
pub fn disable_tf32() -> Result<(), KernelError> {
    // SAFETY: the shim sets two flags of the process and returns null or a message that we own.
    outcome(unsafe { shipreid_disable_tf32() })
}

/// The tensor that the shim created.
pub(super) fn take(message: *mut c_char, tensor: *mut torch_sys::C_tensor) -> Result<Tensor, KernelError> {
    outcome(message)?;
    // SAFETY: without a message the shim has written a tensor that has no other owner.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

/// The result of a shim function: null, or a message.
pub(super) fn outcome(message: *mut c_char) -> Result<(), KernelError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message is a C string allocated by the shim and freed once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        shipreid_free(message);
        text
    };
    Err(KernelError(first_line(&text)))
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn every_plan_computes_the_same_layer() {
        tch::manual_seed(1);
        let cpu = (Kind::Float, tch::Device::Cpu);
        let (weight, bias) = (Tensor::randn([96, 48], cpu), Tensor::randn([96], cpu));
        let layer =
            |plan| Linear::new(weight.shallow_clone(), bias.shallow_clone(), &plan).expect("f32 runs");
        let aten = layer(Plan::only(Kernel::Aten, 10));
        let onednn = layer(Plan::only(Kernel::OneDnn, 10));
        let both = layer(Plan(vec![(5, Kernel::Aten), (10, Kernel::OneDnn)]));
        let forms = |layer: &Linear| match layer.0 {
            Form::Float { weight: Weight::Plain(_), .. } => "plain",
            Form::Float { weight: Weight::Packed(_), .. } => "packed",
            Form::Float { weight: Weight::Both { .. }, .. } => "both",
            Form::Int8(_) => "int8",
        };
        assert_eq!([&aten, &onednn, &both].map(forms), ["plain", "packed", "both"]);
        for (batch, activation) in [(1, Activation::None), (2, Activation::Gelu), (7, Activation::Gelu)] {
            let x = Tensor::randn([batch, 5, 48], cpu);
            let [expected, onednn, both] = [&aten, &onednn, &both].map(|layer| layer.forward(&x, activation));
            assert_eq!(onednn.size(), [batch, 5, 96]);
            for found in [&onednn, &both] {
                let difference = (&expected - found).abs().max().double_value(&[]);
                assert!(difference < 2e-5, "{batch} {activation:?}: {difference}");
            }
            assert!(both.equal(if batch == 1 { &expected } else { &onednn }), "{batch}: the plan's kernel");
        }
    }

    #[test]
    fn tf32_can_be_switched_off_without_a_gpu_and_more_than_once() {
        for _ in 0..2 {
            assert_eq!(disable_tf32(), Ok(()));
        }
    }

    #[test]
    fn what_libtorch_refuses_is_an_error_of_one_line() {
        let cpu = (Kind::Float, tch::Device::Cpu);
        for kernel in [Kernel::Aten, Kernel::OneDnn, Kernel::Int8] {
            let (weight, bias) = (Tensor::ones([96, 48], cpu), Tensor::ones([96], cpu));
            let layer = Linear::new(weight, bias, &Plan::only(kernel, 1)).expect("f32 runs");
            let refused = layer.try_forward(&Tensor::ones([1, 47], cpu), Activation::None);
            assert_eq!(refused.expect_err("another width").to_string().lines().count(), 1);
        }
    }
}
