//! Data and starting point of a run: found, read and checked before its first step.

use std::path::Path;

use super::config::{BatchShape, ObjectiveName, StartKind, TrainConfig, Violation};
use super::dataset::{
    self, DatasetError, HossPart, Image, Pair, hold_out, hoss, hoss_pairs, is_hoss, optisar_pairs,
};
use super::gallery_dataset::{Census, Count, Division, GalleryDataset};
use super::roots::DataRoots;
use super::sampler::{SamplerError, of_one_rank};
use super::shard::Shard;
use super::source::{IdentitySource, ImageReader, PairSource};
use super::validation::Validation;
use crate::cancellation::Cancellation;
use crate::chip::ChipForm;
use crate::weights::family::Architecture;
use crate::weights::seed::seeded;
use crate::weights::start::{Kind, StartingPoint};
use crate::weights::tensors::NamedTensors;
use crate::weights::wrapper::WeightsChoice;

/// Fraction of a gallery's vessels that are held out for evaluation.
const KEPT_HELD_OUT: f64 = 0.2;

/// The inputs of a learner and of [`super::fit()`], read from the locations in a configuration.
#[derive(Debug)]
pub struct TrainingInputs {
    /// With a class for each identity.
    pub architecture: Architecture,
    /// Every tensor of the architecture.
    pub tensors: NamedTensors,
    /// The source of some of them; `None` when starting from scratch.
    pub start: Option<StartingPoint>,
    pub data: DataSet,
    /// Images from which the run does not learn. They need not be evaluated.
    pub validation: Option<Validation>,
}

/// The training data.
#[derive(Debug)]
pub enum DataSet {
    Identities(IdentitySource),
    Pairs(PairSource),
}

impl TrainingInputs {
    /// The starting point, as lines for display; empty when starting from scratch.
    pub fn start_report(&self, config: &TrainConfig) -> impl Iterator<Item = String> {
        start_report(config, self.start.as_ref())
    }

    /// Reads the inputs that `config` names, where `roots` allows it, for the training process of `shard`.
    ///
    /// # Errors
    /// Every problem with values, data set and starting point at once.
    pub fn gather(config: &TrainConfig, roots: &DataRoots, shard: Shard) -> Result<Self, Vec<Violation>> {
        let reach = Reach { roots, cancellation: &Cancellation::default(), shard };
        let data = |architecture: &Architecture| open_data(config, architecture, reach);
        let start = |architecture: &Architecture| starting_tensors(config, architecture, reach);
        let (architecture, Opened { data, validation }, (tensors, start)) = examine(config, data, start)?;
        Ok(Self { architecture, tensors, start, data, validation })
    }

    /// Reports whether [`gather`](Self::gather) would succeed and what a run would start from, without
    /// drawing initial weights.
    ///
    /// # Errors
    /// Those of `gather`, or that it was cancelled.
    pub fn check(
        config: &TrainConfig,
        roots: &DataRoots,
        cancellation: &Cancellation,
    ) -> Result<Option<StartingPoint>, Vec<Violation>> {
        let reach = Reach { roots, cancellation, shard: Shard::default() };
        let data = |architecture: &Architecture| open_data(config, architecture, reach);
        let checked = examine(config, data, |architecture| check_start(config, architecture, reach));
        checked.map(|(_, _, start)| start)
    }

    /// The same for a run that learns from a gallery's kept chips, whatever `data.root` is.
    ///
    /// # Errors
    /// Those of `gather` once these chips are in a folder, or that it was cancelled.
    pub fn check_kept(
        config: &TrainConfig,
        census: &Census,
        roots: &DataRoots,
        cancellation: &Cancellation,
    ) -> Result<Option<StartingPoint>, Vec<Violation>> {
        let reach = Reach { roots, cancellation, shard: Shard::default() };
        let data = |_: &Architecture| Ok(((), enough(config, census)?));
        let checked = examine(config, data, |architecture| check_start(config, architecture, reach));
        checked.map(|(_, (), start)| start)
    }
}

