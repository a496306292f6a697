//! Training on this machine (`shipreid train --local`), and its refusals.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::program::{GOLDEN, model_path, run, shipreid};

/// A HOSS folder with four ships, each with four of the recorded images.
pub fn drawn_training_set(root: &Path) {
    let images =
        ["0001_a_33x97_RGB.tif", "0003_c_25x110_SAR.tif", "0002_b_40x120_RGB.tif", "0009_i_32x64_RGB.tif"];
    let folder = root.join("bounding_box_train");
    std::fs::create_dir_all(&folder).unwrap();
    let images: Vec<PathBuf> =
        images.iter().map(|name| Path::new(GOLDEN).join("images").join(name)).collect();
    for ship in 1..=4 {
        for (view, image) in images.iter().enumerate() {
            let modality = if image.ends_with("0003_c_25x110_SAR.tif") { "SAR" } else { "RGB" };
            std::fs::copy(image, folder.join(format!("{ship:04}_{view}_{modality}.tif"))).unwrap();
        }
    }
}

/// A run of eight epochs with two steps each.
pub fn training(root: &Path, out: &str) -> Command {
    let config = format!(
        r#"
        seed = 5
        objective = "fine_tune"
        data = {{ root = "{root}", loader_threads = 2 }}
        model = {{ preset = "tiny", size_token = true, drop_path = 0.1 }}
        start = {{ from = "scratch" }}
        batch = {{ images = 8, images_per_identity = 4 }}
        optimizer = {{ kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }}
        schedule = {{ base_rate = 1e-3, warm_up_epochs = 1, epochs = 8 }}
        checkpoint = {{ epochs = 1, keep = 2 }}
        "#,
        root = root.display()
    );
    let file = root.join("train.toml");
    std::fs::write(&file, config).unwrap();
    let mut command = shipreid();
    command.args(["train", "--local"]).arg(file).arg("--out").arg(root.join(out)).stdout(Stdio::piped());
    command.stderr(Stdio::null());
    command
}

/// The description of a finished run's model.
pub fn model_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().find(|line| line.starts_with("model ")).expect("a finished run names its model");
    line.split(' ').nth(1).unwrap().to_owned()
}

/// What a run has logged so far; empty before it starts.
pub fn events(root: &Path, out: &str) -> String {
    std::fs::read_to_string(root.join(out).join("events.jsonl")).unwrap_or_default()
}

/// Starts a run and kills it once it has logged this many steps.
fn kill_after(mut run: Command, root: &Path, out: &str, steps: usize) {
    let mut run = run.stdout(Stdio::null()).spawn().unwrap();
    while events(root, out).lines().count() < steps {
        assert!(run.try_wait().unwrap().is_none(), "the run ended before its step {steps}");
        std::thread::yield_now();
    }
    run.kill().unwrap();
    assert!(!run.wait().unwrap().success());
}

#[test]
fn a_run_that_is_killed_at_five_random_steps_takes_the_steps_of_one_that_is_not() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let undisturbed = training(root.path(), "whole").output().unwrap();
    assert!(undisturbed.status.success());
    let expected = events(root.path(), "whole");
    assert_eq!(expected.lines().count(), 16);

    let mut steps: Vec<usize> = (0..5).map(|_| rand::random_range(1..=15)).collect();
    steps.sort_unstable();
    let killed = || training(root.path(), "killed");
    steps.iter().for_each(|steps| kill_after(killed(), root.path(), "killed", *steps));
    let resumed = training(root.path(), "killed").output().unwrap();
    assert_eq!(events(root.path(), "killed"), expected, "killed at {steps:?}");
    assert_eq!(model_line(&resumed.stdout), model_line(&undisturbed.stdout), "killed at {steps:?}");
}

#[test]
fn an_sdf_net_on_denoised_chips_resumes_as_well_and_its_model_says_how_it_reads_them() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let run = |out: &str| {
        let mut run = training(root.path(), out);
        for setting in [
            "model.family=sdf_net",
            "model.sar_stretch=denoised",
            "augmentation.jitter=0.2",
            "loss.orthogonality_weight=10",
            "loss.structure_weight=1",
            "loss.alignment_weight=1",
            "loss.info_nce_weight=1",
            "schedule.epochs=2",
        ] {
            run.args(["--set", setting]);
        }
        run
    };
    let undisturbed = run("whole").output().unwrap();
    assert!(undisturbed.status.success());
    let expected = events(root.path(), "whole");
    assert_eq!(expected.lines().count(), 4);
    for term in ["orthogonality", "structure", "alignment", "info_nce"] {
        assert!(!expected.contains(&format!("\"{term}\":0.0,")), "{term}: {expected}");
    }
    let model = std::fs::read_to_string(root.path().join("whole/model/model.toml")).unwrap();
    for line in ["family = \"sdf_net\"", "sar_stretch = \"denoised\"", "feature_point = \"after_neck\""] {
        assert!(model.contains(line), "{model}");
    }
    kill_after(run("killed"), root.path(), "killed", 2);
    let resumed = run("killed").output().unwrap();
    assert_eq!(events(root.path(), "killed"), expected);
    assert_eq!(model_line(&resumed.stdout), model_line(&undisturbed.stdout));

    // A TransOSS has no second class token.
    let refused = run("refused").args(["--set", "model.family=transoss"]).stderr(Stdio::piped()).output();
    let refused = refused.unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("loss.structure_weight needs a network that separates"), "{error}");
}

