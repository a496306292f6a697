//! Batches from image files.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::augment::augment;
use super::config::Augmentation;
use super::dataset::{Image, Pair, classes};
use super::learn::{Samples, Source};
use super::random::{Purpose, stream};
use super::sampler::{IdentitySampler, SamplerError, of_one_rank, pair_batches};
use super::shard::Shard;
use crate::chip::{Chip, ChipForm, ImageLimits, Preprocessing, Resampling, View, prepare_resampled};

/// Bounds on a training image.
const LIMITS: ImageLimits = ImageLimits { bytes_max: 64 << 20, pixels_max: 1 << 26 };
/// Bytes of decoded chips in memory: all of the demo's, 1,300 of those of ViT-B.
const KEPT_MAX: usize = 128 << 20;

/// Reads training chips and tolerates a number of unreadable files.
#[derive(Debug)]
pub struct ImageReader {
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    unreadable_max: usize,
    unreadable: Mutex<BTreeSet<PathBuf>>,
    kept: Mutex<Kept>,
}

/// Chips that have been read, so that later epochs need not decode them.
#[derive(Debug, Default)]
struct Kept {
    chips: HashMap<PathBuf, (View, Arc<Chip>)>,
    bytes: usize,
}

/// Images of identities for fine-tuning.
#[derive(Debug)]
pub struct IdentitySource {
    images: Vec<Image>,
    labels: Vec<i64>,
    sampler: IdentitySampler,
    reader: ImageReader,
}

/// Optical images and their SAR partners for pretraining.
#[derive(Debug)]
pub struct PairSource {
    pairs: Vec<Pair>,
    /// Pairs per batch of one rank.
    pairs_per_batch: usize,
    reader: ImageReader,
    shard: Shard,
}