/// Whether several processes can share the batches of a run.
///
/// # Errors
/// Some would have more of a batch than others.
pub fn check_shared(config: &TrainConfig, processes: usize) -> Result<(), Violation> {
    let BatchShape { images, images_per_identity } = config.batch;
    let units = match config.objective {
        ObjectiveName::FineTune => images / images_per_identity.max(1),
        ObjectiveName::Contrastive => images / 2,
    };
    let shard = Shard::new(0, processes.max(1)).unwrap_or_default();
    of_one_rank(units, shard).map(drop).map_err(no_batch)
}

/// The starting point of a run, in lines of bounded length: tensors that are taken, ignored, and
/// left at their initial values.
pub fn start_report(config: &TrainConfig, start: Option<&StartingPoint>) -> impl Iterator<Item = String> {
    let lines = start.map(StartingPoint::report).unwrap_or_default();
    let path = config.start.path.display().to_string();
    lines.into_iter().map(move |line| format!("starting point {path}: {line}"))
}

/// From where to read, how long to continue, and for which process.
#[derive(Clone, Copy)]
struct Reach<'r> {
    roots: &'r DataRoots,
    cancellation: &'r Cancellation,
    /// The part of the data for this process.
    shard: Shard,
}

struct Opened {
    data: DataSet,
    validation: Option<Validation>,
}

/// Checks values, data set and starting point together. `data` also returns the number of classes,
/// 0 without a classifier.
fn examine<D, S>(
    config: &TrainConfig,
    data: impl FnOnce(&Architecture) -> Result<(D, usize), Violation>,
    start: impl FnOnce(&Architecture) -> Result<S, Violation>,
) -> Result<(Architecture, D, S), Vec<Violation>> {
    let mut violations = config.violations();
    let mut keep = |violation: Violation| {
        // A value out of bounds may cause a second complaint about its field.
        if !violations.iter().any(|known| known.field == violation.field) {
            violations.push(violation);
        }
    };
    let mut architecture = config.model.architecture();
    let valid =
        architecture.validate().map_err(|cause| Violation::new("model", format!("fits no network: {cause}")));
    let valid = valid.map_err(&mut keep).is_ok();
    let data = data(&architecture).map_err(&mut keep).ok();
    architecture = architecture.with_classes(data.as_ref().map_or(0, |(_, classes)| *classes));
    let start = valid.then(|| start(&architecture).map_err(&mut keep).ok()).flatten();
    match (data, start) {
        (Some((data, _)), Some(start)) if violations.is_empty() => Ok((architecture, data, start)),
        _ => Err(violations),
    }
}

fn open_data(
    config: &TrainConfig,
    architecture: &Architecture,
    reach: Reach<'_>,
) -> Result<(Opened, usize), Violation> {
    let root = &config.data.root;
    if root.as_os_str().is_empty() {
        return Err(Violation::new("data.root", "must be set where no gallery is learned from"));
    }
    let root = reach.roots.admit(root);
    let root = &root.map_err(|cause| Violation::new("data.root", format!("cannot be used: {cause}")))?;
    let reader =
        ImageReader::new(architecture.preprocessing(), config.augmentation, config.data.unreadable_max);
    let folder = DataFolder { config, root, reach, form: architecture.preprocessing().form(), reader };
    let opened =
        if GalleryDataset::are_in(root) { folder.open_kept_chips()? } else { folder.open_data_set()? };
    let classes = match &opened.data {
        DataSet::Identities(source) => source.class_count(),
        DataSet::Pairs(_) => 0,
    };
    Ok((opened, classes))
}

/// A training folder.
struct DataFolder<'a> {
    config: &'a TrainConfig,
    root: &'a Path,
    reach: Reach<'a>,
    /// Of the model's chips.
    form: ChipForm,
    reader: ImageReader,
}

