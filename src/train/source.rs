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

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::weights::golden;

    const SIZE: ChipSize = ChipSize { height: 64, width: 32 };

    fn image(name: &str, identity: i64) -> Image {
        let modality = if name.ends_with("SAR.tif") { Modality::Sar } else { Modality::Optical };
        Image { path: golden::path("images").join(name), identity, modality }
    }

    #[test]
    fn files_become_the_recorded_training_pixels() {
        let bytes = golden::bytes("preprocess.safetensors");
        let recorded = SafeTensors::deserialize(&bytes).expect("recorded");
        for name in ["0001_a_33x97_RGB.tif", "0002_b_40x120_RGB.tif", "0003_c_25x110_SAR.tif"] {
            let Image { path, modality, .. } = image(name, 1);
            let chip = read_chip(&path, modality, SIZE, Resampling::Bicubic).expect("a fixture");
            let view = recorded.tensor(&format!("{name}.train_64x32")).expect("recorded");
            let repeat = 3 / view.shape()[2];
            let expected: Vec<u8> = view.data().iter().flat_map(|byte| vec![*byte; repeat]).collect();
            assert_eq!(chip.pixels(), expected, "{name}");
        }
    }

    #[test]
    fn a_pair_batch_is_optical_first_and_each_image_is_changed_for_itself() {
        let optical = image("0001_a_33x97_RGB.tif", 1);
        let sar = image("0003_c_25x110_SAR.tif", 1);
        // The same picture on both sides shows that they are not changed alike.
        let twin =
            Image { modality: Modality::Sar, path: golden::path("images/0005_e_64x20_RGB.png"), identity: 2 };
        let pairs = vec![
            Pair { optical, sar },
            Pair { optical: Image { modality: Modality::Optical, ..twin.clone() }, sar: twin },
        ];
        let source = PairSource::new(pairs, 2, SIZE);
        let batch = source.batch(&vec![0, 1], 3, 1).expect("fixtures");
        use Modality::{Optical, Sar};
        assert_eq!(batch.modalities, [Optical, Optical, Sar, Sar]);
        let images: Vec<_> = batch.pixels.chunks(batch.pixels.len() / 4).collect();
        assert_ne!(images[1], images[3]);
        assert_eq!(batch, source.batch(&vec![0, 1], 3, 1).expect("fixtures"));
        assert_ne!(batch, source.batch(&vec![0, 1], 3, 2).expect("fixtures"), "another epoch");
    }

    #[test]
    fn an_image_that_fills_up_its_identity_looks_different_each_time() {
        let images = vec![image("0001_a_33x97_RGB.tif", 7), image("0002_b_40x120_RGB.tif", 9)];
        let source = IdentitySource::new(images, 4, 2, SIZE).expect("batches");
        let epoch = source.epoch(1, 1);
        let batch = source.batch(&epoch[0], 1, 1).expect("fixtures");
        assert_eq!((source.class_count(), batch.labels.len()), (2, 4));
        let images: Vec<_> = batch.pixels.chunks(batch.pixels.len() / 4).collect();
        assert_eq!(batch.labels[0], batch.labels[1]);
        assert_ne!(images[0], images[1]);
    }

    #[test]
    fn a_file_that_is_no_image_is_named() {
        let error = read_chip(&golden::path("README.md"), Modality::Sar, SIZE, Resampling::Bicubic);
        assert!(error.expect_err("no image").contains("README.md: "));
    }
}
