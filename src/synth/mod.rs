//! Synthetic ships, drawn procedurally as seen by an optical and a SAR sensor. Nothing here is a real ship.

mod dataset;
mod optical;
mod relief;
mod sar;
mod ship;

use std::io::Cursor;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest as _, Sha256};
use tiff::encoder::colortype::ColorType;
use tiff::encoder::{TiffEncoder, TiffValue};

pub use dataset::{SynthError, SynthPlan, write};
pub use optical::OpticalImage;
pub use sar::SarImage;
pub use ship::Ship;

/// The purposes of random numbers.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Class,
    Ship,
    Optical,
    Sar,
}

/// The stream for one purpose of item `number`, in its view `view`.
fn stream(seed: u64, purpose: Purpose, number: u64, view: u64) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(b"shipreid synthetic ships 1");
    hasher.update([purpose as u8]);
    for value in [seed, number, view] {
        hasher.update(value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

/// An image of whole rows as a TIFF.
fn tiff<C: ColorType>(width: usize, height: usize, pixels: &[C::Inner]) -> Vec<u8>
where
    [C::Inner]: TiffValue,
{
    let mut bytes = Vec::new();
    TiffEncoder::new(&mut Cursor::new(&mut bytes))
        .and_then(|mut encoder| encoder.write_image::<C>(width as u32, height as u32, pixels))
        .expect("memory takes every image of whole rows");
    bytes
}