impl DataFolder<'_> {
    /// A data set in one of the known layouts.
    fn open_data_set(self) -> Result<Opened, Violation> {
        let Self { config, root, reach, form, .. } = self;
        match config.objective {
            ObjectiveName::FineTune => {
                let images = hoss(root, HossPart::Train).map_err(no_data_set)?;
                admit_images(&images, reach)?;
                // Without an evaluation, the ships of a test set still serve to calibrate the model.
                let validation = match test_set(root, form, reach) {
                    Err(cause) if self.evaluates() => return Err(cause),
                    test_set => test_set.ok(),
                };
                Ok(Opened { data: self.identities(images)?, validation })
            }
            ObjectiveName::Contrastive => {
                let pairs = pairs(root).map_err(no_data_set)?;
                pairs.iter().try_for_each(|Pair { optical, sar }| {
                    admit_images(&[optical.clone(), sar.clone()], reach)
                })?;
                let (pairs, held_out) = hold_out(pairs, config.validation.held_out);
                if pairs.is_empty() {
                    return Err(Violation::new("validation.held_out", "leaves no folder to learn from"));
                }
                let validation = self.evaluates().then(|| Validation::of_pairs(&held_out, form));
                Ok(Opened { data: self.pairs(pairs)?, validation })
            }
        }
    }

    /// Chips of a gallery.
    fn open_kept_chips(self) -> Result<Opened, Violation> {
        let Self { config, root, reach, form, .. } = self;
        let kept = GalleryDataset::read(root).map_err(no_data_set)?;
        admit_images(kept.images(), reach)?;
        enough(config, &kept.census())?;
        let Division { train, queries, gallery } = kept.divide(kept_held_out(config));
        match config.objective {
            ObjectiveName::FineTune => {
                let validation = self.evaluates().then(|| Validation::new(queries, gallery, form));
                Ok(Opened { data: self.identities(train)?, validation })
            }
            ObjectiveName::Contrastive => {
                let held_out = dataset::pairs([queries, gallery].concat());
                let validation = self.evaluates().then(|| Validation::of_pairs(&held_out, form));
                Ok(Opened { data: self.pairs(dataset::pairs(train))?, validation })
            }
        }
    }

    fn evaluates(&self) -> bool {
        self.config.validation.epochs > 0
    }

    fn identities(self, images: Vec<Image>) -> Result<DataSet, Violation> {
        let BatchShape { images: images_per_batch, images_per_identity } = self.config.batch;
        let source =
            IdentitySource::new(images, images_per_batch, images_per_identity, self.reach.shard, self.reader);
        Ok(DataSet::Identities(source.map_err(no_batch)?))
    }

    fn pairs(self, pairs: Vec<Pair>) -> Result<DataSet, Violation> {
        let source = PairSource::new(pairs, self.config.batch.images / 2, self.reach.shard, self.reader);
        Ok(DataSet::Pairs(source.map_err(no_batch)?))
    }
}

/// Fraction of a gallery's vessels that a run does not learn from; 0 without an evaluation.
fn kept_held_out(config: &TrainConfig) -> f64 {
    match config.objective {
        ObjectiveName::FineTune if config.validation.epochs > 0 => KEPT_HELD_OUT,
        ObjectiveName::FineTune => 0.0,
        ObjectiveName::Contrastive => config.validation.held_out,
    }
}

/// Whether a run can learn from the chips of a gallery, and the number of classes.
fn enough(config: &TrainConfig, census: &Census) -> Result<usize, Violation> {
    let learned = census.learned(kept_held_out(config));
    let beside = if kept_held_out(config) > 0.0 { ", beside those that are held out" } else { "" };
    match config.objective {
        ObjectiveName::FineTune => {
            // A vessel with one chip is learned as a class, but a batch of such vessels teaches
            // nothing about what is invariant.
            let found = learned.iter().filter(|count| count.chips() > 1).count();
            let wanted = config.batch.images / config.batch.images_per_identity.max(1);
            if found < wanted {
                let problem = format!(
                    "wants {wanted} vessels with 2 chips or more in a batch, the gallery has {found}{beside}"
                );
                return Err(Violation::new("batch.images", problem));
            }
            Ok(learned.len())
        }
        ObjectiveName::Contrastive if learned.iter().copied().any(Count::is_of_both_modalities) => Ok(0),
        ObjectiveName::Contrastive => {
            let problem = format!("finds no vessel with chips of both modalities in the gallery{beside}");
            Err(Violation::new("objective", problem))
        }
    }
}

