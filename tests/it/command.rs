//! The program as its users start it: serve, embed, import, and what it says when it cannot.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use shipreid::keys::{KeyRing, Role};

use crate::certificates::{Authority, Term};
use crate::identity::Keys;
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
fn a_model_is_sent_to_a_server_activated_exported_and_served_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("store.data_dir={}", folder.path().join("data").display());
    let configured = imported(folder.path());
    let server = Server::start(&configured, &[&data]);
    let output = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let at = ["--endpoint", &server.endpoint];
    let checkpoint = format!("{GOLDEN}/ckpt_wrapped.pth");
    let hints = ["--heads", "2", "--image", "64x32", "--feature", "after-neck"];
    let sent = output(&[&["model", "import", &checkpoint], &at[..], &hints].concat());
    let digest = digest_in(&sent);
    let listed = output(&[&["model", "list"], &at[..]].concat());
    assert_eq!(listed.matches(" 16 ").count(), 2, "the configured one was kept as well: {listed}");
    assert!(output(&[&["model", "activate", &digest], &at[..]].concat()).contains("active, f32"));
    let file = folder.path().join("exported.zip");
    output(&[&["model", "export", &digest, file.to_str().unwrap()], &at[..]].concat());
    assert!(output(&["model", "inspect", file.to_str().unwrap()]).contains(&digest));
    let again = output(&[&["model", "import", configured.to_str().unwrap()], &at[..]].concat());
    assert!(listed.contains(&digest_in(&again)), "a folder is brought to a server as well");
    server.terminate();

    let server = Server::start(&configured, &[&data]);
    let at = ["--endpoint", &server.endpoint];
    let listed = output(&[&["model", "list"], &at[..]].concat());
    let active = listed.lines().find(|line| line.contains("active")).expect("one is");
    assert_eq!(digest_in(active), digest, "an activation wins over the configuration");
    let refused = run(&[&["model", "delete", &digest, "--yes"], &at[..]].concat());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("MODEL_ACTIVE"));
    server.terminate();

    // There is a copy of it.
    let record = folder.path().join("data/models/active.toml");
    std::fs::write(record, "format = 9").unwrap();
    let server = Server::start(&configured, &[&data]);
    let listed = output(&["model", "list", "--endpoint", &server.endpoint]);
    let active = listed.lines().find(|line| line.contains("active")).expect("one is");
    assert_eq!(digest_in(active), digest);
    server.terminate();
}

/// The first digest of a text.
fn digest_in(text: &str) -> String {
    let is_digest = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.split_whitespace().find(is_digest).expect("a digest").to_owned()
}

#[test]
fn what_cannot_be_served_is_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let model = imported(folder.path());
    let serve = |setting: &str, message: &str| {
        let nothing_kept = ["--set", "store.data_dir="];
        unusable(&[&["serve"], &PORTS[..], &nothing_kept, &["--set", setting]].concat(), message);
    };
    serve("model.presets=small", "did you mean model.preset?");
    serve("encoder.batch_max=0", "encoder.batch_max must be");
    serve("model.seed=3", "no model: set model.path");
    serve("server.listen=0.0.0.0:0", "server.plaintext = \"everywhere\"");
    serve("tls.certificate=server.pem", "tls.certificate and tls.key belong together");
    for (settings, message) in [
        (&["auth.keys_file=/nowhere/keys.toml"][..], "/nowhere/keys.toml: No such file"),
        (
            &["tls.certificate=/nowhere/server.pem", "tls.key=/nowhere/server.key"],
            "/nowhere/server.pem: No such",
        ),
        (&["telemetry.audit_file=/nowhere/audit"], "telemetry.audit_file /nowhere/audit: No such file"),
    ] {
        let settings = settings.iter().chain(&["store.data_dir=", "model.preset=tiny"]);
        let flags: Vec<&str> = settings.flat_map(|setting| ["--set", setting]).collect();
        unusable(&[&["serve"], &PORTS[..], &flags].concat(), message);
    }
    serve("model.path=/nowhere/at/all.pth", "/nowhere/at/all.pth");
    for name in ["ckpt_malicious.pth", "ckpt_malicious_raw.pth", "ckpt_truncated.pth", "README.md"] {
        serve(&model_path(&Path::new(GOLDEN).join(name)), name);
    }
    assert!(!std::env::temp_dir().join("pwned").exists());
    let description = model.join("model.toml");
    let text = std::fs::read_to_string(&description).unwrap();
    std::fs::write(&description, text.replace("embed_dim = 16", "embed_dim = 32")).unwrap();
    serve(&model_path(&model), "misshapen base.blocks.0");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("models"), "no folder").unwrap();
    let data = format!("store.data_dir={}", data.display());
    let flags = ["--set", "model.preset=tiny", "--set", &data];
    unusable(&[&["serve"], &PORTS[..], &flags].concat(), "data/models: File exists");
    let cuda = [
        "serve",
        "--set",
        "model.preset=small",
        "--set",
        "encoder.device=cuda:0",
        "--set",
        "store.data_dir=",
    ];
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
fn a_new_key_is_shown_once_beside_the_block_that_the_server_gets() {
    let made =
        run(&["key", "new", "--tenant", "harbour", "--role", "embed", "--role", "match", "--days", "1"]);
    assert!(made.status.success());
    let (block, token) = (String::from_utf8(made.stdout).unwrap(), String::from_utf8(made.stderr).unwrap());
    let keys = KeyRing::parse(&block).unwrap();
    let key = keys.find(token.trim(), SystemTime::now()).unwrap();
    assert_eq!(&*key.tenant, "harbour");
    assert!(key.roles.allow(Role::Match) && !key.roles.allow(Role::Enrol));
    assert!(key.not_after.is_some_and(|end| end > SystemTime::now()));
    assert!(!block.contains(token.trim().rsplit('.').next().unwrap()));
    assert!(!run(&["key", "new", "--role", "root"]).status.success());
}

