//! Refusals of a run before its first step.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::chip::{Modality, SourceChip, View};
use crate::train::gallery_dataset::GalleryDatasetWriter;
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

fn gather(objective: &str, settings: &[&str], place: &Path) -> Result<TrainingInputs, String> {
    let settings: Vec<String> =
        settings.iter().map(|setting| setting.replace('@', &place.to_string_lossy())).collect();
    let roots = DataRoots::under(&[place.join("allowed")]).expect("there");
    let lines = |found: Vec<Violation>| found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    TrainingInputs::gather(&config(objective, &settings), &roots, Shard::default()).map_err(lines)
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
    check("contrastive", &["data.root=pairs", "validation.held_out=0.9"], "leaves no folder to learn from");
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
    check("fine_tune", &narrow, "vit: no block of the network fits, so that the run would start from random");
    check("fine_tune", &["start.from=imagenet", "start.path=torn.pth"], "torn.pth");
}

#[test]
fn what_a_starting_point_gives_is_known_before_the_first_step() {
    let place = folders();
    let mut vit = seeded(&Family::default().preset(Preset::Tiny), 7);
    vit.retain(|name, _| name.starts_with("base.") && !name.contains("_embed") && !name.contains(".3.norm1"));
    let head = HostTensor { shape: vec![2], values: vec![0.5; 2] };
    let mut vit: NamedTensors =
        vit.into_iter().map(|(name, tensor)| (name.replace("base.", "model."), tensor)).collect();
    vit.insert("model.head.bias".to_owned(), head);
    fs::write(place.path().join("allowed/vit"), tensor_bytes(&vit)).expect("writable");
    let settings = ["start.from=imagenet", "start.path=vit", "data.root=hoss"].map(str::to_owned);
    let config = config("fine_tune", &settings);
    let roots = DataRoots::under(&[place.path().join("allowed")]).expect("a folder");
    let checked = TrainingInputs::check(&config, &roots, &Cancellation::default())
        .expect("a run")
        .expect("not from scratch");
    let gathered = TrainingInputs::gather(&config, &roots, Shard::default()).expect("a run");
    assert_eq!(gathered.start.as_ref(), Some(&checked));
    assert_eq!(checked.origin.naming.prefix, "model.");
    assert_eq!((checked.fit.blocks.whole, checked.fit.blocks.of), (3, 4));
    assert_eq!(checked.fit.untaken.len(), 1, "{:?}", checked.fit.untaken);
    let taken = "base.blocks.0.attn.qkv.weight";
    assert_eq!(gathered.tensors[taken], vit["model.blocks.0.attn.qkv.weight"]);
}

/// `ships` vessels with an optical and a SAR chip each, and one vessel with a single chip.
fn kept(ships: usize, place: &Path) -> Census {
    let image = |number: usize| fs::read(golden::path("images").join(IMAGES[number])).expect("a fixture");
    let mut writer = GalleryDatasetWriter::new(place).expect("writable");
    for ship in 0..ships {
        for (number, modality) in [Modality::Optical, Modality::Sar].into_iter().enumerate() {
            let chip = SourceChip { image: image(number).into(), view: View::plain(modality) };
            writer.add(&format!("ship {ship}"), &chip).expect("writable");
        }
    }
    let chip = SourceChip { image: image(0).into(), view: View::plain(Modality::Optical) };
    writer.add("seen once", &chip).expect("writable");
    writer.finish().expect("writable");
    GalleryDataset::read(place).expect("readable").census()
}

#[test]
fn an_order_and_its_process_find_the_same_wrong_with_the_chips_of_a_gallery() {
    let check = |objective: &str, ships: usize, settings: &[&str], expected: Option<&str>| {
        let place = tempfile::tempdir().expect("a temporary folder");
        let census = kept(ships, place.path());
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut config = config(objective, &settings);
        config.data.root = "not/looked/at".into();
        let ordered =
            TrainingInputs::check_kept(&config, &census, &DataRoots::Anywhere, &Cancellation::default());
        config.data.root = place.path().to_owned();
        let gathered = TrainingInputs::gather(&config, &DataRoots::Anywhere, Shard::default());
        let one = |found: &[Violation]| found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
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
fn nothing_is_read_for_an_order_that_nobody_waits_for() {
    let place = folders();
    let settings = ["start.from=model", "start.path=../secret.pth"].map(str::to_owned);
    let roots = DataRoots::under(&[place.path().join("allowed")]).expect("a folder");
    let (cancellation, guard) = Cancellation::at(None);
    drop(guard);
    let found = TrainingInputs::check(&config("fine_tune", &settings), &roots, &cancellation);
    let found = found.expect_err("nobody waits");
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    let stopped = "is read no further: the caller has left";
    assert_eq!(lines, [format!("data.root {stopped}"), format!("start.from {stopped}")]);
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
