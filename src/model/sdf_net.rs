//! SDF-Net (arXiv 2603.12588): a TransOSS with two class tokens, one shared by the modalities and one of the chip's own
//! modality, whose sum is the feature.
//!
//! Shapes: B batch, P patches, N tokens, D embedding.

#[cfg(test)]
mod golden;

use tch::Tensor;

use super::linear::Plan;
use super::network::{Activations, Input, Mode, Network, Parts};
use super::shared::SharedLayers;
use super::tensors::Tensors;
use super::transoss::{Block, LayerNorm, Names, Neck, TokenEmbedding, blocks, class_tokens, modality_index};
use crate::arithmetic::Choice;
use crate::weights::family::FamilyArchitecture as _;
use crate::weights::family::sdf_net::SdfNetArchitecture;

/// Before the patches.
const CLASS_TOKENS: i64 = 2;

/// The network.
#[derive(Debug)]
pub struct SdfNet {
    embedding: TokenEmbedding,
    /// [1, 1, D] each, the class tokens of optical and of SAR chips.
    specific: [Tensor; 2],
    blocks: Vec<Block>,
    /// Blocks after which the losses read the patches.
    structure_depth: usize,
    /// Rows and columns of patches.
    grid: [i64; 2],
    norm: LayerNorm,
    neck: Neck,
}

impl SdfNet {
    /// See [`super::build::network`].
    pub fn new(
        architecture: &SdfNetArchitecture,
        tensors: &Tensors,
        choice: &Choice,
        shared: &SharedLayers,
    ) -> Self {
        let plan = &Plan::new(choice, architecture.token_count());
        let names = Names { tensors, prefix: String::new(), plan, shared };
        let (base, backbone) = (names.sub("base"), &architecture.0);
        let (rows, columns) = backbone.grid();
        Self {
            embedding: TokenEmbedding::new(backbone, &base),
            specific: ["cls_token_spe_rgb", "cls_token_spe_sar"].map(|token| base.get(token)),
            blocks: blocks(backbone, &base),
            structure_depth: architecture.structure_depth(),
            grid: [rows as i64, columns as i64],
            norm: LayerNorm::new(&base.sub("norm")),
            neck: Neck::new(&names.sub("bottleneck_fuse")),
        }
    }

    /// Shared, specific, patches, size: [B, N, D].
    fn tokens(&self, input: &Input) -> Tensor {
        let index = modality_index(input.modalities, input.pixels.device());
        let specific = Tensor::cat(&self.specific, 0).index_select(0, &index); // [B, 1, D]
        self.embedding.forward_after(&[self.embedding.class_of(input), specific], input)
    }

    /// The two class tokens after the last LayerNorm, [B, D] each. `seen` as in [`class_tokens`].
    fn shared_and_specific(
        &self,
        input: &Input,
        mode: &mut Mode,
        seen: impl FnMut(usize, &Tensor),
    ) -> [Tensor; 2] {
        let classes = class_tokens(&self.blocks, self.tokens(input), CLASS_TOKENS, mode, seen);
        let classes = self.norm.forward(&classes);
        [0, 1].map(|token| classes.select(1, token))
    }
}

impl Network for SdfNet {
    /// [B, D], the sum of the two class tokens after the last LayerNorm.
    fn forward_before_neck(&self, input: &Input, mode: &mut Mode) -> Tensor {
        let [shared, specific] = self.shared_and_specific(input, mode, |_, _| ());
        shared + specific
    }

    fn forward_in_training(&self, input: &Input, mode: &mut Mode) -> Activations {
        let [rows, columns] = self.grid;
        let mut patches = None;
        let [shared, specific] = self.shared_and_specific(input, mode, |number, x| {
            if number + 1 == self.structure_depth {
                let tokens = x.narrow(1, CLASS_TOKENS, rows * columns);
                patches = Some(tokens.reshape([-1, rows, columns, x.size()[2]]));
            }
        });
        let parts = patches.map(|patches| Parts {
            shared: shared.shallow_clone(),
            specific: specific.shallow_clone(),
            patches,
        });
        Activations { before_neck: shared + specific, parts }
    }

    fn forward_neck(&self, before_neck: &Tensor, mode: &Mode) -> Tensor {
        self.neck.forward(before_neck, mode)
    }
}
