//! TransOSS on libtorch. Only the composition root and the commands name what is in here.

mod encoder;
mod linear;
mod runtime;
mod transoss;

pub use encoder::{SharedWeights, TorchSettings};
pub use linear::Kernel;
pub use runtime::{Device, wait_passively};
pub use transoss::{Features, Input, Mode, Tensors, TransOss, drop_path};
