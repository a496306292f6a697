//! TransOSS on libtorch. Only the composition root and the commands name what is in here.

mod encoder;
mod linear;
mod runtime;
mod tensors;
mod transoss;

pub use encoder::{SharedWeights, TorchSettings, forward_error};
pub use linear::Kernel;
pub use runtime::{Device, wait_passively};
pub use tensors::{Tensors, download, on_host, upload};
pub use transoss::{Features, Input, Mode, TransOss, drop_path};
