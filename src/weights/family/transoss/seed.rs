//! Initial distributions of a TransOSS's tensors.
//!
//! Class token, modality embedding and size token are truncated normal with deviation 0.02, the classifier
//! with 0.001. Two things differ from the usual initialisation of a ViT-B, because networks that learn from
//! few images and from scratch must distinguish images from the first step. The linear layers of the blocks
//! have deviation 1/sqrt(inputs), which preserves the scale of activations at every width. Positions have
//! 0.4, as strong as the contribution of patches; with 0.02 they would need hundreds of steps to matter. The
//! patch convolutions are uniform within 1/sqrt(inputs), torch's default; biases are zero, norms are one, and
//! the neck has initial statistics.

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
