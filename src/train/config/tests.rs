//! Shipped files, bounds, settings.

use std::path::Path;

use super::*;

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train").join(name);
    std::fs::read_to_string(path).expect("a shipped file")
}

#[test]
fn the_shipped_files_are_the_authors_settings() {
    let hoss = TrainConfig::parse(&shipped("hoss_transoss.toml")).expect("valid");
    assert_eq!((hoss.loss, hoss.augmentation), (Loss::default(), Augmentation::default()));
    assert_eq!(hoss.batch, BatchShape { images: 32, images_per_identity: 4 });
    assert_eq!(
        hoss.schedule,
        ScheduleChoice { base_rate: 5e-4, bias_factor: 2.0, warm_up_epochs: 5, epochs: 200 }
    );
    let pretrain = TrainConfig::parse(&shipped("pretrain_transoss.toml")).expect("valid");
    assert_eq!(pretrain.objective, ObjectiveName::Contrastive);
    assert_eq!(
        pretrain.schedule,
        ScheduleChoice { base_rate: 3e-3, bias_factor: 2.0, warm_up_epochs: 5, epochs: 60 }
    );
    assert!(!pretrain.model.size_token);
}

#[test]
fn every_shipped_file_is_valid_and_the_recipes_are_those_of_their_papers_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("shipped files")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    for name in &names {
        let config = TrainConfig::parse(&shipped(name)).unwrap_or_else(|cause| panic!("{name}: {cause}"));
        assert_eq!(config.model.architecture().validate(), Ok(()), "{name}");
        let text = toml::to_string(&config).expect("plain fields");
        assert_eq!(TrainConfig::parse(&text), Ok(config), "{name}");
    }
    assert!(names.iter().any(|name| name == "sdf_net_aligned.toml"), "{names:?}");

    let sdf_net = TrainConfig::parse(&shipped("sdf_net.toml")).expect("valid");
    assert_eq!(sdf_net.loss, Loss { orthogonality_weight: 10.0, structure_weight: 1.0, ..Loss::default() });
    assert_eq!(sdf_net.augmentation, Augmentation { erase: 0.2, jitter: 0.2, ..Augmentation::default() });
    let mos = TrainConfig::parse(&shipped("mos.toml")).expect("valid");
    assert_eq!(mos.loss, Loss { alignment_weight: 2.0, ..Loss::default() });
    assert_eq!(mos.model.architecture().preprocessing().sar_stretch, SarStretch::Denoised);
    let aligned = TrainConfig::parse(&shipped("sdf_net_aligned.toml")).expect("valid");
    assert_eq!(aligned.model.architecture().preprocessing().size, ChipSize { height: 256, width: 256 });
    assert_eq!(aligned.model.architecture().token_count(), 2 + 16 * 16 + 1);
}

/// The fields of a shipped file that are violated after a change.
fn violated(name: &str, settings: &[&str]) -> Vec<String> {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    let config = TrainConfig::read(&shipped(name), &settings).expect("keys and types are right");
    config.violations().into_iter().map(|violation| violation.field).collect()
}