#[test]
fn a_command_reaches_an_encrypted_server_with_its_key_and_tells_it_to_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    let trusted = authority.write(folder.path().join("authority.pem"));
    let mut keys = Keys::new(folder.path());
    let token = keys.add("reader", "harbour", &[Role::Match]);
    let key_file = folder.path().join("reader.key");
    std::fs::write(&key_file, format!("{token}\n")).unwrap();
    let [certificate, key] = authority.issue(folder.path(), "server", Term::Valid).settings();
    let settings = ["store.data_dir=", &certificate, &key, &keys.setting()];
    let server = Server::start(&imported(folder.path()), &settings);
    let port = server.endpoint.rsplit(':').next().unwrap();
    let list = |endpoint: String, more: &[&str]| {
        let mut command = shipreid();
        command.args(["model", "list", "--endpoint", &endpoint]).args(more);
        command
    };
    let encrypted = || format!("https://localhost:{port}");
    let ca = ["--ca", trusted.to_str().unwrap()];
    let key_file = ["--api-key-file", key_file.to_str().unwrap()];
    assert!(list(encrypted(), &[ca, key_file].concat()).output().unwrap().status.success());
    let mut by_environment = list(encrypted(), &ca);
    assert!(by_environment.env("SHIPREID_API_KEY", &token).output().unwrap().status.success());
    for (mut command, says) in [
        (list(encrypted(), &ca), "KEY_MISSING"),
        (list(encrypted(), &key_file), "UnknownIssuer"),
        (list(format!("http://ships.example:{port}"), &key_file), "over https:// only"),
    ] {
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(says) && !text.contains(&token), "{text}");
        assert_eq!(output.status.code(), Some(1));
    }
    server.terminate();
}

#[test]
fn every_command_explains_itself() {
    for command in [
        &["serve"][..],
        &["embed"],
        &["model", "import"],
        &["model", "inspect"],
        &["model", "list"],
        &["model", "show"],
        &["model", "export"],
        &["model", "activate"],
        &["model", "delete"],
        &["gallery", "list"],
        &["gallery", "show"],
        &["gallery", "list-entries"],
        &["gallery", "merge"],
        &["gallery", "delete"],
        &["match"],
        &["jobs", "list"],
        &["jobs", "show"],
        &["jobs", "delete"],
        &["synth"],
        &["completions"],
        &["man"],
        &["key", "new"],
        &["bench", "closed"],
        &["bench", "open"],
        &["bench", "bare"],
        &["bench", "loader"],
        &["bench", "step"],
        &["train"],
        &["eval"],
        &["calibrate"],
        &["demo"],
    ] {
        let output = run(&[command, &["--help"]].concat());
        assert!(output.status.success(), "{command:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: shipreid"), "{command:?}");
    }
}

#[test]
fn commands_that_take_much_show_how_they_are_typed() {
    for command in [
        &["serve"][..],
        &["embed"],
        &["match"],
        &["train"],
        &["eval"],
        &["calibrate"],
        &["synth"],
        &["completions"],
        &["man"],
        &["key", "new"],
        &["model", "import"],
        &["gallery", "enroll"],
        &["gallery", "list-entries"],
        &["gallery", "merge"],
        &["bench", "closed"],
        &["bench", "open"],
        &["bench", "bare"],
        &["bench", "loader"],
    ] {
        let help = run(&[command, &["--help"]].concat()).stdout;
        let typed = format!("shipreid {} ", command.join(" "));
        let help = String::from_utf8_lossy(&help).into_owned();
        let (_, examples) = help.split_once("Example").unwrap_or_else(|| panic!("{command:?}: {help}"));
        assert!(examples.contains(&typed), "{command:?}: {help}");
    }
}

/// A HOSS folder of four ships, each with four of the recorded images.
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

/// What a finished run says of its model.
fn model_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().find(|line| line.starts_with("model ")).expect("a finished run names its model");
    line.split(' ').nth(1).unwrap().to_owned()
}

/// What a run has logged so far; nothing before it starts.
fn events(root: &Path, out: &str) -> String {
    std::fs::read_to_string(root.join(out).join("events.jsonl")).unwrap_or_default()
}

/// Starts a run and kills it once it has logged so many steps.
fn kill_after(root: &Path, out: &str, steps: usize) {
    let mut run = training(root, out).stdout(Stdio::null()).spawn().unwrap();
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
    steps.iter().for_each(|steps| kill_after(root.path(), "killed", *steps));
    let resumed = training(root.path(), "killed").output().unwrap();
    assert_eq!(events(root.path(), "killed"), expected, "killed at {steps:?}");
    assert_eq!(model_line(&resumed.stdout), model_line(&undisturbed.stdout), "killed at {steps:?}");
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
    // The checkpoint of the first epoch is whole by now.
    assert!(lines.any(|line| line.starts_with("epoch 2:")));
    let bound = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
    // SAFETY: the process is a child that has not been waited for, and the pointers are to a live limit and null.
    let limited = unsafe {
        libc::prlimit(run.id() as libc::pid_t, libc::RLIMIT_FSIZE, &raw const bound, std::ptr::null_mut())
    };
    assert_eq!(limited, 0);
    let output = run.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("File too large"), "{error}");

    let resumed = training(root.path(), "full").output().unwrap();
    let text = String::from_utf8_lossy(&resumed.stdout).into_owned();
    assert!(text.contains("going on after"), "{text}");
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
    assert_eq!((code, &*said), (Some(0), "the configuration starts a run\n"));
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
    let other = ["--set", "model.preset=small"];
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
