//! The program from its users' point of view: serve, embed, import, and its error messages.

use std::io::BufRead;
use std::path::Path;
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
    assert_eq!(lines[0]["chip_id"], chips[0]);
    assert_eq!(lines[1]["result"]["embedding"]["values"].as_array().unwrap().len(), 16);

    let array = folder.path().join("embeddings.npy");
    assert!(embed(&["--npy", array.to_str().unwrap()]).status.success());
    let bytes = std::fs::read(array).unwrap();
    assert!(bytes.starts_with(b"\x93NUMPY"));
    // The two calls may have been batched differently, which moves the last bits of an embedding.
    let last = f32::from_le_bytes(*bytes.last_chunk().unwrap());
    assert!((last - last_value(&lines[1])).abs() < 2e-5, "{last}");

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
    line["result"]["embedding"]["values"].as_array().unwrap().last().unwrap().as_f64().unwrap() as f32
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

    // The record has a copy.
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
    for (galleries, message) in [
        ("matching.galleries=harbour*", "matching.galleries needs store.url"),
        ("matching.galleries=Harbour", "\"Harbour\" is no pattern of galleries"),
    ] {
        unusable(&["serve", "--check-config", "--set", galleries], message);
    }
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
        &["gallery", "list-vessels"],
        &["gallery", "merge"],
        &["gallery", "migrate"],
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
        &["bench", "forward"],
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
        &["gallery", "list-vessels"],
        &["gallery", "merge"],
        &["bench", "closed"],
        &["bench", "open"],
        &["bench", "bare"],
        &["bench", "forward"],
        &["bench", "loader"],
    ] {
        let help = run(&[command, &["--help"]].concat()).stdout;
        let typed = format!("shipreid {} ", command.join(" "));
        let help = String::from_utf8_lossy(&help).into_owned();
        let (_, examples) = help.split_once("Example").unwrap_or_else(|| panic!("{command:?}: {help}"));
        assert!(examples.contains(&typed), "{command:?}: {help}");
    }
}
