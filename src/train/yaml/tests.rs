//! The authors' files, and refusals of them.

use super::*;

/// In the style of the authors' file for fine-tuning.
const HOSS: &str = r"
MODEL:
  PRETRAIN_CHOICE: 'clip'
  PRETRAIN_PATH: 'weights/pretrained.pth'
  IF_LABELSMOOTH: off
  NO_MARGIN: True
  DEVICE: 'cuda'
  DEVICE_ID: ('0')
  TRANSFORMER_TYPE: 'vit_base_patch16_224_TransOSS'
  STRIDE_SIZE: [16, 16]
  MIE: True
  SSE: True
  SWIN:
    DEPTHS: [2, 2]
INPUT:
  SIZE_TRAIN: (256, 128)
DATASETS:
  NAMES: ('HOSS')
  ROOT_DIR: ('data')
DATALOADER:
  SAMPLER: 'softmax_triplet'
  NUM_INSTANCE: 4
  NUM_WORKERS: 0
SOLVER:
  OPTIMIZER_NAME: 'SGD'
  MAX_EPOCHS: 200
  BASE_LR: 5e-4
  IMS_PER_BATCH: 32
  STEPS: (60, 120)
  WARMUP_METHOD: 'linear'
  WEIGHT_DECAY:  1e-4
  WEIGHT_DECAY_BIAS: '1e-4'
  BIAS_LR_FACTOR: 2
TEST:
  NECK_FEAT: 'before'
OUTPUT_DIR: './logs/hoss'
";

fn shipped(name: &str) -> TrainConfig {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/train").join(name);
    TrainConfig::parse(&std::fs::read_to_string(path).expect("a shipped file")).expect("valid")
}

fn overridden(overrides: &[&str]) -> Result<AuthorsConfig, TrainConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    AuthorsConfig::read(HOSS, &overrides)
}

#[test]
fn the_authors_files_are_the_shipped_configurations() {
    let AuthorsConfig { config, out, ignored } = overridden(&[]).expect("supported");
    let mut expected = shipped("hoss_transoss.toml");
    expected.data.root = "data/HOSS".into();
    expected.start.path = "weights/pretrained.pth".into();
    expected.checkpoint.keep_best = Some(false);
    assert_eq!(config, expected);
    assert_eq!(out, Some(PathBuf::from("./logs/hoss")));
    let names: Vec<&str> = ignored.iter().filter_map(|line| line.split(' ').next()).collect();
    let inert = ["MODEL.DEVICE", "MODEL.DEVICE_ID", "MODEL.SWIN.DEPTHS", "SOLVER.STEPS"];
    assert_eq!(names, [&inert[..], &["SOLVER.WARMUP_METHOD"]].concat());

    let pairs = overridden(&[
        "MODEL.PAIR",
        "True",
        "MODEL.SSE",
        "False",
        "DATASETS.NAMES",
        "('Pretrain')",
        "MODEL.PRETRAIN_CHOICE",
        "imagenet",
        "MODEL.PRETRAIN_PATH",
        "'models/vit_base_imagenet.pth'",
        "SOLVER.MAX_EPOCHS",
        "60",
        "SOLVER.BASE_LR",
        "0.003",
        "SOLVER.IMS_PER_BATCH",
        "256",
        "SOLVER.CHECKPOINT_PERIOD",
        "5",
        "SOLVER.EVAL_PERIOD",
        "100",
    ]);
    let mut expected = shipped("pretrain_transoss.toml");
    // Not read by any pretraining.
    expected.batch.images_per_identity = 4;
    expected.checkpoint.keep_best = Some(false);
    assert_eq!(pairs.expect("supported").config, expected);
}

#[test]
fn everything_that_is_not_supported_is_refused_by_name_at_once() {
    let error = overridden(&[
        "MODEL.NAME",
        "resnet50",
        "MODEL.IF_WITH_CENTER",
        "yes",
        "MODEL.DIST_TRAIN",
        "True",
        "INPUT.SIZE_TEST",
        "[384, 128]",
        "INPUT.PIXEL_STD",
        "[0.5, 0.5, 0.5]",
        "SOLVER.OPTIMIZER_NAME",
        "Adam",
        "SOLVER.WEIGHT_DECAY_BIAS",
        "0",
        "SOLVER.MAX_EPOCHS",
        "many",
        "SOLVER.MAX_EPOCH",
        "3",
        "SOLVER.IMS_PER_BATCH",
        "30",
        "TEST.NECK_FEAT",
        "after",
    ]);
    let Err(TrainConfigError::Invalid(found)) = error else { panic!("{error:?}") };
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "MODEL.NAME is resnet50; supported: transformer",
            "MODEL.IF_WITH_CENTER is yes; supported: no",
            "MODEL.DIST_TRAIN is True; supported: False",
            "INPUT.SIZE_TEST is (384, 128); supported: (256, 128)",
            "INPUT.PIXEL_STD is (0.5, 0.5, 0.5); supported: (0.229, 0.224, 0.225)",
            "TEST.NECK_FEAT is after; supported: before",
            "SOLVER.WEIGHT_DECAY_BIAS is 0; supported: 0.0001, as SOLVER.WEIGHT_DECAY",
            "SOLVER.OPTIMIZER_NAME is Adam; supported: SGD or AdamW",
            "SOLVER.MAX_EPOCHS is many; supported: a whole number up to 1000000000",
            "SOLVER.MAX_EPOCH is unknown; did you mean SOLVER.MAX_EPOCHS?",
            "batch.images must be a multiple of batch.images_per_identity, which is at least 1",
        ]
    );
}

#[test]
fn the_authors_defaults_hold_where_a_file_is_silent() {
    let Err(TrainConfigError::Invalid(found)) = AuthorsConfig::read("MODEL:\n  MIE: True\n", &[]) else {
        panic!("an empty file trains nothing");
    };
    let text = found.iter().map(|violation| violation.to_string()).collect::<Vec<_>>().join("\n");
    for expected in
        ["OPTIMIZER_NAME is Adam", "SAMPLER is softmax", "NECK_FEAT is after", "start.path must be set"]
    {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn text_that_is_no_yaml_and_a_key_without_a_value_are_one_line() {
    let check = |text: &str, overrides: &[String], expected: &str| {
        let error = AuthorsConfig::read(text, overrides).expect_err("unreadable").to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    };
    check("MODEL: [1, 2", &[], "line 2");
    check("MODEL:\n  SSE: True\n  SSE: False\n", &[], "line 3");
    check("just text", &[], "no sections");
    check(HOSS, &["MODEL.SSE".to_owned()], "MODEL.SSE has no value");
}

#[test]
fn whatever_the_authors_keys_and_values_hold_a_refusal_is_one_line() {
    for (text, part) in [
        ("\"A\\nB\": 1", "A B is unknown"),
        ("MODEL: {NAME: \"a\\nb\\e[2J\"}", "MODEL.NAME is a b [2J; supported"),
        ("\"A\\nB\": {1: 2}", "a key of A B is no text"),
        ("\"A\\nB\": [{}]", "A B is no value"),
    ] {
        let message = AuthorsConfig::read(text, &[]).expect_err(text).to_string();
        assert!(message.contains(part) && !message.contains(char::is_control), "{message:?}");
    }
}
