//! Random numbers that depend on their purpose and not on the order of drawing.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest as _, Sha256};

/// Separates the streams from any other use of a seed.
const DOMAIN: &[u8] = b"shipreid training 1";

/// The purposes of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Sampling,
    Augmentation,
    StochasticDepth,
}

/// The stream for one purpose of item `number` (a sample, a step) in an epoch of a run.
pub fn stream(seed: u64, epoch: u32, number: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(seed.to_le_bytes());
    hasher.update(epoch.to_le_bytes());
    hasher.update(number.to_le_bytes());
    hasher.update([purpose as u8]);
    ChaCha8Rng::from_seed(hasher.finalize().into())
}
