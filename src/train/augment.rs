//! From a resized chip to the network's input in training: flip, jitter, pad, crop, normalise, erase.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::config::Augmentation;
use super::jitter::Jitter;
use crate::chip::{Chip, ChipSize, Preprocessing};

const CHANNELS: usize = 3;
/// Rows of a chip for which [`Augmentation::padding`] applies unscaled.
const PADDED_HEIGHT: usize = 256;
const ERASE_ATTEMPTS: usize = 10;
/// Fraction of the chip's area.
const ERASE_AREA: (f64, f64) = (0.02, 1.0 / 3.0);
/// Height over width; drawn uniformly in the logarithm, up to the inverse.
const ERASE_ASPECT_MIN: f64 = 0.3;

/// Position of a rectangle of noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rectangle {
    top: usize,
    left: usize,
    height: usize,
    width: usize,
}

/// `[3, height, width]`, normalised, and augmented at random like the reference's training chips; jitter is SDF-Net's.
pub fn augment(
    chip: &Chip,
    preprocessing: &Preprocessing,
    settings: &Augmentation,
    random: &mut ChaCha8Rng,
) -> Vec<f32> {
    let flip = random.random_bool(settings.flip);
    // Without it nothing is drawn, so that earlier runs have the same numbers.
    let jittered = (settings.jitter > 0.0).then(|| Jitter::draw(settings.jitter, random).applied(chip));
    let chip = jittered.as_ref().unwrap_or(chip);
    let padding = padding(settings.padding, chip.size());
    let offset = [0; 2].map(|_| random.random_range(0..=2 * padding) as isize - padding as isize);
    let mut input = normalise(chip, preprocessing, flip, offset);
    if random.random_bool(settings.erase)
        && let Some(rectangle) = draw_rectangle(chip.size(), random)
    {
        fill(&mut input, chip.size(), rectangle, random);
    }
    input
}

/// `[3, height, width]`, normalised and otherwise unchanged.
pub fn plain(chip: &Chip, preprocessing: &Preprocessing) -> Vec<f32> {
    normalise(chip, preprocessing, false, [0; 2])
}

fn padding(rows: usize, size: ChipSize) -> usize {
    (rows * size.height).div_ceil(PADDED_HEIGHT)
}

/// Flips, moves the crop by `offset` rows and columns into the black padding, and normalises.
fn normalise(chip: &Chip, preprocessing: &Preprocessing, flip: bool, [down, right]: [isize; 2]) -> Vec<f32> {
    let ChipSize { height, width } = chip.size();
    let mut input = Vec::with_capacity(CHANNELS * height * width);
    for channel in 0..CHANNELS {
        for y in 0..height {
            let row = y.checked_add_signed(down).filter(|row| *row < height);
            for x in 0..width {
                let column = x.checked_add_signed(right).filter(|column| *column < width);
                let value = row.zip(column).map_or(0, |(row, column)| {
                    let column = if flip { width - 1 - column } else { column };
                    chip.pixels()[(row * width + column) * CHANNELS + channel]
                });
                input.push(preprocessing.normalised(value, channel));
            }
        }
    }
    input
}

/// The first of ten drawn rectangles that fits.
fn draw_rectangle(size: ChipSize, random: &mut ChaCha8Rng) -> Option<Rectangle> {
    let widest = (1.0 / ERASE_ASPECT_MIN).ln();
    for _ in 0..ERASE_ATTEMPTS {
        let area = random.random_range(ERASE_AREA.0..ERASE_AREA.1) * (size.height * size.width) as f64;
        let aspect = random.random_range(-widest..widest).exp();
        let height = (area * aspect).sqrt().round_ties_even() as usize;
        let width = (area / aspect).sqrt().round_ties_even() as usize;
        if height < size.height && width < size.width {
            let top = random.random_range(0..=size.height - height);
            let left = random.random_range(0..=size.width - width);
            return Some(Rectangle { top, left, height, width });
        }
    }
    None
}

/// Unit normal noise, independent for each channel of each pixel.
fn fill(input: &mut [f32], size: ChipSize, rectangle: Rectangle, random: &mut ChaCha8Rng) {
    let Rectangle { top, left, height, width } = rectangle;
    for plane in input.chunks_exact_mut(size.height * size.width) {
        for row in plane.chunks_exact_mut(size.width).skip(top).take(height) {
            row[left..left + width].iter_mut().for_each(|value| *value = normal(random));
        }
    }
}

