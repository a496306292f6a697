//! Conversion of tensors between host and device.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::runtime::Device;
use crate::arithmetic::Precision;
use crate::weights::tensors::{HostTensor, NamedTensors};

/// Tensors by checkpoint name, on one device and of one kind.
pub type Tensors = BTreeMap<String, Tensor>;

/// libtorch's name for a precision's numbers outside the layers that are rounded further.
pub fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::F32 | Precision::Int8 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

/// A copy of `tensor` in a libtorch tensor on the host, f32.
pub fn on_host(tensor: &HostTensor) -> Tensor {
    let shape: Vec<i64> = tensor.shape.iter().map(|length| *length as i64).collect();
    Tensor::from_slice(&tensor.values).view(&shape[..])
}

/// Copies of `tensors` on the device.
pub fn upload(tensors: &NamedTensors, device: Device, kind: Kind) -> Tensors {
    tensors.iter().map(|(name, tensor)| (name.clone(), uploaded(tensor, device, kind))).collect()
}

/// `tensors` moved to the device, one by one.
pub fn hand_over(tensors: NamedTensors, device: Device, kind: Kind) -> Tensors {
    tensors.into_iter().map(|(name, tensor)| (name, uploaded(&tensor, device, kind))).collect()
}

fn uploaded(tensor: &HostTensor, device: Device, kind: Kind) -> Tensor {
    on_host(tensor).to_device(device.0).to_kind(kind)
}

/// Copies of `tensors` in f32 that can be read without a device.
///
/// # Panics
/// If a tensor does not hold real numbers.
pub fn download(tensors: &Tensors) -> NamedTensors {
    let download = |tensor: &Tensor| {
        let shape = tensor.size().into_iter().map(|length| length as usize).collect();
        let flat = tensor.detach().to_kind(Kind::Float).to_device(tch::Device::Cpu).contiguous().view([-1]);
        HostTensor { shape, values: Vec::try_from(flat).expect("f32 values on the host") }
    };
    tensors.iter().map(|(name, tensor)| (name.clone(), download(tensor))).collect()
}