#[test]
fn every_field_has_bounds() {
    for setting in [
        "model.drop_path=1.0",
        "model.drop_path=-0.1",
        "model.drop_path=nan",
        "model.precision_speed_min=-0.1",
        "model.precision=\"int8\"",
        "model.stride=0",
        "model.stride=17",
        "model.mie_coefficient=inf",
        "data.loader_threads=257",
        "data.unreadable_max=100001",
        "start.path=\"\"",
        "augmentation.flip=1.1",
        "augmentation.padding=129",
        "augmentation.erase=-0.1",
        "augmentation.jitter=1.1",
        "batch.images=0",
        "batch.images=4100",
        "batch.images=33",
        "batch.images_per_identity=0",
        "gradient.accumulation_steps=0",
        "gradient.accumulation_steps=3",
        "gradient.grad_norm_max=-1",
        "optimizer.momentum=1",
        "optimizer.weight_decay=1.1",
        "schedule.base_rate=0",
        "schedule.base_rate=nan",
        "schedule.bias_factor=-1",
        "schedule.epochs=0",
        "schedule.warm_up_epochs=201",
        "loss.identity_weight=-1",
        "loss.triplet_weight=1001",
        "loss.triplet_margin=nan",
        "loss.alignment_weight=-1",
        "loss.orthogonality_weight=10",
        "loss.structure_weight=1",
        "loss.structure_weight=-1",
        "loss.supcon_weight=-1",
        "loss.info_nce_weight=1001",
        "loss.temperature=0",
        "loss.label_smoothing=1",
        "loss.head_scale=0.5",
        "loss.head_margin=1.6",
        "loss.logit_scale=5.1",
        "validation.held_out=0.5",
        "checkpoint.epochs=0",
        "checkpoint.epochs=7",
        "checkpoint.keep=0",
    ] {
        let fields = violated("hoss_transoss.toml", &[setting]);
        let (key, _) = setting.split_once('=').expect("a setting");
        let expected = match setting {
            "batch.images_per_identity=0" => "batch.images",
            "checkpoint.epochs=7" => "checkpoint.keep_best",
            "schedule.epochs=0" => "schedule.epochs",
            _ => key,
        };
        assert!(fields.iter().any(|field| field == expected), "{setting}: {fields:?}");
    }
    for setting in ["batch.images=33", "validation.epochs=1", "validation.held_out=1"] {
        let (key, _) = setting.split_once('=').expect("a setting");
        assert_eq!(violated("pretrain_transoss.toml", &[setting]), [key]);
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_a_wrong_key_by_its_line() {
    let wrong = ["batch.images=33", "model.drop_path=1.0", "checkpoint.keep=0"];
    assert_eq!(
        violated("hoss_transoss.toml", &wrong),
        ["model.drop_path", "batch.images", "checkpoint.keep"]
    );
    let text = shipped("hoss_transoss.toml").replace("base_rate", "base_lr");
    let error = TrainConfig::parse(&text).expect_err("unknown").to_string();
    assert!(error.contains("base_lr") && error.lines().count() == 1, "{error}");
}

#[test]
fn a_renamed_key_is_read_by_its_old_name_too() {
    let text = shipped("hoss_transoss.toml");
    let old = text
        .replace("\naccumulation_steps = 1", "\nparts = 4")
        .replace("\ngrad_norm_max = 0.0", "\nnorm_max = 2.5");
    let expected = Gradient { accumulation_steps: 4, grad_norm_max: 2.5 };
    for settings in [vec![], vec!["seed=7".to_owned()]] {
        assert_eq!(TrainConfig::read(&old, &settings).expect("valid").gradient, expected);
    }
    let new = ["gradient.accumulation_steps=2".to_owned()];
    assert_eq!(TrainConfig::read(&old, &new).expect("valid").gradient.accumulation_steps, 2);
}

#[test]
fn a_setting_wins_over_the_file() {
    let text = shipped("hoss_transoss.toml");
    let read = |setting: &str| TrainConfig::read(&text, &[setting.to_owned()]);
    assert_eq!(read("data.root=data/elsewhere").expect("text").data.root, Path::new("data/elsewhere"));
    assert_eq!(read("seed=7").expect("a number").seed, 7);
    assert_eq!(
        read("gradient.accumulation_steps=2").expect("a section of its own").gradient.accumulation_steps,
        2
    );
    assert_eq!(read("gradient.parts=2").expect("by its old name").gradient.accumulation_steps, 2);
    let check = |setting: &str, message: &str| {
        let error = read(setting).expect_err("unusable").to_string();
        assert!(error.contains(message) && error.lines().count() == 1, "{error}");
    };
    check("schedule.epoch=3", "unknown field `epoch`");
    check("seed", "seed has no value");
    check("seed.deep=1", "is in no section");
    check("schedule.epochs=many", "invalid type");
}

#[test]
fn a_model_family_is_refused_by_name_and_the_default_one_is_left_out() {
    let text = shipped("hoss_transoss.toml");
    let read = |family: &str| TrainConfig::read(&text, &[format!("model.family={family}")]);
    let named = read("transoss").expect("known");
    assert_eq!(named, TrainConfig::parse(&text).expect("valid"));
    assert!(!toml::to_string(&named).expect("plain fields").contains("family"));
    let refused = read("swin").expect_err("unknown").to_string();
    assert!(
        refused.contains("there is no model family swin; this program knows sdf_net, transoss"),
        "{refused}"
    );
}

#[test]
fn what_is_wrong_is_said_in_few_words_however_long_the_configuration_is() {
    let long = "x".repeat(60_000);
    let violation = Violation::new(&long, format!("is {long}"));
    assert!(violation.to_string().len() < 1200, "{}", violation.to_string().len());
    let unset = TrainConfig::read("", &[long]).expect_err("no key").to_string();
    assert!(unset.ends_with("… has no value: write section.key=value"), "{unset}");
}