/// Box and Muller, 1958.
fn normal(random: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * random.random::<f64>()).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::Modality;
    use crate::train::random::{Purpose, stream};

    const SIZE: ChipSize = ChipSize { height: 64, width: 32 };
    const REFERENCE: Preprocessing = Preprocessing::reference(SIZE);
    /// Size of a crop, in each direction.
    const OFFSETS: usize = 7;

    fn chip() -> Chip {
        let pixels = (0..SIZE.height * SIZE.width * 3).map(|byte| (byte % 251) as u8 + 1).collect();
        Chip::new(pixels, SIZE, Modality::Optical, [0.0; 3])
    }

    const AUTHORS: Augmentation = Augmentation { flip: 0.5, padding: 10, erase: 0.5, jitter: 0.0 };
    /// [`AUTHORS`]' padding at [`SIZE`].
    const PADDING: isize = 3;

    fn random(number: u64) -> ChaCha8Rng {
        stream(1, 1, number, Purpose::Augmentation)
    }

    #[test]
    fn a_plain_chip_is_normalised_plane_by_plane() {
        let chip = chip();
        let plain = plain(&chip, &REFERENCE);
        for (channel, y, x) in [(0, 0, 0), (1, 5, 31), (2, 63, 7)] {
            let byte = chip.pixels()[(y * SIZE.width + x) * 3 + channel];
            let expected = (f32::from(byte) / 255.0 - REFERENCE.mean[channel]) / REFERENCE.deviation[channel];
            assert!((plain[(channel * SIZE.height + y) * SIZE.width + x] - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn a_flip_mirrors_rows_and_a_crop_brings_black_in() {
        let (plain, flipped) = (plain(&chip(), &REFERENCE), normalise(&chip(), &REFERENCE, true, [0; 2]));
        let mirrored: Vec<f32> =
            plain.chunks(SIZE.width).flat_map(|row| row.iter().rev().copied().collect::<Vec<_>>()).collect();
        assert_eq!(flipped, mirrored);
        let moved = normalise(&chip(), &REFERENCE, false, [-PADDING, PADDING]);
        let black = -REFERENCE.mean[0] / REFERENCE.deviation[0];
        assert!((moved[0] - black).abs() < 1e-6 && (moved[SIZE.width - 1] - black).abs() < 1e-6);
        assert_eq!(moved[PADDING as usize * SIZE.width], plain[PADDING as usize]);
    }

    #[test]
    fn a_stream_decides_everything() {
        let by = |mut random: ChaCha8Rng| augment(&chip(), &REFERENCE, &AUTHORS, &mut random);
        assert_eq!(by(random(1)), by(random(1)));
        assert_ne!(by(random(1)), by(random(2)));
        assert_ne!(by(random(1)), by(stream(1, 2, 1, Purpose::Augmentation)));
    }

    #[test]
    fn nothing_happens_to_a_chip_without_augmentation() {
        let none = Augmentation { flip: 0.0, padding: 0, erase: 0.0, jitter: 0.0 };
        let augmented = |number| augment(&chip(), &REFERENCE, &none, &mut random(number));
        assert!((0..20).all(|number| augmented(number) == plain(&chip(), &REFERENCE)));
    }

    #[test]
    fn jitter_changes_pixels_before_black_comes_in() {
        let jittering = Augmentation { flip: 0.0, padding: 10, erase: 0.0, jitter: 0.2 };
        for number in 0..20 {
            let still = Augmentation { jitter: 0.0, ..jittering };
            let by = |settings: &Augmentation| augment(&chip(), &REFERENCE, settings, &mut random(number));
            assert_ne!(by(&jittering), by(&still));
            let black = -REFERENCE.mean[0] / REFERENCE.deviation[0];
            let darkest = by(&jittering)[..SIZE.height * SIZE.width].iter().copied().fold(9.0, f32::min);
            assert!(darkest >= black - 1e-6, "padding stays black");
        }
    }

    #[test]
    fn rectangles_have_the_areas_and_shapes_of_the_reference() {
        let mut areas = Vec::new();
        for number in 0..2000 {
            let rectangle = draw_rectangle(SIZE, &mut random(number)).expect("ten attempts are enough");
            let Rectangle { top, left, height, width } = rectangle;
            assert!(top + height <= SIZE.height && left + width <= SIZE.width);
            assert!(height < SIZE.height && width < SIZE.width);
            areas.push((height * width) as f64 / (SIZE.height * SIZE.width) as f64);
        }
        let mean = areas.iter().sum::<f64>() / areas.len() as f64;
        assert!(areas.iter().all(|area| (0.015..0.36).contains(area)), "rounded to whole pixels");
        // Large flat rectangles do not fit and are drawn again, so the mean is slightly below the middle.
        assert!((0.14..0.18).contains(&mean), "{mean}");
    }

    /// Whether the chip was flipped, and its offsets: every pixel encodes its own column and row.
    fn draws(number: u64) -> (bool, [usize; 2]) {
        let marked = |flat: usize| [flat % SIZE.width + 1, flat / SIZE.width + 1, 255].map(|mark| mark as u8);
        let pixels = (0..SIZE.height * SIZE.width).flat_map(marked).collect();
        let chip = Chip::new(pixels, SIZE, Modality::Optical, [0.0; 3]);
        let input = augment(&chip, &REFERENCE, &AUTHORS, &mut random(number));
        let level = |channel: usize, flat: usize| {
            let value = input[channel * SIZE.height * SIZE.width + flat];
            (value * REFERENCE.deviation[channel] + REFERENCE.mean[channel]) * 255.0
        };
        let near = |value: f32, expected: f32| (value - expected).abs() < 1e-3;
        // Padding and noise never have a full third channel next to a pixel from an adjacent column.
        let flat = (0..SIZE.height * SIZE.width - 1)
            .filter(|flat| flat % SIZE.width < SIZE.width - 1)
            .find(|flat| {
                let step = level(0, flat + 1) - level(0, *flat);
                near(level(2, *flat), 255.0) && near(level(2, flat + 1), 255.0) && near(step.abs(), 1.0)
            })
            .expect("a pixel that was neither erased nor moved out");
        let (x, y) = (flat % SIZE.width, flat / SIZE.width);
        let flipped = level(0, flat + 1) < level(0, flat);
        let [column, row] = [0, 1].map(|channel| level(channel, flat).round() as usize - 1);
        let column = if flipped { SIZE.width - 1 - column } else { column };
        let padding = padding(AUTHORS.padding, SIZE);
        (flipped, [row + padding - y, column + padding - x])
    }

    #[test]
    fn padding_is_the_authors_at_their_size_and_in_proportion_at_others() {
        assert_eq!(padding(10, ChipSize { height: 256, width: 128 }), 10);
        assert_eq!(padding(10, ChipSize { height: 128, width: 64 }), 5);
        assert_eq!(2 * padding(10, SIZE) + 1, OFFSETS);
    }

    #[test]
    fn half_of_the_chips_are_flipped_and_every_crop_is_as_likely() {
        let (mut flips, mut offsets) = (0, [[0; OFFSETS]; 2]);
        for number in 0..4200 {
            let (flipped, [down, right]) = draws(number);
            flips += usize::from(flipped);
            offsets[0][down] += 1;
            offsets[1][right] += 1;
        }
        assert!((1950..2250).contains(&flips), "{flips}");
        assert!(offsets.as_flattened().iter().all(|count| (500..700).contains(count)), "{offsets:?}");
    }

    #[test]
    fn half_of_the_chips_are_erased_with_unit_noise() {
        let (mut erased, mut noise) = (0, Vec::new());
        for number in 0..2000 {
            // Black like the padding, so that flip and crop leave no values of their own.
            let black_chip = Chip::new(vec![0; 64 * 32 * 3], SIZE, Modality::Sar, [0.0; 3]);
            let black = -REFERENCE.mean[0] / REFERENCE.deviation[0];
            let plane = &augment(&black_chip, &REFERENCE, &AUTHORS, &mut random(number))[..64 * 32];
            let changed: Vec<f32> =
                plane.iter().copied().filter(|value| (value - black).abs() > 1e-6).collect();
            erased += usize::from(!changed.is_empty());
            noise.extend(changed);
        }
        assert!((900..1100).contains(&erased), "{erased}");
        let mean = noise.iter().sum::<f32>() / noise.len() as f32;
        let variance = noise.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / noise.len() as f32;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
