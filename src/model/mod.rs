//! Networks on libtorch. Only the composition root and the commands refer to items in here.

mod build;
mod encoder;
mod int8;
mod kernels;
mod linear;
mod network;
mod runtime;
mod sdf_net;
mod shared;
mod shim;
mod tensors;
#[cfg(test)]
pub mod test_device;
mod tiles;
#[cfg(test)]
mod toy;
mod training;
mod transoss;

pub use build::network;
pub use encoder::{SharedWeights, TorchSettings, forward_error};
pub use kernels::{ChoiceError, Chosen, LayerShape, Wanted, choose, training_speed};
pub use network::{Activations, Features, Input, Mode, Network, Parts};
pub use runtime::{Device, prepare_process, prepare_training};
pub use shared::SharedLayers;
pub use shim::KernelError;
pub use tensors::{Tensors, download, kind, on_host, upload};
pub use training::{AdamW, Sgd, Updates};
pub use transoss::drop_path;
