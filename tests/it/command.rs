//! The program as its users start it: serve, embed, import, and what it says when it cannot.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::program::{GOLDEN, PORTS, Server, imported, model_path, run, shipreid};

/// Exit code 2 and one line that contains `message`, before anything listens.
fn unusable(arguments: &[&str], message: &str) {
    let output = run(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
    assert!(err.contains(message), "{arguments:?}: {err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert_eq!(out, "");
}

#[test]
fn a_checkpoint_is_imported_served_and_called() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&imported(folder.path()), &["store.data_dir="]);
    let endpoint = server.endpoint.clone();
    let chips =
        [format!("{GOLDEN}/images/0001_a_33x97_RGB.tif"), format!("{GOLDEN}/images/0003_c_25x110_SAR.tif")];
    let embed = |more: &[&str]| {
        let files = chips.iter().map(String::as_str);
        let fixed = ["embed", "--endpoint", &endpoint];
        run(&fixed.into_iter().chain(files).chain(more.iter().copied()).collect::<Vec<_>>())
    };
    let json = embed(&["--json"]);
    let lines: Vec<serde_json::Value> =
        json.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["modality"], "optical");
    assert_eq!(lines[1]["embedding"].as_array().unwrap().len(), 16);

    let array = folder.path().join("embeddings.npy");
    assert!(embed(&["--npy", array.to_str().unwrap()]).status.success());
    let bytes = std::fs::read(array).unwrap();
    assert!(bytes.starts_with(b"\x93NUMPY") && bytes.ends_with(&last_value(&lines[1]).to_le_bytes()));

    let table = String::from_utf8(embed(&[]).stdout).unwrap();
    assert!(table.contains("0003_c_25x110_SAR.tif"), "{table}");

    let broken = folder.path().join("broken_SAR.tif");
    std::fs::write(&broken, b"no image").unwrap();
    let output = embed(&[broken.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of 3 chips have no embedding"));
    server.terminate();
}

fn last_value(line: &serde_json::Value) -> f32 {
    line["embedding"].as_array().unwrap().last().unwrap().as_f64().unwrap() as f32
}

#[test]
fn what_cannot_be_served_is_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let model = imported(folder.path());
    let serve = |setting: &str, message: &str| {
        unusable(&[&["serve"], &PORTS[..], &["--set", setting]].concat(), message);
    };
    serve("model.presets=small", "did you mean model.preset?");
    serve("encoder.batch_max=0", "encoder.batch_max must be");
    serve("model.seed=3", "no model: set model.path");
    serve("model.path=/nowhere/at/all.pth", "/nowhere/at/all.pth");
    for name in ["ckpt_malicious.pth", "ckpt_malicious_raw.pth", "ckpt_truncated.pth", "README.md"] {
        serve(&model_path(&Path::new(GOLDEN).join(name)), name);
    }
    assert!(!std::env::temp_dir().join("pwned").exists());
    let description = model.join("model.toml");
    let text = std::fs::read_to_string(&description).unwrap();
    std::fs::write(&description, text.replace("embed_dim = 16", "embed_dim = 32")).unwrap();
    serve(&model_path(&model), "misshapen base.blocks.0");
    let cuda = ["serve", "--set", "model.preset=small", "--set", "encoder.device=cuda:0"];
    if !has_cuda() {
        unusable(&cuda, "cuda:0 is not available");
    }
}

fn has_cuda() -> bool {
    Path::new("/dev/nvidia0").exists()
}

#[test]
fn a_configuration_can_be_checked_without_a_server() {
    let good = run(&[
        "serve",
        "--check-config",
        "--config",
        concat!(env!("CARGO_MANIFEST_DIR"), "/configs/server.toml"),
    ]);
    assert!(good.status.success());
    unusable(
        &["serve", "--check-config", "--set", "limits.calls_max=0"],
        "limits.calls_max must be at least 1",
    );
}

#[test]
fn every_command_explains_itself() {
    for command in [
        &["serve"][..],
        &["embed"],
        &["model", "import"],
        &["model", "inspect"],
        &["bench", "closed"],
        &["bench", "open"],
        &["bench", "bare"],
        &["train"],
        &["eval"],
        &["demo"],
    ] {
        let output = run(&[command, &["--help"]].concat());
        assert!(output.status.success(), "{command:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: shipreid"), "{command:?}");
    }
}

/// A HOSS folder of four ships, each with four of the recorded images.
fn drawn_training_set(root: &Path) {
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

fn training(root: &Path, out: &str) -> Command {
    let config = format!(
        r#"
        seed = 5
        objective = "fine_tune"
        data = {{ root = "{root}", loader_threads = 2 }}
        model = {{ preset = "small", size_token = true, drop_path = 0.1 }}
        start = {{ from = "scratch" }}
        batch = {{ images = 8, images_per_identity = 4 }}
        optimizer = {{ kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }}
        schedule = {{ base_rate = 1e-3, warm_up_epochs = 1, epochs = 4 }}
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

/// What a finished run says of its model.
fn model_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().find(|line| line.starts_with("model ")).expect("a finished run names its model");
    line.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn a_training_run_that_is_killed_goes_on_to_the_same_model() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let undisturbed = training(root.path(), "whole").output().unwrap();
    assert!(undisturbed.status.success());

    for epoch in ["epoch 1:", "epoch 3:"] {
        let mut killed = training(root.path(), epoch).spawn().unwrap();
        let lines = BufReader::new(killed.stdout.as_mut().unwrap()).lines();
        assert!(lines.map(Result::unwrap).any(|line| line.starts_with(epoch)));
        killed.kill().unwrap();
        assert!(!killed.wait().unwrap().success());

        let resumed = training(root.path(), epoch).output().unwrap();
        assert_eq!(model_line(&resumed.stdout), model_line(&undisturbed.stdout));
    }
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
    let error = starts(text.replace("root = \"", "root = \"/nowhere"), &mut run);
    assert!(error.contains("bounding_box_train: No such file"), "{error}");
}
