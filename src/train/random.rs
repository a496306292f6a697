//! Random numbers that depend on what they are for and not on who draws first.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest as _, Sha256};

/// Keeps the streams apart from any other use of a seed.
const DOMAIN: &[u8] = b"shipreid training 1";

/// What random numbers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Sampling,
    Augmentation,
    StochasticDepth,
}

/// The stream for one purpose of the item `number` (a sample, a step) in an epoch of a run.
pub fn stream(seed: u64, epoch: u32, number: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(seed.to_le_bytes());
    hasher.update(epoch.to_le_bytes());
    hasher.update(number.to_le_bytes());
    hasher.update([purpose as u8]);
    ChaCha8Rng::from_seed(hasher.finalize().into())
}
