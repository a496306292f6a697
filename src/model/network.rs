//! What serving and training require of a network, whatever its family.
//!
//! Shapes: B batch, D embedding.

use std::fmt;

use tch::Tensor;

use crate::chip::Modality;

/// A network. Its tensors share storage with those that it was created from, so an optimizer that
/// changes them changes the network.
pub trait Network: fmt::Debug {
    /// [B, D]; does not involve the neck and its statistics.
    fn forward_before_neck(&self, input: &Input, mode: &mut Mode) -> Tensor;

    /// The same in training, with what losses of the family read beside it.
    fn forward_in_training(&self, input: &Input, mode: &mut Mode) -> Activations {
        Activations { before_neck: self.forward_before_neck(input, mode), parts: None }
    }

    /// [B, D] -> [B, D], from the feature before the neck to the one after it.
    fn forward_neck(&self, before_neck: &Tensor, mode: &Mode) -> Tensor;

    /// Features of a batch, in the batch's order.
    fn forward(&self, input: &Input, mut mode: Mode) -> Features {
        let before_neck = self.forward_before_neck(input, &mut mode);
        let after_neck = self.forward_neck(&before_neck, &mode);
        Features { before_neck, after_neck }
    }
}

/// The network's input for a batch.
#[derive(Debug)]
pub struct Input<'a> {
    /// [B, 3, height, width], normalised.
    pub pixels: &'a Tensor,
    /// Length B.
    pub modalities: &'a [Modality],
    /// [B, 3]; ignored by a network without size token.
    pub size_tokens: &'a Tensor,
}

/// How the network runs.
pub enum Mode<'a> {
    /// Running statistics in the neck, every branch kept.
    Evaluate,
    /// Batch statistics in the neck, which update its running ones, and stochastic depth.
    Train {
        /// Fraction of branches dropped in the last block; it grows linearly from 0 in the first one.
        drop_path: f64,
        /// Returns the requested count of numbers in [0, 1), `[B]`.
        uniform: &'a mut dyn FnMut(i64) -> Tensor,
    },
}

/// What losses read of a network.
#[derive(Debug)]
pub struct Activations {
    /// [B, D]
    pub before_neck: Tensor,
    /// Of a network that separates what modalities share from what is specific to each.
    pub parts: Option<Parts>,
}

/// The parts of a feature, and what its network knows of the structure of a chip.
#[derive(Debug)]
pub struct Parts {
    /// [B, D], of what modalities share.
    pub shared: Tensor,
    /// [B, D], of what is specific to the chip's modality.
    pub specific: Tensor,
    /// [B, rows, columns, D], the patches in the middle of the network.
    pub patches: Tensor,
}

/// The features of a batch.
#[derive(Debug)]
pub struct Features {
    /// [B, D], for TransOSS the class token after the last LayerNorm, for SDF-Net the sum of its two.
    pub before_neck: Tensor,
    /// [B, D], the same after the BatchNorm neck.
    pub after_neck: Tensor,
}