#[test]
fn the_model_of_a_finished_run_is_replaced_only_where_that_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let model = root.path().join("done").join("model");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("model.toml"), "ours").unwrap();
    let mut again = training(root.path(), "done");
    let output = again.stderr(Stdio::piped()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("done/model already has the model") && error.contains("--force"), "{error}");
    assert_eq!(std::fs::read_to_string(model.join("model.toml")).unwrap(), "ours");
    assert!(!root.path().join("done").join("checkpoints").exists(), "refused before the work");
    let output = training(root.path(), "done").arg("--force").output().unwrap();
    let digest = model_line(&output.stdout);
    assert!(std::fs::read_to_string(model.join("model.toml")).unwrap().contains(&digest));
}

/// The folder of synthetic ships, half of them a test set.
fn drawn_ships(root: &Path, seed: &str) -> String {
    let out = root.join(format!("ships-{seed}"));
    let drawn = run(&[
        "synth",
        "--ids",
        "60",
        "--pairs",
        "0",
        "--views",
        "3",
        "--seed",
        seed,
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(drawn.status.success());
    out.join("synthetic_hoss").display().to_string()
}

#[test]
fn a_run_calibrates_its_model_and_no_calibrator_is_measured_on_its_own_ships() {
    let root = tempfile::tempdir().unwrap();
    let (learned, other) = (drawn_ships(root.path(), "1"), drawn_ships(root.path(), "2"));
    let data = format!("data.root={learned}");
    let mut command = training(root.path(), "out");
    let output = command.args(["--set", data.as_str(), "--set", "schedule.epochs=1"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let model = root.path().join("out/model");
    let digest = model_line(&output.stdout);
    let id = format!("model-{}", &digest[..12]);
    // Thirty ships were not learned, although nothing was evaluated on the way.
    let fitted =
        format!("calibrator {id}: fitted on 21 ships that were not trained on, measured on 9 others");
    assert!(text.contains(&fitted), "{text}");
    assert!(text.contains(&format!("; calibrator {id} was fitted on these images")), "{text}");
    let report = std::fs::read_to_string(root.path().join("out/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let judged = |report: &Value, by: &str, fitted_on_this_set: bool| {
        let calibration = &report["calibration"];
        assert_eq!((calibration["by"].as_str(), calibration["calibrator"].as_str()), (Some(by), Some(&*id)));
        assert_eq!(calibration["fitted_on_this_set"], fitted_on_this_set);
        assert!(!calibration["pairs"].as_array().unwrap().is_empty());
        for row in report["protocols"].as_array().unwrap() {
            assert!((0.0..=1.0).contains(&row["fused"]["mAP"].as_f64().unwrap()), "{row}");
        }
    };
    judged(&report, "cross_fitting", true);

    let (named, picture) = (model_path(&model), root.path().join("reliability.png"));
    let eval = |data: &str, more: &[&str]| {
        let arguments = [&["eval", "--data", data, "--set", named.as_str()][..], more].concat();
        let output = run(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let report = eval(&other, &["--json", "--picture", picture.to_str().unwrap()]);
    judged(&serde_json::from_str(&report).unwrap(), "calibrator", false);
    assert!(image::open(&picture).unwrap().width() >= 380);
    let text = eval(&other, &["--protocol", "s2o"]);
    assert!(text.contains("fused mAP") && text.contains("fitted on another set of images"), "{text}");
    assert!(!eval(&other, &["--rerank"]).contains("fused"));

    // A file of one's own, of another model.
    let file = model.join("calibrator.toml");
    let foreign = root.path().join("foreign.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace(&digest, &"ab".repeat(32));
    std::fs::write(&foreign, text).unwrap();
    let refused =
        run(&["eval", "--data", &other, "--set", &named, "--calibrator", foreign.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the calibrator is of model abab"));
    let inspected = run(&["model", "inspect", model.to_str().unwrap()]);
    let inspected = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(inspected.contains(&format!("calibrator  {id}, fitted on 21 ships: ")), "{inspected}");
    std::fs::copy(&foreign, &file).unwrap();
    let refused = run(&["model", "inspect", model.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn a_full_disk_costs_no_more_than_the_newest_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let undisturbed = training(root.path(), "whole").output().unwrap();
    let mut command = training(root.path(), "full");
    // SAFETY: between fork and exec only the disposition of a signal is changed, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut run = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
    // The checkpoint of the first epoch is complete at this point.
    assert!(lines.any(|line| line.starts_with("epoch 2:")));
    let bound = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
    // SAFETY: the process is a child that has not been waited for, and the pointers are to a live
    // limit and null.
    let limited = unsafe {
        libc::prlimit(run.id() as libc::pid_t, libc::RLIMIT_FSIZE, &raw const bound, std::ptr::null_mut())
    };
    assert_eq!(limited, 0);
    let output = run.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("File too large"), "{error}");

    let resumed = training(root.path(), "full").output().unwrap();
    let text = String::from_utf8_lossy(&resumed.stdout).into_owned();
    assert!(text.contains("resuming after"), "{text}");
    assert_eq!(model_line(&resumed.stdout), model_line(&undisturbed.stdout));
}

#[test]
fn a_run_that_cannot_start_says_everything_at_once() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let mut run = training(root.path(), "out");
    let file = root.path().join("train.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let starts = |text: String, command: &mut Command| {
        std::fs::write(&file, text).unwrap();
        let output = command.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let wrong = text.replace("images = 8", "images = 9").replace("momentum = 0.9", "momentum = 2");
    let error = starts(wrong, &mut run);
    assert!(
        error.contains("batch.images must be a multiple") && error.contains("optimizer.momentum"),
        "{error}"
    );
    let error = starts(text.replace("images = 8", "images = 20"), &mut run);
    assert!(error.contains("wants 5 identities, the data set has 4"), "{error}");
    let nowhere = text.replace("root = \"", "root = \"/nowhere").replace("momentum = 0.9", "momentum = 2");
    let error = starts(nowhere, &mut run);
    assert!(error.contains("optimizer.momentum") && error.contains("No such file"), "{error}");
    let other = root.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let error = starts(text.clone(), run.arg("--data-root").arg(other));
    assert!(error.contains("data.root") && error.contains("is outside the allowed folders"), "{error}");
}

#[test]
fn a_run_is_checked_without_a_server_and_without_starting_it() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let _unstarted = training(root.path(), "out");
    let file = root.path().join("train.toml");
    let check = |settings: &[String]| {
        let mut command = shipreid();
        command.args(["train", "--validate-only", "--local"]).arg(&file);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, said) = check(&[]);
    assert_eq!((code, &*said), (Some(0), "the configuration is valid\n"));
    assert!(!root.path().join("out").exists());
    let (code, said) = check(&["batch.images=9".into(), "data.root=/nowhere".into()]);
    assert_eq!(code, Some(2));
    assert!(said.contains("batch.images must be a multiple") && said.contains("No such file"), "{said}");
    let short = ["--set", "schedule.epochs=1"];
    assert!(training(root.path(), "out").args(short).output().unwrap().status.success());
    let made = format!("start.path={}", root.path().join("out/model").display());
    let (code, said) = check(&["start.from=model".into(), made]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("tensors taken") && said.contains("kept as they were: "), "{said}");
}

#[test]
fn a_folder_of_another_network_is_not_gone_on_with() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let short = ["--set", "schedule.epochs=1"];
    assert!(training(root.path(), "out").args(short).output().unwrap().status.success());
    let other = ["--force", "--set", "model.preset=small"];
    let output = training(root.path(), "out").args(other).stderr(Stdio::piped()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("the state is not of this model: base."), "{error}");
}

#[test]
fn what_the_authors_yaml_asks_for_in_vain_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("authors.yml");
    let text = "MODEL:\n  PRETRAIN_CHOICE: ('none')\n  DEVICE_ID: ('0')\nTEST:\n  NECK_FEAT: 'before'\n";
    std::fs::write(&file, text).unwrap();
    let overrides = ["SOLVER.OPTIMIZER_NAME", "Adam", "SOLVER.MAX_EPOCH", "3", "OUTPUT_DIR", "out"];
    let output = shipreid().args(["train", "--from-yaml"]).arg(&file).args(overrides).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    for expected in [
        "SOLVER.OPTIMIZER_NAME is Adam; supported: SGD or AdamW",
        "SOLVER.MAX_EPOCH is unknown; did you mean SOLVER.MAX_EPOCHS?",
        "MODEL.TRANSFORMER_TYPE is None; supported: vit_base_patch16_224_TransOSS",
        "DATALOADER.SAMPLER is softmax; supported: softmax_triplet",
    ] {
        assert!(error.contains(expected), "{error}");
    }
}