fn no_batch(cause: SamplerError) -> Violation {
    Violation::new("batch.images", format!("gives no batch: {cause}"))
}

fn no_data_set(cause: DatasetError) -> Violation {
    Violation::new("data.root", format!("is no data set: {cause}"))
}

fn pairs(root: &Path) -> Result<Vec<Pair>, DatasetError> {
    if !is_hoss(root) {
        return optisar_pairs(root);
    }
    let pairs = hoss_pairs(&hoss(root, HossPart::Train)?);
    if pairs.is_empty() { Err(DatasetError::Empty(root.to_owned())) } else { Ok(pairs) }
}

fn test_set(root: &Path, form: ChipForm, reach: Reach<'_>) -> Result<Validation, Violation> {
    let part = |part| {
        let images = hoss(root, part);
        images.map_err(|cause| Violation::new("validation.epochs", format!("finds no test set: {cause}")))
    };
    let (queries, gallery) = (part(HossPart::Query)?, part(HossPart::Gallery)?);
    admit_images(&queries, reach)?;
    admit_images(&gallery, reach)?;
    Ok(Validation::new(queries, gallery, form))
}

/// Each file may be a symbolic link.
fn admit_images(images: &[Image], reach: Reach<'_>) -> Result<(), Violation> {
    if *reach.roots == DataRoots::Anywhere {
        return Ok(());
    }
    images.iter().try_for_each(|image| {
        go_on(reach, "data.root")?;
        let admitted = reach.roots.admit(&image.path).map(drop);
        admitted.map_err(|cause| Violation::new("data.root", format!("cannot be used: {cause}")))
    })
}

/// Whether the caller still waits for the check of a field.
fn go_on(reach: Reach<'_>, field: &str) -> Result<(), Violation> {
    reach
        .cancellation
        .check()
        .map_err(|stopped| Violation::new(field, format!("is read no further: {stopped}")))
}

/// Whether the starting point is usable; initial weights are not drawn for this check.
fn check_start(
    config: &TrainConfig,
    architecture: &Architecture,
    reach: Reach<'_>,
) -> Result<Option<StartingPoint>, Violation> {
    match config.start.from {
        StartKind::Scratch => Ok(None),
        StartKind::Imagenet | StartKind::Model => {
            starting_tensors(config, architecture, reach).map(|(_, start)| start)
        }
    }
}

/// Seeded weights, replaced by those of the starting point where it has them.
fn starting_tensors(
    config: &TrainConfig,
    architecture: &Architecture,
    reach: Reach<'_>,
) -> Result<(NamedTensors, Option<StartingPoint>), Violation> {
    go_on(reach, "start.from")?;
    let mut tensors = seeded(architecture, config.seed);
    let scale = tensors.entry(architecture.logit_scale().into());
    scale.and_modify(|scale| scale.values = vec![config.loss.logit_scale]);
    let start = &config.start;
    let kind = match start.from {
        StartKind::Scratch => return Ok((tensors, None)),
        StartKind::Imagenet => Kind::Imagenet,
        StartKind::Model => Kind::Model,
    };
    go_on(reach, "start.path")?;
    let path = reach
        .roots
        .admit(&start.path)
        .map_err(|cause| Violation::new("start.path", format!("cannot be used: {cause}")))?;
    let choice = WeightsChoice::new(&start.weights);
    let taken = StartingPoint::take(&mut tensors, architecture, &path, (kind, &choice)).map_err(|cause| {
        Violation::new("start.path", format!("cannot be used: {}: {cause}", start.path.display()))
    })?;
    Ok((tensors, Some(taken)))
}

#[cfg(test)]
mod tests;
