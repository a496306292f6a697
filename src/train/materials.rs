//! What a run learns from and starts with: found, read and checked before its first step.

use std::path::Path;

use super::config::{ObjectiveName, StartKind, TrainConfig, Violation};
use super::dataset::{
    self, DatasetError, HossPart, Image, Pair, hold_out, hoss, hoss_pairs, is_hoss, optisar_pairs,
};
use super::kept::{Census, Count, Division, KeptChips};
use super::roots::DataRoots;
use super::source::{IdentitySource, PairSource, Reader};
use super::validation::Validation;
use crate::chip::ChipSize;
use crate::weights::family::Architecture;
use crate::weights::seed::seeded;
use crate::weights::start::{Kind, StartingPoint};
use crate::weights::tensors::NamedTensors;
use crate::weights::wrapper::WeightsChoice;

/// Share of a gallery's vessels that are held out for evaluation.
const KEPT_HELD_OUT: f64 = 0.2;

/// Everything that a learner and [`super::fit`] are made of, read from what a configuration names.
#[derive(Debug)]
pub struct Materials {
    /// With a class for each identity.
    pub architecture: Architecture,
    /// Of every tensor of the architecture.
    pub tensors: NamedTensors,
    /// What gave some of them; nothing from scratch.
    pub start: Option<StartingPoint>,
    pub data: DataSet,
    pub validation: Option<Validation>,
}

/// What is learned from.
#[derive(Debug)]
pub enum DataSet {
    Identities(IdentitySource),
    Pairs(PairSource),
}

impl Materials {
    /// What the run starts from, in lines for people; none where that is from scratch.
    pub fn start_report(&self, config: &TrainConfig) -> impl Iterator<Item = String> {
        let lines = self.start.iter().flat_map(StartingPoint::report);
        let path = config.start.path.display().to_string();
        lines.map(move |line| format!("starting point {path}: {line}"))
    }

    /// Reads what `config` names, where `roots` allows it.
    ///
    /// # Errors
    /// Everything that is wrong with values, data set and starting point, at once.
    pub fn gather(config: &TrainConfig, roots: &DataRoots) -> Result<Self, Vec<Violation>> {
        let data = |architecture: &Architecture| open_data(config, architecture, roots);
        let start = |architecture: &Architecture| starting_tensors(config, architecture, roots);
        let (architecture, Opened { data, validation }, (tensors, start)) = examine(config, data, start)?;
        Ok(Self { architecture, tensors, start, data, validation })
    }

    /// Says whether [`gather`](Self::gather) would succeed, and what a run would start from; weights from scratch are
    /// not drawn for that.
    ///
    /// # Errors
    /// As those of `gather`.
    pub fn check(config: &TrainConfig, roots: &DataRoots) -> Result<Option<StartingPoint>, Vec<Violation>> {
        let data = |architecture: &Architecture| open_data(config, architecture, roots);
        let checked = examine(config, data, |architecture| check_start(config, architecture, roots));
        checked.map(|(_, _, start)| start)
    }

    /// The same for a run that learns from the kept chips of a gallery, whatever `data.root` is.
    ///
    /// # Errors
    /// As those of `gather` once these chips are in a folder.
    pub fn check_kept(
        config: &TrainConfig,
        census: &Census,
        roots: &DataRoots,
    ) -> Result<Option<StartingPoint>, Vec<Violation>> {
        let data = |_: &Architecture| Ok(((), enough(config, census)?));
        let checked = examine(config, data, |architecture| check_start(config, architecture, roots));
        checked.map(|(_, (), start)| start)
    }
}

struct Opened {
    data: DataSet,
    validation: Option<Validation>,
}

