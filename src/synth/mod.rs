//! Synthetic ships: procedurally drawn, seen by an optical and a SAR sensor. Nothing here is a real ship.

mod dataset;
mod optical;
mod relief;
mod sar;
mod ship;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest as _, Sha256};

pub use dataset::{SynthError, SynthPlan, write};
pub use optical::OpticalImage;
pub use sar::SarImage;
pub use ship::Ship;

/// What random numbers are for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Class,
    Ship,
    Optical,
    Sar,
}

/// The stream for one purpose of the item `number`, in view `view` of it.
fn stream(seed: u64, purpose: Purpose, number: u64, view: u64) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(b"shipreid synthetic ships 1");
    hasher.update([purpose as u8]);
    for value in [seed, number, view] {
        hasher.update(value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hasher.finalize().into())
}
