//! A linear layer, and the matrix multiplications that can compute it.

use std::ffi::c_char;
use std::ptr;
use std::sync::Arc;

use tch::Tensor;

use super::int8;
use super::shim::{Activation, KernelError, outcome, take};
use super::tiles::SplitWeight;
use crate::arithmetic::{Choice, Kernel};
use crate::int8::{After, Linear8};

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

/// `weight` `[outputs, inputs]`, `bias` `[outputs]`.
#[derive(Debug)]
pub struct Linear(Form);

#[derive(Debug)]
enum Form {
    Float { weight: Weight, bias: Tensor, plan: Plan },
    Int8(Arc<Linear8>),
}

/// A weight in the orders that its plan's kernels read.
#[derive(Debug)]
struct Weight {
    /// `[outputs, inputs]`
    plain: Option<Tensor>,
    /// In oneDNN's order.
    packed: Option<Tensor>,
    split: Option<SplitWeight>,
}

impl Weight {
    fn new(plain: Tensor, plan: &Plan) -> Result<Self, KernelError> {
        Ok(Self {
            packed: plan.rows(Kernel::OneDnn).map(|rows| pack(&plain, rows)).transpose()?,
            split: plan.rows(Kernel::Tiles).map(|_| SplitWeight::new(&plain)).transpose()?,
            plain: plan.rows(Kernel::Aten).map(|_| plain),
        })
    }

    fn handle(&self) -> Self {
        let Self { plain, packed, split } = self;
        let [plain, packed] = [plain, packed].map(|form| form.as_ref().map(Tensor::shallow_clone));
        Self { plain, packed, split: split.as_ref().map(SplitWeight::handle) }
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
            Form::Float { weight, bias, .. } => Some((weight.plain.as_ref()?, bias)),
            Form::Int8(_) => None,
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
        self.compute(x, Activation::None, Some(residual)).unwrap_or_else(|cause| panic!("{cause}"))
    }

    /// # Errors
    /// If libtorch fails, with its message.
    pub fn try_forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor, KernelError> {
        self.compute(x, activation, None)
    }

    /// [.., inputs] -> [.., outputs], through `activation`, plus `residual` of that shape.
    fn compute(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, KernelError> {
        let mut shape = x.size();
        let inputs = shape.pop().unwrap_or(1).max(1);
        let rows: i64 = shape.iter().product();
        shape.push(self.outputs());
        let by_row = || x.f_reshape([rows, inputs]);
        let residual_by_row =
            || residual.map(|residual| residual.f_reshape([rows, self.outputs()])).transpose();
        let (weight, bias, kernel) = match &self.0 {
            Form::Float { weight, bias, plan } => (weight, bias, plan.kernel(rows)),
            Form::Int8(layer) => {
                let y = int8::forward(layer, &by_row()?, after(activation), residual_by_row()?.as_ref())?;
                return Ok(y.f_view(&shape[..])?);
            }
        };
        let y = match (kernel, weight) {
            (Kernel::Tiles, Weight { split: Some(split), .. }) => {
                let y = split.forward(&by_row()?, bias, activation, residual_by_row()?.as_ref())?;
                return Ok(y.f_view(&shape[..])?);
            }
            (Kernel::OneDnn, Weight { packed: Some(packed), .. }) => {
                onednn_linear(&by_row()?, packed, bias, activation)?.f_view(&shape[..])?
            }
            (_, Weight { plain: Some(plain), .. }) => {
                let y = x.f_linear(plain, Some(bias))?;
                match activation {
                    Activation::None => y,
                    Activation::Gelu => y.f_gelu("none")?,
                }
            }
            _ => unreachable!("a weight has the forms of its plan"),
        };
        Ok(match residual {
            None => y,
            Some(residual) => residual.f_add(&y)?,
        })
    }

    fn outputs(&self) -> i64 {
        match &self.0 {
            Form::Float { bias, .. } => bias.size()[0],
            Form::Int8(layer) => layer.outputs() as i64,
        }
    }
}

fn after(activation: Activation) -> After {
    match activation {
        Activation::None => After::Nothing,
        Activation::Gelu => After::Gelu,
    }
}

unsafe extern "C" {
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

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::arithmetic::Precision;
    use crate::processor::{Level, Processor};

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
        let tiles = Processor::here().has(Level::Amx).then(|| layer(Plan::only(Kernel::Tiles, 10)));
        let forms = |layer: &Linear| match &layer.0 {
            Form::Float { weight: Weight { plain, packed, split }, .. } => {
                [plain.is_some(), packed.is_some(), split.is_some()]
            }
            Form::Int8(_) => panic!("it was not asked for"),
        };
        assert_eq!(
            [&aten, &onednn, &both].map(forms),
            [[true, false, false], [false, true, false], [true, true, false]]
        );
        assert!(tiles.as_ref().is_none_or(|tiles| forms(tiles) == [false, false, true]));
        for (batch, activation) in [(1, Activation::None), (2, Activation::Gelu), (7, Activation::Gelu)] {
            let x = Tensor::randn([batch, 5, 48], cpu);
            let [expected, onednn, both] = [&aten, &onednn, &both].map(|layer| layer.forward(&x, activation));
            assert_eq!(onednn.size(), [batch, 5, 96]);
            let on_tiles = tiles.as_ref().map(|tiles| tiles.forward(&x, activation));
            for found in [&onednn, &both].into_iter().chain(&on_tiles) {
                assert_eq!(found.size(), expected.size());
                let difference = (&expected - found).abs().max().double_value(&[]);
                assert!(difference < 2e-5, "{batch} {activation:?}: {difference}");
            }
            assert!(both.equal(if batch == 1 { &expected } else { &onednn }), "{batch}: the plan's kernel");
        }
    }

    #[test]
    fn every_kernel_adds_a_residual() {
        tch::manual_seed(2);
        let cpu = (Kind::Float, tch::Device::Cpu);
        // More rows than a block of tiles has, and a depth of more than one part.
        let (weight, bias) = (Tensor::randn([70, 1000], cpu) * 0.03, Tensor::randn([70], cpu));
        let (x, residual) = (Tensor::randn([3, 47, 1000], cpu), Tensor::randn([3, 47, 70], cpu));
        let exact = x.linear(&weight, Some(&bias)) + &residual;
        for kernel in Kernel::candidates(Precision::F32, Processor::here()) {
            let plan = Plan::only(kernel, 141);
            let layer =
                Linear::new(weight.shallow_clone(), bias.shallow_clone(), &plan).expect("a candidate");
            let difference = (layer.added_to(&residual, &x) - &exact).abs().max().double_value(&[]);
            assert!(difference < 2e-5, "{}: {difference}", kernel.name());
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
        for kernel in Kernel::candidates(Precision::F32, Processor::here()).chain([Kernel::Int8]) {
            let (weight, bias) = (Tensor::ones([96, 48], cpu), Tensor::ones([96], cpu));
            let layer = Linear::new(weight, bias, &Plan::only(kernel, 1)).expect("f32 runs");
            let refused = layer.try_forward(&Tensor::ones([1, 47], cpu), Activation::None);
            assert_eq!(refused.expect_err("another width").to_string().lines().count(), 1);
        }
    }
}