/// Values, data set and starting point together. `data` gives the classes of the classifier as well, 0 without one.
fn examine<D, S>(
    config: &TrainConfig,
    data: impl FnOnce(&Architecture) -> Result<(D, usize), Violation>,
    start: impl FnOnce(&Architecture) -> Result<S, Violation>,
) -> Result<(Architecture, D, S), Vec<Violation>> {
    let mut violations = config.violations();
    let mut keep = |violation: Violation| {
        // A value out of bounds may lead to a second complaint about its field.
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
    roots: &DataRoots,
) -> Result<(Opened, usize), Violation> {
    let root = &config.data.root;
    if root.as_os_str().is_empty() {
        return Err(Violation::new("data.root", "must be set where no gallery is learned from"));
    }
    let root = roots.admit(root);
    let root = &root.map_err(|cause| Violation::new("data.root", format!("cannot be used: {cause}")))?;
    let reader = Reader::new(architecture.preprocessing(), config.augmentation, config.data.unreadable_max);
    let opened = if KeptChips::are_in(root) {
        open_kept(config, root, roots, reader)?
    } else {
        open_folder(config, root, roots, reader)?
    };
    let classes = match &opened.data {
        DataSet::Identities(source) => source.class_count(),
        DataSet::Pairs(_) => 0,
    };
    Ok((opened, classes))
}

fn open_folder(
    config: &TrainConfig,
    root: &Path,
    roots: &DataRoots,
    reader: Reader,
) -> Result<Opened, Violation> {
    let (size, evaluates) = (config.model.architecture().preprocessing().size, config.validation.epochs > 0);
    match config.objective {
        ObjectiveName::FineTune => {
            let images = hoss(root, HossPart::Train).map_err(no_data_set)?;
            admit_images(&images, roots)?;
            let validation = if evaluates { Some(test_set(root, size, roots)?) } else { None };
            Ok(Opened { data: identities(config, images, reader)?, validation })
        }
        ObjectiveName::Contrastive => {
            let pairs = pairs(root).map_err(no_data_set)?;
            pairs
                .iter()
                .try_for_each(|Pair { optical, sar }| admit_images(&[optical.clone(), sar.clone()], roots))?;
            let (pairs, held_out) = hold_out(pairs, config.validation.held_out);
            if pairs.is_empty() {
                return Err(Violation::new("validation.held_out", "leaves no folder to learn from"));
            }
            let validation = evaluates.then(|| Validation::of_pairs(&held_out, size));
            let data = DataSet::Pairs(PairSource::new(pairs, config.batch.images / 2, reader));
            Ok(Opened { data, validation })
        }
    }
}

/// Chips of a gallery.
fn open_kept(
    config: &TrainConfig,
    root: &Path,
    roots: &DataRoots,
    reader: Reader,
) -> Result<Opened, Violation> {
    let (size, evaluates) = (config.model.architecture().preprocessing().size, config.validation.epochs > 0);
    let kept = KeptChips::read(root).map_err(no_data_set)?;
    admit_images(kept.images(), roots)?;
    enough(config, &kept.census())?;
    let Division { train, queries, gallery } = kept.divide(kept_held_out(config));
    match config.objective {
        ObjectiveName::FineTune => {
            let validation = evaluates.then(|| Validation::new(queries, gallery, size));
            Ok(Opened { data: identities(config, train, reader)?, validation })
        }
        ObjectiveName::Contrastive => {
            let held_out = dataset::pairs([queries, gallery].concat());
            let validation = evaluates.then(|| Validation::of_pairs(&held_out, size));
            let pairs = PairSource::new(dataset::pairs(train), config.batch.images / 2, reader);
            Ok(Opened { data: DataSet::Pairs(pairs), validation })
        }
    }
}

/// Share of a gallery's vessels that a run does not learn from. Without an evaluation it learns from all.
fn kept_held_out(config: &TrainConfig) -> f64 {
    match config.objective {
        ObjectiveName::FineTune if config.validation.epochs > 0 => KEPT_HELD_OUT,
        ObjectiveName::FineTune => 0.0,
        ObjectiveName::Contrastive => config.validation.held_out,
    }
}

/// Whether a run can learn from chips of a gallery, and how many classes they have.
fn enough(config: &TrainConfig, census: &Census) -> Result<usize, Violation> {
    let learned = census.learned(kept_held_out(config));
    let beside = if kept_held_out(config) > 0.0 { ", beside those that are held out" } else { "" };
    match config.objective {
        ObjectiveName::FineTune => {
            // A vessel with one chip is learned as a class, but a batch of such teaches nothing of what stays the same.
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

fn identities(config: &TrainConfig, images: Vec<Image>, reader: Reader) -> Result<DataSet, Violation> {
    let source = IdentitySource::new(images, config.batch.images, config.batch.images_per_identity, reader);
    let no_batch = |cause| Violation::new("batch.images", format!("gives no batch: {cause}"));
    Ok(DataSet::Identities(source.map_err(no_batch)?))
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

fn test_set(root: &Path, size: ChipSize, roots: &DataRoots) -> Result<Validation, Violation> {
    let part = |part| {
        let images = hoss(root, part);
        images.map_err(|cause| Violation::new("validation.epochs", format!("finds no test set: {cause}")))
    };
    let (queries, gallery) = (part(HossPart::Query)?, part(HossPart::Gallery)?);
    admit_images(&queries, roots)?;
    admit_images(&gallery, roots)?;
    Ok(Validation::new(queries, gallery, size))
}

/// Each file may be a link.
fn admit_images(images: &[Image], roots: &DataRoots) -> Result<(), Violation> {
    if *roots == DataRoots::Anywhere {
        return Ok(());
    }
    images.iter().try_for_each(|image| {
        let admitted = roots.admit(&image.path).map(drop);
        admitted.map_err(|cause| Violation::new("data.root", format!("cannot be used: {cause}")))
    })
}

/// Whether the starting point can be used; weights from scratch are not drawn for that.
fn check_start(
    config: &TrainConfig,
    architecture: &Architecture,
    roots: &DataRoots,
) -> Result<Option<StartingPoint>, Violation> {
    match config.start.from {
        StartKind::Scratch => Ok(None),
        StartKind::Imagenet | StartKind::Model => {
            starting_tensors(config, architecture, roots).map(|(_, start)| start)
        }
    }
}

/// Seeded weights, replaced by those of the starting point as far as it has them.
fn starting_tensors(
    config: &TrainConfig,
    architecture: &Architecture,
    roots: &DataRoots,
) -> Result<(NamedTensors, Option<StartingPoint>), Violation> {
    let mut tensors = seeded(architecture, config.seed);
    let scale = tensors.entry(architecture.logit_scale().into());
    scale.and_modify(|scale| scale.values = vec![config.loss.logit_scale]);
    let start = &config.start;
    let kind = match start.from {
        StartKind::Scratch => return Ok((tensors, None)),
        StartKind::Imagenet => Kind::Imagenet,
        StartKind::Model => Kind::Model,
    };
    let path = roots
        .admit(&start.path)
        .map_err(|cause| Violation::new("start.path", format!("cannot be used: {cause}")))?;
    let choice = WeightsChoice::new(&start.weights);
    let taken = StartingPoint::take(&mut tensors, architecture, &path, (kind, &choice)).map_err(|cause| {
        Violation::new("start.path", format!("cannot be used: {}: {cause}", start.path.display()))
    })?;
    Ok((tensors, Some(taken)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::chip::{Modality, SourceChip, View};
    use crate::train::kept::KeptWriter;
    use crate::weights::family::{Family, FeaturePoint, Preset};
    use crate::weights::golden;
    use crate::weights::native::tensor_bytes;
    use crate::weights::open::OpenModel;
    use crate::weights::tensors::HostTensor;

    const IMAGES: [&str; 2] = ["0001_a_33x97_RGB.tif", "0003_c_25x110_SAR.tif"];

    /// `allowed/hoss` with three ships and a test set, `allowed/pairs` with a pair in each of two folders.
    fn folders() -> tempfile::TempDir {
        let place = tempfile::tempdir().expect("a temporary folder");
        let write = |folder: &str, name: String, image: &str| {
            let folder = place.path().join("allowed").join(folder);
            fs::create_dir_all(&folder).expect("writable");
            fs::copy(golden::path("images").join(image), folder.join(name)).expect("writable");
        };
        for ship in 1..=3 {
            for image in IMAGES {
                let end = &image[image.len() - 7..];
                for folder in ["hoss/bounding_box_train", "hoss/query", "hoss/bounding_box_test"] {
                    write(folder, format!("{ship:04}_s1c1_{end}"), image);
                }
                write(&format!("pairs/{}", ship % 2), format!("p_{ship}_{end}"), image);
            }
        }
        place
    }

    fn config(objective: &str, settings: &[String]) -> TrainConfig {
        let text = format!(
            r#"
            seed = 1
            objective = "{objective}"
            data = {{ root = "hoss", loader_threads = 1 }}
            model = {{ preset = "tiny", size_token = true, drop_path = 0.0 }}
            start = {{ from = "scratch" }}
            batch = {{ images = 4, images_per_identity = 2 }}
            optimizer = {{ kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }}
            schedule = {{ base_rate = 1e-3, warm_up_epochs = 1, epochs = 2 }}
            checkpoint = {{ epochs = 1, keep = 1 }}
            "#
        );
        TrainConfig::read(&text, settings).expect("a configuration")
    }

    fn gather(objective: &str, settings: &[&str], place: &Path) -> Result<Materials, String> {
        let settings: Vec<String> =
            settings.iter().map(|setting| setting.replace('@', &place.to_string_lossy())).collect();
        let roots = DataRoots::under(&[place.join("allowed")]).expect("there");
        let lines =
            |found: Vec<Violation>| found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        Materials::gather(&config(objective, &settings), &roots).map_err(lines)
    }

    #[test]
    fn what_a_configuration_names_is_read_where_it_is_allowed() {
        let place = folders();
        let found = gather("fine_tune", &["validation.epochs=1"], place.path()).expect("a run");
        assert_eq!(found.architecture.classes(), 3);
        assert!(found.validation.is_some() && matches!(found.data, DataSet::Identities(_)));
        for root in ["data.root=pairs", "data.root=hoss"] {
            let found = gather("contrastive", &[root], place.path()).expect("a run");
            assert!(matches!(found.data, DataSet::Pairs(_)));
        }
    }

    #[test]
    fn whatever_cannot_be_used_is_named() {
        let place = folders();
        let allowed = place.path().join("allowed");
        fs::write(place.path().join("secret.pth"), b"").expect("writable");
        fs::create_dir_all(place.path().join("secret")).expect("writable");
        symlink(place.path().join("secret"), allowed.join("link")).expect("writable");
        let stolen = allowed.join("stolen/bounding_box_train");
        fs::create_dir_all(&stolen).expect("writable");
        symlink(place.path().join("secret.pth"), stolen.join("0001_a_RGB.tif")).expect("writable");
        let small = Family::default().preset(Preset::Small);
        let model = OpenModel::new(small, FeaturePoint::BeforeNeck, seeded(&small, 1));
        model.save(&allowed.join("model"), "a test").expect("writable");
        fs::copy(golden::path("ckpt_truncated.pth"), allowed.join("torn.pth")).expect("writable");

        let check = |objective: &str, settings: &[&str], expected: &str| {
            let found = gather(objective, settings, place.path()).expect_err(expected);
            assert!(found.lines().count() == 1 && found.contains(expected), "{settings:?}: {found}");
        };
        check("fine_tune", &["batch.images=5"], "batch.images must be a multiple");
        check("fine_tune", &["batch.images=8"], "a batch wants 4 identities, the data set has 3");
        check("fine_tune", &["data.root=nothing"], "data.root cannot be used: nothing: No such file");
        check("fine_tune", &["data.root=model/model.toml"], "Not a directory");
        check("fine_tune", &["data.root=pairs"], "bounding_box_train: No such file");
        check("fine_tune", &["data.root=../secret"], "../secret is outside the allowed folders");
        check("fine_tune", &["data.root=@/secret"], "is outside the allowed folders");
        check("fine_tune", &["data.root=link"], "link is outside the allowed folders");
        check("fine_tune", &["data.root=stolen"], "0001_a_RGB.tif is outside the allowed folders");
        check("contrastive", &["data.root=model"], "holds no image");
        check(
            "contrastive",
            &["data.root=pairs", "validation.held_out=0.9"],
            "leaves no folder to learn from",
        );
        let start = |path: &str, expected: &str| {
            let path = format!("start.path={path}");
            check("fine_tune", &["start.from=model", &path], expected);
        };
        start("model", "misshapen base.pos_embed");
        start("nothing.pth", "start.path cannot be used: nothing.pth: No such file");
        start("torn.pth", "torn.pth: the archive is damaged or truncated");
        start("@/secret.pth", "is outside the allowed folders");
        fs::copy(golden::checkpoint_case("timm.safetensors"), allowed.join("vit")).expect("writable");
        start("vit", "start.from = \"imagenet\" takes it");
        let narrow = ["start.from=imagenet", "start.path=vit"];
        check(
            "fine_tune",
            &narrow,
            "vit: no block of the network fits, so that the run would start from random",
        );
        check("fine_tune", &["start.from=imagenet", "start.path=torn.pth"], "torn.pth");
    }

    #[test]
    fn what_a_starting_point_gives_is_known_before_the_first_step() {
        let place = folders();
        let mut vit = seeded(&Family::default().preset(Preset::Tiny), 7);
        vit.retain(|name, _| {
            name.starts_with("base.") && !name.contains("_embed") && !name.contains(".3.norm1")
        });
        let head = HostTensor { shape: vec![2], values: vec![0.5; 2] };
        let mut vit: NamedTensors =
            vit.into_iter().map(|(name, tensor)| (name.replace("base.", "model."), tensor)).collect();
        vit.insert("model.head.bias".to_owned(), head);
        fs::write(place.path().join("allowed/vit"), tensor_bytes(&vit)).expect("writable");
        let settings = ["start.from=imagenet", "start.path=vit", "data.root=hoss"].map(str::to_owned);
        let config = config("fine_tune", &settings);
        let roots = DataRoots::under(&[place.path().join("allowed")]).expect("a folder");
        let checked = Materials::check(&config, &roots).expect("a run").expect("not from scratch");
        let gathered = Materials::gather(&config, &roots).expect("a run");
        assert_eq!(gathered.start.as_ref(), Some(&checked));
        assert_eq!(checked.origin.naming.prefix, "model.");
        assert_eq!((checked.fit.blocks.whole, checked.fit.blocks.of), (3, 4));
        assert_eq!(checked.fit.untaken.len(), 1, "{:?}", checked.fit.untaken);
        let taken = "base.blocks.0.attn.qkv.weight";
        assert_eq!(gathered.tensors[taken], vit["model.blocks.0.attn.qkv.weight"]);
    }

    /// `ships` vessels with an optical and a SAR chip each, and one that was seen once.
    fn kept(ships: usize, place: &Path) -> Census {
        let image = |number: usize| fs::read(golden::path("images").join(IMAGES[number])).expect("a fixture");
        let mut writer = KeptWriter::new(place).expect("writable");
        for ship in 0..ships {
            for (number, modality) in [Modality::Optical, Modality::Sar].into_iter().enumerate() {
                let chip = SourceChip { image: image(number).into(), view: View::plain(modality) };
                writer.add(&format!("ship {ship}"), &chip).expect("writable");
            }
        }
        let chip = SourceChip { image: image(0).into(), view: View::plain(Modality::Optical) };
        writer.add("seen once", &chip).expect("writable");
        writer.finish().expect("writable");
        KeptChips::read(place).expect("readable").census()
    }

    #[test]
    fn an_order_and_its_process_find_the_same_wrong_with_the_chips_of_a_gallery() {
        let check = |objective: &str, ships: usize, settings: &[&str], expected: Option<&str>| {
            let place = tempfile::tempdir().expect("a temporary folder");
            let census = kept(ships, place.path());
            let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
            let mut config = config(objective, &settings);
            config.data.root = "not/looked/at".into();
            let ordered = Materials::check_kept(&config, &census, &DataRoots::Anywhere);
            config.data.root = place.path().to_owned();
            let gathered = Materials::gather(&config, &DataRoots::Anywhere);
            let one =
                |found: &[Violation]| found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            assert_eq!(ordered.as_ref().err().map(|found| one(found)).as_deref(), expected);
            assert_eq!(gathered.as_ref().err().map(|found| one(found)).as_deref(), expected);
            gathered.ok()
        };
        let found = check("fine_tune", 2, &[], None).expect("a run");
        assert_eq!((found.architecture.classes(), found.validation.is_some()), (3, false));
        let found = check("fine_tune", 3, &["validation.epochs=1"], None).expect("a run");
        assert_eq!((found.architecture.classes(), found.validation.is_some()), (3, true));
        check("contrastive", 1, &[], None);
        let few = "batch.images wants 2 vessels with 2 chips or more in a batch, the gallery has 1";
        check("fine_tune", 1, &[], Some(few));
        let few = format!("{few}, beside those that are held out");
        check("fine_tune", 2, &["validation.epochs=1"], Some(&few));
        check(
            "fine_tune",
            2,
            &["batch.images=5"],
            Some("batch.images must be a multiple of batch.images_per_identity, which is at least 1"),
        );
        let none = "objective finds no vessel with chips of both modalities in the gallery";
        check("contrastive", 0, &[], Some(none));
        let none = format!("{none}, beside those that are held out");
        check("contrastive", 1, &["validation.held_out=0.1"], Some(&none));
    }

    #[test]
    fn a_run_without_a_folder_wants_a_gallery() {
        let place = folders();
        let found = gather("fine_tune", &["data.root="], place.path()).expect_err("nowhere");
        assert_eq!(found, "data.root must be set where no gallery is learned from");
    }

    #[test]
    fn values_data_and_starting_point_are_complained_of_together() {
        let place = folders();
        let settings =
            ["optimizer.momentum=2", "data.root=nothing", "start.from=model", "start.path=../secret.pth"];
        let found = gather("fine_tune", &settings, place.path()).expect_err("nothing is right");
        let fields: Vec<&str> = found.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(fields, ["optimizer.momentum", "data.root", "start.path"]);
    }
}
