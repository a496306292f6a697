//! What serving and training ask of a network, whatever its family.
//!
//! Shapes: B batch, D embedding.

use std::fmt;

use tch::Tensor;

use crate::chip::Modality;

/// A network. Its tensors are those that it was made of: an optimizer that changes them changes the network.
pub trait Network: fmt::Debug {
    /// [B, D]; the neck and its statistics take no part.
    fn forward_before_neck(&self, input: &Input, mode: &mut Mode) -> Tensor;

    /// [B, D] -> [B, D], the feature after the neck of that before it.
    fn forward_neck(&self, before_neck: &Tensor, mode: &Mode) -> Tensor;

    /// Features of a batch, in its order.
    fn forward(&self, input: &Input, mut mode: Mode) -> Features {
        let before_neck = self.forward_before_neck(input, &mut mode);
        let after_neck = self.forward_neck(&before_neck, &mode);
        Features { before_neck, after_neck }
    }
}

/// A batch as the network reads it.
#[derive(Debug)]
pub struct Input<'a> {
    /// [B, 3, height, width], normalised.
    pub pixels: &'a Tensor,
    /// B of them.
    pub modalities: &'a [Modality],
    /// [B, 3]; a network without size token does not read it.
    pub size_tokens: &'a Tensor,
}

/// How the network runs.
pub enum Mode<'a> {
    /// Running statistics in the neck, every branch kept.
    Evaluate,
    /// Batch statistics in the neck, which move its running ones, and stochastic depth.
    Train {
        /// Share of branches dropped in the last block; it grows from 0 in the first one linearly.
        drop_path: f64,
        /// As many numbers in [0, 1) as asked for, `[B]`.
        uniform: &'a mut dyn FnMut(i64) -> Tensor,
    },
}

/// What a batch becomes.
#[derive(Debug)]
pub struct Features {
    /// [B, D], for TransOSS the class token after the last LayerNorm.
    pub before_neck: Tensor,
    /// [B, D], the same after the BatchNorm neck.
    pub after_neck: Tensor,
}
