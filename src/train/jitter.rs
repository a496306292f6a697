//! Random changes of brightness, contrast and saturation, as torchvision's `ColorJitter` makes them with Pillow.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::chip::Chip;

const CHANNELS: usize = 3;
/// Weights of red, green and blue in Pillow's luma, in 65,536ths (ITU-R 601-2).
const LUMA: [u32; CHANNELS] = [19_595, 38_470, 7_471];

/// One of the changes: a blend of each pixel with another one, which factor 0 gives alone and factor 1 not at all.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// With black.
    Brightness,
    /// With the mean luma of the picture.
    Contrast,
    /// With the pixel's luma.
    Saturation,
}

/// The three changes in their order, with their factors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter([(Change, f32); 3]);

impl Jitter {
    /// An order, every one as likely, and factors uniform within `strength` of 1.
    pub fn draw(strength: f64, random: &mut ChaCha8Rng) -> Self {
        let mut changes = [Change::Brightness, Change::Contrast, Change::Saturation]
            .map(|change| (change, random.random_range(1.0 - strength..=1.0 + strength) as f32));
        changes.shuffle(random);
        Self(changes)
    }

    /// A chip with these changes.
    pub fn applied(&self, chip: &Chip) -> Chip {
        let mut pixels = chip.pixels().to_vec();
        for (change, factor) in self.0 {
            apply(change, factor, &mut pixels);
        }
        Chip::new(pixels, chip.size(), chip.modality(), chip.size_token())
    }
}

/// Changes interleaved RGB pixels, rounding to bytes as Pillow does.
fn apply(change: Change, factor: f32, pixels: &mut [u8]) {
    let mean = match change {
        Change::Contrast => mean_luma(pixels),
        Change::Brightness | Change::Saturation => 0,
    };
    for pixel in pixels.as_chunks_mut::<CHANNELS>().0 {
        let other = match change {
            Change::Brightness => 0,
            Change::Contrast => mean,
            Change::Saturation => luma(*pixel),
        };
        *pixel = pixel.map(|value| blended(other, value, factor));
    }
}

/// `other` + factor (`value` - `other`), truncated to a byte.
fn blended(other: u8, value: u8, factor: f32) -> u8 {
    let (other, value) = (f32::from(other), f32::from(value));
    (other + factor * (value - other)) as u8
}

fn luma(pixel: [u8; CHANNELS]) -> u8 {
    let sum: u32 = pixel.iter().zip(LUMA).map(|(value, weight)| u32::from(*value) * weight).sum();
    ((sum + 0x8000) >> 16) as u8
}

/// Rounded to the nearest byte.
fn mean_luma(pixels: &[u8]) -> u8 {
    let pixels = pixels.as_chunks::<CHANNELS>().0;
    let sum: u64 = pixels.iter().map(|pixel| u64::from(luma(*pixel))).sum();
    (sum as f64 / pixels.len().max(1) as f64 + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::chip::{ChipSize, Modality};
    use crate::train::random::{Purpose, stream};
    use crate::weights::golden;

    const CHANGES: [Change; 3] = [Change::Brightness, Change::Contrast, Change::Saturation];

    fn numbers<const N: usize, T>(data: &[u8], of: fn([u8; N]) -> T) -> Vec<T> {
        data.as_chunks::<N>().0.iter().copied().map(of).collect()
    }

    #[test]
    fn pictures_change_as_pillow_changes_them() {
        let bytes = golden::bytes("jitter.safetensors");
        let recorded = SafeTensors::deserialize(&bytes).expect("recorded");
        let data = |name: &str| recorded.tensor(name).expect("recorded").data().to_vec();
        let cases = numbers(&data("count"), i64::from_le_bytes)[0];
        assert_eq!(cases, 9);
        for case in 0..cases {
            let order = numbers(&data(&format!("{case}.order")), i64::from_le_bytes);
            let factors = numbers(&data(&format!("{case}.factors")), f64::from_le_bytes);
            let mut pixels = data("picture");
            for change in order.into_iter().map(|place| place as usize) {
                apply(CHANGES[change], factors[change] as f32, &mut pixels);
            }
            assert!(pixels == data(&format!("{case}.changed")), "case {case}");
        }
    }

    #[test]
    fn factors_and_orders_are_evenly_drawn_and_a_stream_decides_them() {
        let draw = |number| Jitter::draw(0.2, &mut stream(1, 1, number, Purpose::Augmentation));
        let mut firsts = [0; 3];
        let mut factors = Vec::new();
        for number in 0..3000 {
            let drawn = draw(number);
            assert_eq!(drawn, draw(number));
            firsts[CHANGES.iter().position(|change| *change == drawn.0[0].0).expect("one of three")] += 1;
            factors.extend(drawn.0.map(|(_, factor)| factor));
        }
        assert!(firsts.iter().all(|count| (900..1100).contains(count)), "{firsts:?}");
        assert!(factors.iter().all(|factor| (0.8..=1.2).contains(factor)));
        for (low, high) in [(0.8, 0.9), (1.1, 1.2)] {
            let count = factors.iter().filter(|factor| (low..high).contains(*factor)).count();
            assert!((2050..2450).contains(&count), "{count} of {}", factors.len());
        }
    }

    #[test]
    fn a_sar_chip_stays_grey() {
        let pixels = (0..8 * 4).flat_map(|place| [place * 7; 3]).collect();
        let chip = Chip::new(pixels, ChipSize { height: 8, width: 4 }, Modality::Sar, [0.5; 3]);
        let jitter = Jitter([(Change::Saturation, 1.2), (Change::Contrast, 0.8), (Change::Brightness, 1.1)]);
        let changed = jitter.applied(&chip);
        assert!(changed.pixels().chunks(3).all(|pixel| pixel.iter().all(|value| *value == pixel[0])));
        assert!(changed.pixels() != chip.pixels());
        assert_eq!((changed.modality(), changed.size_token()), (Modality::Sar, [0.5; 3]));
    }
}
