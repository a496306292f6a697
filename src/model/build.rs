//! The only module that knows every family's network.

use super::network::Network;
use super::sdf_net::SdfNet;
use super::shared::SharedLayers;
use super::tensors::Tensors;
#[cfg(test)]
use super::toy::Toy;
use super::transoss::TransOss;
use crate::arithmetic::Choice;
use crate::weights::family::Architecture;

/// A network of `tensors`, which have the names and shapes of `architecture`'s state dict, on the
/// kernels of `choice`. Linear layers come from `shared`, or go there.
///
/// # Panics
/// If a tensor is missing or a kernel does not run. Callers compare checkpoints with the architecture, and
/// try kernels, beforehand.
pub fn network(
    architecture: &Architecture,
    tensors: &Tensors,
    choice: &Choice,
    shared: &SharedLayers,
) -> Box<dyn Network> {
    match architecture {
        Architecture::SdfNet(architecture) => Box::new(SdfNet::new(architecture, tensors, choice, shared)),
        Architecture::TransOss(architecture) => {
            Box::new(TransOss::new(architecture, tensors, choice, shared))
        }
        #[cfg(test)]
        Architecture::Toy(_) => Box::new(Toy::new(tensors)),
    }
}
