//! Batches from image files.

use std::fs;
use std::path::Path;

use super::augment::augment;
use super::dataset::{Image, Pair, classes};
use super::fit::Source;
use super::learn::Samples;
use super::random::{Purpose, stream};
use super::sampler::{IdentitySampler, SamplerError, pair_batches};
use crate::chip::{Chip, ChipSize, ImageLimits, Modality, PixelSize, Resampling, View, prepare_resampled};

/// Bounds on a training image.
const LIMITS: ImageLimits = ImageLimits { bytes_max: 64 << 20, pixels_max: 1 << 26 };

/// Images of identities for fine-tuning.
#[derive(Clone, Debug)]
pub struct IdentitySource {
    images: Vec<Image>,
    labels: Vec<i64>,
    sampler: IdentitySampler,
    size: ChipSize,
}

/// Optical images and their SAR partners for pretraining.
#[derive(Clone, Debug)]
pub struct PairSource {
    pairs: Vec<Pair>,
    pairs_per_batch: usize,
    size: ChipSize,
}

impl IdentitySource {
    /// Batches of `images_per_batch`, `images_per_identity` of each identity in it.
    ///
    /// # Errors
    /// Numbers that give no batch of these images.
    pub fn new(
        images: Vec<Image>,
        images_per_batch: usize,
        images_per_identity: usize,
        size: ChipSize,
    ) -> Result<Self, SamplerError> {
        let labels = classes(&images);
        let sampler = IdentitySampler::new(&labels, images_per_batch, images_per_identity)?;
        Ok(Self { images, labels, sampler, size })
    }

    /// Identities, which are the classes of the classifier.
    pub fn class_count(&self) -> usize {
        self.labels.iter().max().map_or(0, |last| *last as usize + 1)
    }
}

impl PairSource {
    pub fn new(pairs: Vec<Pair>, pairs_per_batch: usize, size: ChipSize) -> Self {
        Self { pairs, pairs_per_batch, size }
    }
}

impl Source for IdentitySource {
    type Item = Vec<usize>;

    fn epoch(&self, seed: u64, epoch: u32) -> Vec<Vec<usize>> {
        self.sampler.epoch(seed, epoch)
    }

    fn batch(&self, item: &Vec<usize>, seed: u64, epoch: u32) -> Result<Samples, String> {
        let samples = item.iter().map(|image| (&self.images[*image], *image as u64, self.labels[*image]));
        collect(samples, self.size, seed, epoch)
    }
}

impl Source for PairSource {
    type Item = Vec<usize>;

    fn epoch(&self, seed: u64, epoch: u32) -> Vec<Vec<usize>> {
        pair_batches(self.pairs.len(), self.pairs_per_batch, seed, epoch)
    }

    /// Optical images first, then their partners; the two are augmented independently.
    fn batch(&self, item: &Vec<usize>, seed: u64, epoch: u32) -> Result<Samples, String> {
        let number = |pair: &usize| 2 * *pair as u64;
        let optical = item.iter().map(|pair| (&self.pairs[*pair].optical, number(pair), 0));
        let sar = item.iter().map(|pair| (&self.pairs[*pair].sar, number(pair) + 1, 0));
        collect(optical.chain(sar), self.size, seed, epoch)
    }
}

/// Images, the numbers that their random streams have, and their classes.
fn collect<'a>(
    images: impl Iterator<Item = (&'a Image, u64, i64)>,
    size: ChipSize,
    seed: u64,
    epoch: u32,
) -> Result<Samples, String> {
    let mut samples =
        Samples { size, pixels: vec![], modalities: vec![], size_tokens: vec![], labels: vec![] };
    for (place, (image, number, label)) in images.enumerate() {
        let chip = read_chip(&image.path, image.modality, size, Resampling::Bicubic)?;
        // An image that fills up its identity is in a batch more than once and looks different each time.
        let stream_number = number << 16 | place as u64;
        samples.pixels.extend(augment(&chip, &mut stream(seed, epoch, stream_number, Purpose::Augmentation)));
        samples.modalities.push(chip.modality());
        samples.size_tokens.push(chip.size_token());
        samples.labels.push(label);
    }
    Ok(samples)
}

/// Reads a file of a data set, whose pixels have the default size of their modality.
///
/// # Errors
/// One line that names the file.
pub fn read_chip(
    path: &Path,
    modality: Modality,
    size: ChipSize,
    resampling: Resampling,
) -> Result<Chip, String> {
    let named = |cause: &dyn std::fmt::Display| format!("{}: {cause}", path.display());
    let bytes = fs::read(path).map_err(|cause| named(&cause))?;
    let view = View { modality, pixel_size: PixelSize::default_for(modality), oriented_box: None };
    let prepared = prepare_resampled(&bytes, &view, size, &LIMITS, resampling);
    Ok(prepared.map_err(|cause| named(&cause))?.chip)
}
