//! What the functions of the C++ shims have in common: how they fail, and what layers are told.

use std::ffi::{CStr, c_char};

use tch::{TchError, Tensor};

unsafe extern "C" {
    fn shipreid_free(message: *mut c_char);
}

/// The operation after the layer; oneDNN computes it in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    /// The exact form, with erf.
    Gelu,
}

/// A kernel that cannot compute a layer, with the first line of libtorch's message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KernelError(String);

impl KernelError {
    pub(super) fn new(message: &str) -> Self {
        Self(first_line(message))
    }
}

impl From<TchError> for KernelError {
    fn from(cause: TchError) -> Self {
        Self::new(&cause.to_string())
    }
}

/// Messages of libtorch end in a backtrace; the first line holds the error.
pub fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The tensor that the shim created.
pub fn take(message: *mut c_char, tensor: *mut torch_sys::C_tensor) -> Result<Tensor, KernelError> {
    outcome(message)?;
    // SAFETY: without a message the shim has written a tensor that has no other owner.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

/// The result of a shim function: null, or a message.
pub fn outcome(message: *mut c_char) -> Result<(), KernelError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message is a C string allocated by the shim and freed once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        shipreid_free(message);
        text
    };
    Err(KernelError::new(&text))
}