impl ImageReader {
    /// Reads chips in the model's form, augmented at random; `unreadable_max` files may fail.
    pub fn new(preprocessing: Preprocessing, augmentation: Augmentation, unreadable_max: usize) -> Self {
        Self {
            preprocessing,
            augmentation,
            unreadable_max,
            unreadable: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// The chip, or `None` if the file cannot be read and that is tolerated.
    ///
    /// # Errors
    /// If more files than tolerated are unreadable; the error names the file.
    fn read(&self, image: &Image) -> Result<Option<Arc<Chip>>, String> {
        if let Some((view, chip)) = self.kept().chips.get(&image.path)
            && *view == image.view
        {
            return Ok(Some(Arc::clone(chip)));
        }
        let cause = match read_chip(image, self.preprocessing.form(), Resampling::Bicubic) {
            Ok(chip) => return Ok(Some(self.keep(image, chip))),
            Err(cause) => cause,
        };
        let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = unreadable.insert(image.path.clone());
        if unreadable.len() > self.unreadable_max {
            let (count, most) = (unreadable.len(), self.unreadable_max);
            return Err(format!("{cause}; unreadable files: {count}, data.unreadable_max: {most}"));
        }
        if is_new {
            tracing::warn!(%cause, "another image takes the place of one that cannot be read");
        }
        Ok(None)
    }

    /// Keeps a chip if there is room, and none of its file.
    fn keep(&self, image: &Image, chip: Chip) -> Arc<Chip> {
        let chip = Arc::new(chip);
        let (mut kept, bytes) = (self.kept(), chip.pixels().len());
        if kept.bytes + bytes <= KEPT_MAX && !kept.chips.contains_key(&image.path) {
            kept.bytes += bytes;
            kept.chips.insert(image.path.clone(), (image.view, Arc::clone(&chip)));
        }
        chip
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdentitySource {
    /// Batches of `images_per_batch` shared by all ranks, with `images_per_identity` of each identity.
    ///
    /// # Errors
    /// If the numbers cannot form a batch of these images.
    pub fn new(
        images: Vec<Image>,
        images_per_batch: usize,
        images_per_identity: usize,
        shard: Shard,
        reader: ImageReader,
    ) -> Result<Self, SamplerError> {
        let labels = classes(&images);
        let sampler = IdentitySampler::new(&labels, images_per_batch, images_per_identity, shard)?;
        Ok(Self { images, labels, sampler, reader })
    }

    /// The number of identities, which are the classes of the classifier.
    pub fn class_count(&self) -> usize {
        self.labels.iter().max().map_or(0, |last| *last as usize + 1)
    }

    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// The image with this number, or the next readable one of its identity.
    fn read(&self, wanted: usize) -> Result<(usize, Arc<Chip>), String> {
        let label = self.labels[wanted];
        let order = (wanted..self.images.len()).chain(0..wanted);
        for number in order.filter(|number| self.labels[*number] == label) {
            if let Some(chip) = self.reader.read(&self.images[number])? {
                return Ok((number, chip));
            }
        }
        Err(format!("{}: no image of its identity can be read", self.images[wanted].path.display()))
    }
}

impl PairSource {
    /// Batches of `pairs_per_batch` shared by all ranks.
    ///
    /// # Errors
    /// If the ranks cannot share them evenly.
    pub fn new(
        pairs: Vec<Pair>,
        pairs_per_batch: usize,
        shard: Shard,
        reader: ImageReader,
    ) -> Result<Self, SamplerError> {
        let pairs_per_batch = of_one_rank(pairs_per_batch, shard)?;
        Ok(Self { pairs, pairs_per_batch, reader, shard })
    }

    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// The pair with this number, or the next readable one.
    fn read(&self, wanted: usize) -> Result<(usize, [Arc<Chip>; 2]), String> {
        for number in (wanted..self.pairs.len()).chain(0..wanted) {
            let Pair { optical, sar } = &self.pairs[number];
            if let (Some(optical), Some(sar)) = (self.reader.read(optical)?, self.reader.read(sar)?) {
                return Ok((number, [optical, sar]));
            }
        }
        Err("no pair can be read".into())
    }
}

impl Source for IdentitySource {
    type Item = Vec<usize>;

    fn epoch(&self, seed: u64, epoch: u32) -> Vec<Vec<usize>> {
        self.sampler.epoch(seed, epoch)
    }

    fn batch(&self, item: &Vec<usize>, seed: u64, epoch: u32) -> Result<Samples, String> {
        let mut batch = Draft::new(&self.reader, seed, epoch);
        for wanted in item {
            let (number, chip) = self.read(*wanted)?;
            batch.add(&chip, number as u64, self.labels[number]);
        }
        Ok(batch.samples)
    }
}

impl Source for PairSource {
    type Item = Vec<usize>;

    fn epoch(&self, seed: u64, epoch: u32) -> Vec<Vec<usize>> {
        pair_batches(self.pairs.len(), self.pairs_per_batch, self.shard, seed, epoch)
    }

    /// Optical images first, then their partners; the two are augmented independently.
    fn batch(&self, item: &Vec<usize>, seed: u64, epoch: u32) -> Result<Samples, String> {
        let mut batch = Draft::new(&self.reader, seed, epoch);
        let read = item.iter().map(|wanted| self.read(*wanted)).collect::<Result<Vec<_>, _>>()?;
        for side in [0, 1] {
            for (number, chips) in &read {
                batch.add(&chips[side], 2 * *number as u64 + side as u64, 0);
            }
        }
        Ok(batch.samples)
    }
}

/// A batch under construction.
struct Draft {
    samples: Samples,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    seed: u64,
    epoch: u32,
}

impl Draft {
    fn new(&ImageReader { preprocessing, augmentation, .. }: &ImageReader, seed: u64, epoch: u32) -> Self {
        let size = preprocessing.size;
        let samples =
            Samples { size, pixels: vec![], modalities: vec![], size_tokens: vec![], labels: vec![] };
        Self { samples, preprocessing, augmentation, seed, epoch }
    }

    /// Adds an augmented chip; `number` is the index of its image in the data set.
    fn add(&mut self, chip: &Chip, number: u64, label: i64) {
        // An image that is repeated to complete an identity is augmented differently each time.
        let number = number << 16 | self.samples.len() as u64;
        let random = &mut stream(self.seed, self.epoch, number, Purpose::Augmentation);
        self.samples.pixels.extend(augment(chip, &self.preprocessing, &self.augmentation, random));
        self.samples.modalities.push(chip.modality());
        self.samples.size_tokens.push(chip.size_token());
        self.samples.labels.push(label);
    }
}

/// Reads a file of a data set.
///
/// # Errors
/// If it cannot be read: one line that names the file.
pub fn read_chip(image: &Image, form: ChipForm, resampling: Resampling) -> Result<Chip, String> {
    let named = |cause: &dyn std::fmt::Display| format!("{}: {cause}", image.path.display());
    let bytes = fs::read(&image.path).map_err(|cause| named(&cause))?;
    prepare_resampled(&bytes, &image.view, form, &LIMITS, resampling).map_err(|cause| named(&cause))
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use safetensors::SafeTensors;

    use super::*;
    use crate::chip::{ChipSize, Modality};
    use crate::train::augment::plain;
    use crate::train::loader::in_order;
    use crate::weights::golden;

    const SIZE: ChipSize = ChipSize { height: 64, width: 32 };
    const REFERENCE: Preprocessing = Preprocessing::reference(SIZE);

    fn image(name: &str, identity: i64) -> Image {
        let modality = if name.ends_with("SAR.tif") { Modality::Sar } else { Modality::Optical };
        Image::plain(golden::path("images").join(name), identity, modality)
    }

    #[test]
    fn files_become_the_recorded_training_pixels() {
        let bytes = golden::bytes("preprocess.safetensors");
        let recorded = SafeTensors::deserialize(&bytes).expect("recorded");
        for name in ["0001_a_33x97_RGB.tif", "0002_b_40x120_RGB.tif", "0003_c_25x110_SAR.tif"] {
            let chip = read_chip(&image(name, 1), REFERENCE.form(), Resampling::Bicubic).expect("a fixture");
            let view = recorded.tensor(&format!("{name}.train_64x32")).expect("recorded");
            let repeat = 3 / view.shape()[2];
            let expected: Vec<u8> = view.data().iter().flat_map(|byte| vec![*byte; repeat]).collect();
            assert_eq!(chip.pixels(), expected, "{name}");
        }
    }

    #[test]
    fn files_become_the_recorded_input_of_the_network() {
        let bytes = golden::bytes("preprocess.safetensors");
        let recorded = SafeTensors::deserialize(&bytes).expect("recorded");
        let name = recorded.names().into_iter().find_map(|name| name.strip_suffix(".val_tensor_64x32"));
        let name = name.expect("one file has its tensor");
        let chip = read_chip(&image(name, 1), REFERENCE.form(), Resampling::Bilinear).expect("a fixture");
        let view = recorded.tensor(&format!("{name}.val_tensor_64x32")).expect("recorded");
        let plane = SIZE.height * SIZE.width;
        let expected: Vec<f32> =
            view.data().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
        assert_eq!(expected.len() % plane, 0);
        for (place, value) in plain(&chip, &REFERENCE).iter().enumerate() {
            assert!((value - expected[place % expected.len()]).abs() <= 1e-6, "{name} {place}");
        }

        // In training without augmentation, the same image with the training filter.
        let none = Augmentation { flip: 0.0, padding: 0, erase: 0.0, jitter: 0.0 };
        let images = ["0001_a_33x97_RGB.tif", "0003_c_25x110_SAR.tif"].map(|name| image(name, 1));
        let source = IdentitySource::new(
            images.to_vec(),
            2,
            2,
            Shard::default(),
            ImageReader::new(REFERENCE, none, 0),
        )
        .expect("batches");
        let batch = source.batch(&vec![0, 1], 1, 1).expect("fixtures");
        let views = images.map(|image| {
            let name = image.path.file_name().expect("a name").to_string_lossy().into_owned();
            recorded.tensor(&format!("{name}.train_64x32")).expect("recorded")
        });
        let deviation = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)];
        for (input, view) in batch.pixels.chunks(3 * plane).zip(views) {
            let channels = view.shape()[2];
            for (place, value) in input.iter().enumerate() {
                let (channel, pixel) = (place / plane, place % plane);
                let byte = view.data()[pixel * channels + channel % channels];
                let (mean, deviation) = deviation[channel];
                let expected = (f32::from(byte) / 255.0 - mean) / deviation;
                assert!((value - expected).abs() <= 1e-6, "{place}: {value} {expected}");
            }
        }
    }

    #[test]
    fn the_number_of_loader_threads_changes_no_pixel() {
        let names = ["0001_a_33x97_RGB.tif", "0002_b_40x120_RGB.tif", "0003_c_25x110_SAR.tif"];
        let images = (0..12).map(|number| image(names[number % 3], number as i64 / 3)).collect();
        let source = IdentitySource::new(
            images,
            4,
            2,
            Shard::default(),
            ImageReader::new(REFERENCE, Augmentation::default(), 0),
        );
        let source = source.expect("batches");
        let items = source.epoch(5, 2);
        let batches = |threads| {
            let mut batches = Vec::new();
            let make = |item: &Vec<usize>| source.batch(item, 5, 2).expect("fixtures");
            let _ = in_order(&items, threads, make, |batch| {
                batches.push(batch);
                ControlFlow::<()>::Continue(())
            });
            batches
        };
        let alone = batches(1);
        assert!(alone.len() > 1 && alone == batches(2) && alone == batches(7));
    }

    #[test]
    fn a_chip_is_decoded_once_and_augmented_each_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = ["0001_a_33x97_RGB.tif", "0003_c_25x110_SAR.tif"];
        let images = names.map(|name| {
            let of_fixture = image(name, 1);
            let path = folder.path().join(name);
            fs::copy(&of_fixture.path, &path).expect("a copy");
            Image { path, ..of_fixture }
        });
        let source = |images: &[Image]| {
            let reader = ImageReader::new(REFERENCE, Augmentation::default(), 0);
            IdentitySource::new(images.to_vec(), 2, 2, Shard::default(), reader).expect("batches")
        };
        let (kept, fresh) = (source(&images), source(&names.map(|name| image(name, 1))));
        let read = |source: &IdentitySource, epoch| source.batch(&vec![0, 1], 1, epoch).expect("readable");
        assert_eq!(read(&kept, 1), read(&fresh, 1));
        drop(folder);
        let later = read(&kept, 2);
        assert!(later == read(&fresh, 2) && later != read(&kept, 1));
    }

    #[test]
    fn a_pair_batch_is_optical_first_and_each_image_is_changed_for_itself() {
        let optical = image("0001_a_33x97_RGB.tif", 1);
        let sar = image("0003_c_25x110_SAR.tif", 1);
        // Using the same picture on both sides shows that they are augmented independently.
        let twin = Image::plain(golden::path("images/0005_e_64x20_RGB.png"), 2, Modality::Sar);
        let pairs = vec![
            Pair { optical, sar },
            Pair { optical: Image::plain(twin.path.clone(), 2, Modality::Optical), sar: twin },
        ];
        let reader = ImageReader::new(REFERENCE, Augmentation::default(), 0);
        let source = PairSource::new(pairs, 2, Shard::default(), reader).expect("batches");
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
        let source = IdentitySource::new(
            images,
            4,
            2,
            Shard::default(),
            ImageReader::new(REFERENCE, Augmentation::default(), 0),
        )
        .expect("batches");
        let epoch = source.epoch(1, 1);
        let batch = source.batch(&epoch[0], 1, 1).expect("fixtures");
        assert_eq!((source.class_count(), batch.labels.len()), (2, 4));
        let images: Vec<_> = batch.pixels.chunks(batch.pixels.len() / 4).collect();
        assert_eq!(batch.labels[0], batch.labels[1]);
        assert_ne!(images[0], images[1]);
    }

    #[test]
    fn a_file_that_is_no_image_is_named() {
        let error = read_chip(
            &Image::plain(golden::path("README.md"), 1, Modality::Sar),
            REFERENCE.form(),
            Resampling::Bicubic,
        );
        assert!(error.expect_err("no image").contains("README.md: "));
    }

    #[test]
    fn unreadable_files_are_replaced_up_to_the_bound_and_then_named() {
        let broken = |identity| Image::plain(golden::path("README.md"), identity, Modality::Sar);
        let images = vec![image("0001_a_33x97_RGB.tif", 1), broken(1), image("0002_b_40x120_RGB.tif", 2)];
        let source = |unreadable_max| {
            let reader = ImageReader::new(REFERENCE, Augmentation::default(), unreadable_max);
            IdentitySource::new(images.clone(), 4, 2, Shard::default(), reader).expect("batches")
        };
        let batch = source(1).batch(&vec![1, 0, 2, 2], 1, 1).expect("replaced");
        assert_eq!(batch.labels, [0, 0, 1, 1]);
        assert_eq!(batch.modalities[0], Modality::Optical);
        let error = source(0).batch(&vec![1, 0, 2, 2], 1, 1).expect_err("one too many");
        assert!(error.contains("README.md") && error.contains("unreadable_max: 0"), "{error}");
        let sar = image("0003_c_25x110_SAR.tif", 1);
        let pair = |optical| Pair { optical, sar: sar.clone() };
        let pairs = vec![pair(broken(1)), pair(image("0001_a_33x97_RGB.tif", 1))];
        let reader = ImageReader::new(REFERENCE, Augmentation::default(), 1);
        let source = PairSource::new(pairs, 2, Shard::default(), reader).expect("batches");
        let batch = source.batch(&vec![0, 1], 1, 1);
        assert_eq!(batch.expect("replaced").len(), 4);
    }
}
