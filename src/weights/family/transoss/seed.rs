//! How the tensors of a TransOSS start.
//!
//! Class token, modality embedding and size token are truncated normal with deviation 0.02, the classifier with 0.001.
//! Two things differ from what is usual for a ViT-B, since networks that learn from little and from scratch have to tell
//! images apart from the first step: the linear layers of the blocks have deviation 1/sqrt(inputs), which keeps the
//! scale of what passes at every width, and positions have 0.4, as strong as what patches bring, where 0.02 would take
//! hundreds of steps to matter. The patch convolutions are uniform within 1/sqrt(inputs), torch's default; biases are
//! zero, norms are one, and the neck has seen nothing.

use super::{CHANNELS, SCALE, TransOssArchitecture};
use crate::weights::family::{Initial, LOGIT_SCALE};

pub(super) fn initial(architecture: &TransOssArchitecture, name: &str, shape: &[usize]) -> Initial {
    let is_norm = name.contains("norm") || name.starts_with("bottleneck.");
    if name == SCALE {
        Initial::Constant(LOGIT_SCALE)
    } else if name.contains("patch_embed") {
        let inputs = CHANNELS * architecture.patch * architecture.patch;
        Initial::Uniform(1.0 / (inputs as f64).sqrt())
    } else if name.ends_with(".running_var") || (is_norm && name.ends_with(".weight")) {
        Initial::Constant(1.0)
    } else if is_norm || name.ends_with(".bias") {
        Initial::Constant(0.0)
    } else if name.starts_with("classifier.") {
        Initial::Normal(0.001)
    } else if name == "base.pos_embed" {
        Initial::Normal(0.4)
    } else if let (true, [_, inputs]) = (name.contains(".blocks."), shape) {
        Initial::Normal(1.0 / (*inputs as f64).sqrt())
    } else {
        Initial::Normal(0.02)
    }
}
