//! Linear layers in int8 between tensors.

use std::slice;

use tch::{Kind, TchError, Tensor};

use crate::int8::{After, INPUTS_MAX, Linear8, Rounded};

/// Rounds `weight` `[outputs, inputs]`; `bias` `[outputs]`.
///
/// # Errors
/// If the shapes do not match or the layer is too wide.
pub fn round(weight: &Tensor, bias: &Tensor) -> Result<Linear8, TchError> {
    let (outputs, inputs) = weight.size2()?;
    if bias.size() != [outputs] || !(1..=INPUTS_MAX as i64).contains(&inputs) {
        return Err(TchError::Shape(format!(
            "a weight of {outputs} x {inputs} and a bias of {:?} cannot be rounded to int8",
            bias.size()
        )));
    }
    let [weight, bias] = [on_cpu(weight)?, on_cpu(bias)?];
    Ok(Linear8::new(&Rounded::of(numbers(&weight), inputs as usize), numbers(&bias)))
}

/// [rows, inputs] -> [rows, outputs], plus `residual` of that shape.
///
/// # Errors
/// If the shapes do not match.
pub fn forward(
    layer: &Linear8,
    x: &Tensor,
    after: After,
    residual: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let (rows, inputs) = x.size2()?;
    let shape = [rows, layer.outputs() as i64];
    let is_alike = residual.is_none_or(|residual| residual.size() == shape);
    if inputs != layer.inputs() as i64 || !is_alike {
        return Err(TchError::Shape(format!("a layer with {} inputs got {inputs}", layer.inputs())));
    }
    let (x, residual) = (on_cpu(x)?, residual.map(on_cpu).transpose()?);
    let mut y = Tensor::f_empty(shape, (Kind::Float, tch::Device::Cpu))?;
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    layer.forward(numbers(&x), after, residual.as_ref().map(numbers), numbers_mut(&mut y), threads);
    Ok(y)
}

/// In f32, row by row, on the host: the tensor itself where it is all that.
fn on_cpu(tensor: &Tensor) -> Result<Tensor, TchError> {
    tensor.detach().f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()
}

/// The numbers of a tensor that comes from [`on_cpu`].
fn numbers(tensor: &Tensor) -> &[f32] {
    assert!(is_plain(tensor));
    match tensor.numel() {
        0 => &[],
        // SAFETY: a contiguous f32 tensor on the host is so many numbers, which live as long as the tensor and are not
        // changed while it is borrowed: nothing here writes to inputs.
        length => unsafe { slice::from_raw_parts(tensor.data_ptr().cast(), length) },
    }
}

/// The numbers of a new tensor.
fn numbers_mut(tensor: &mut Tensor) -> &mut [f32] {
    assert!(is_plain(tensor));
    match tensor.numel() {
        0 => &mut [],
        // SAFETY: as above; a new tensor shares its memory with no other. libtorch's memory may be uninitialised, of
        // which any bits are an f32.
        length => unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast(), length) },
    }
}

fn is_plain(tensor: &Tensor) -> bool {
    tensor.kind() == Kind::Float && tensor.device() == tch::Device::Cpu && tensor.is_contiguous()
}
