//! Linear layers in f32 on tiles (AMX), which multiply bf16: sums of products of three parts of each number, as exact as
//! products in f32. `tiles/bf16x3.h` says how.

use std::ffi::c_char;
use std::ptr;

use tch::{Kind, Tensor};

use super::shim::{Activation, KernelError, take};
use crate::processor::{Level, Processor};

unsafe extern "C" {
    fn shipreid_tiles_split(
        weight: *const torch_sys::C_tensor,
        split: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
    fn shipreid_tiles_linear(
        x: *const torch_sys::C_tensor,
        split: *const torch_sys::C_tensor,
        inputs: i64,
        outputs: i64,
        bias: *const torch_sys::C_tensor,
        residual: *const torch_sys::C_tensor,
        has_gelu: bool,
        output: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
}

/// Whether products of a tensor's numbers can be computed on tiles.
pub fn fit(x: &Tensor) -> bool {
    x.device() == tch::Device::Cpu && x.kind() == Kind::Float && Processor::here().has(Level::Amx)
}

/// A weight `[outputs, inputs]`, each number in three parts, in the order of tiles: 6 bytes a number.
#[derive(Debug)]
pub struct SplitWeight {
    parts: Tensor,
    inputs: i64,
    outputs: i64,
}

impl SplitWeight {
    /// # Errors
    /// If it is not a matrix of f32 on the CPU, or the processor has no tiles.
    pub fn new(weight: &Tensor) -> Result<Self, KernelError> {
        if !fit(weight) {
            return Err(KernelError::new("there are no tiles for it"));
        }
        let mut parts = ptr::null_mut();
        // SAFETY: the processor has tiles; the shim borrows a live tensor and writes either a tensor that we own or a
        // message.
        let message = unsafe { shipreid_tiles_split(weight.as_ptr(), &raw mut parts) };
        let parts = take(message, parts)?;
        let (outputs, inputs) = weight.size2()?;
        Ok(Self { parts, inputs, outputs })
    }

    /// The same memory, for another thread.
    pub fn handle(&self) -> Self {
        Self { parts: self.parts.shallow_clone(), ..*self }
    }

    /// `x` [rows, inputs], `bias` `[outputs]` -> [rows, outputs], through `activation`, or plus `residual` of that shape.
    ///
    /// # Errors
    /// If the shapes do not match, or there are both.
    pub fn forward(
        &self,
        x: &Tensor,
        bias: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, KernelError> {
        let mut y = ptr::null_mut();
        // SAFETY: as above; null stands for no residual. A split weight exists only where there are tiles.
        let message = unsafe {
            shipreid_tiles_linear(
                x.as_ptr(),
                self.parts.as_ptr(),
                self.inputs,
                self.outputs,
                bias.as_ptr(),
                residual.map_or(ptr::null(), Tensor::as_ptr),
                activation == Activation::Gelu,
                &raw mut y,
            )
        };
        take(message, y)
    }
}
