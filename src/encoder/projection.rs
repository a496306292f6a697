//! An encoder without a model: a seeded random projection of the pixels. Used to test the code around the model.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Batch, Encoder, EncoderInput, ForwardError};
use crate::chip::Modality;
use crate::embedding::Embedding;

/// Cells along either side of the grid that a chip is averaged over.
const CELLS: usize = 8;
/// Cells of three channels, the size token, the modality.
const INPUTS: usize = CELLS * CELLS * 3 + 4;

/// `y = W x` with a seeded `W`; equal chips give equal embeddings, similar chips similar ones.
#[derive(Clone, Debug)]
pub struct PixelProjection {
    /// `[dimension, INPUTS]`, row-major.
    weights: Vec<f32>,
}

impl PixelProjection {
    pub fn new(dimension: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        Self { weights: (0..dimension * INPUTS).map(|_| random.random_range(-1.0..1.0)).collect() }
    }

    fn embed(&self, chip: &EncoderInput) -> Result<Embedding, ForwardError> {
        let inputs = inputs(chip);
        let rows = self.weights.chunks(INPUTS);
        let feature = rows.map(|row| row.iter().zip(&inputs).map(|(w, x)| w * x).sum()).collect();
        Embedding::from_feature(feature).map_err(|cause| ForwardError::Failed(cause.to_string()))
    }
}

impl Encoder for PixelProjection {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
        batch.chips.iter().map(|chip| self.embed(chip)).collect()
    }
}

fn inputs(chip: &EncoderInput) -> [f32; INPUTS] {
    let mut inputs = [0.0; INPUTS];
    let (height, width) = (chip.size().height, chip.size().width);
    let share = (CELLS * CELLS) as f32 / (height * width) as f32;
    let mut add = |pixel: usize, channel: usize, value: f32| {
        let (y, x) = (pixel / width, pixel % width);
        inputs[((y * CELLS / height) * CELLS + x * CELLS / width) * 3 + channel] += value;
    };
    match chip {
        EncoderInput::Chip(chip) => {
            for (place, value) in chip.pixels().iter().enumerate() {
                add(place / 3, place % 3, f32::from(*value) * (share / 255.0));
            }
        }
        EncoderInput::Prepared(prepared) => {
            for (place, value) in prepared.pixels().iter().enumerate() {
                add(place % (height * width), place / (height * width), value * share);
            }
        }
    }
    inputs[INPUTS - 4..INPUTS - 1].copy_from_slice(&chip.size_token());
    inputs[INPUTS - 1] = if chip.modality() == Modality::Sar { 1.0 } else { -1.0 };
    inputs
}
