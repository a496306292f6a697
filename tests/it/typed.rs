//! The command line as used by people: servers and models by short names, filters, deletions,
//! files; and its output for scripts.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::program::{GOLDEN, Server, imported, run, shipreid};

/// A server with one model and the empty gallery `harbour`, in its own folder.
struct Harbour {
    server: Server,
    folder: tempfile::TempDir,
}

impl Harbour {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = format!("store.data_dir={}", folder.path().join("data").display());
        let server = Server::start(&imported(folder.path()), &[&data]);
        let harbour = Self { server, folder };
        harbour.done(&["gallery", "create", "harbour"]);
        harbour
    }

    /// A command to this server.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = shipreid();
        command.args(arguments).env("SHIPREID_ENDPOINT", &self.server.endpoint);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The output of a command that succeeds.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The same, as JSON.
    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let printed = self.done(&[arguments, &["--json"]].concat());
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Why a command is refused: exit code 2, and one line.
    fn refused(&self, arguments: &[&str]) -> String {
        refusal(&self.run(arguments))
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refusal(output: &Output) -> String {
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

fn image(name: &str) -> String {
    format!("{GOLDEN}/images/{name}")
}

fn ids(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["entry_id"].as_str().unwrap()).collect()
}

#[test]
fn a_server_is_named_by_the_environment_and_needs_no_scheme() {
    let harbour = Harbour::open();
    let listed = |endpoint: &str, flag: &[&str]| {
        let mut command = shipreid();
        command.args(["gallery", "list"]).args(flag).env("SHIPREID_ENDPOINT", endpoint).output().unwrap()
    };
    let bare = harbour.server.endpoint.trim_start_matches("http://").to_owned();
    for (environment, flag) in [(&*bare, &[][..]), ("nowhere:1", &["--endpoint", &bare])] {
        let output = listed(environment, flag);
        assert!(text(&output.stdout).contains("harbour"), "{}", text(&output.stderr));
    }
    assert!(
        refusal(&listed("ftp://ships", &[]))
            .contains("\"ftp://ships\" is not a server address: write host:port")
    );
    assert!(refusal(&listed(&bare, &["--endpoint", "ships"])).contains("\"ships\" is not a server address"));
    let ca = ["--ca", "/dev/null", "--endpoint", "http://127.0.0.1:1"];
    assert!(refusal(&listed(&bare, &ca)).contains("write https://"));
    let unreachable = listed("127.0.0.1:1", &[]);
    assert_eq!(unreachable.status.code(), Some(1));
    assert!(text(&unreachable.stderr).contains("cannot reach http://127.0.0.1:1: "));
    for (endpoint, says) in [
        (harbour.server.metrics.to_string(), "HTTP but not gRPC"),
        (format!("https://{bare}"), "it does not use TLS, write http://"),
    ] {
        let error = text(&listed(&endpoint, &[]).stderr);
        assert!(error.contains(says) && error.lines().count() == 1, "{error}");
    }
    // The environment variable only applies where arguments do not decide between local and remote.
    let folder = harbour.file("imported");
    let checkpoint = format!("{GOLDEN}/ckpt_wrapped.pth");
    let hints = ["--heads", "2", "--image", "64x32"];
    harbour.done(&[&["model", "import", &checkpoint, &folder], &hints[..]].concat());
    assert!(Path::new(&folder).join("model.toml").exists());
    assert!(harbour.done(&[&["model", "import", &checkpoint], &hints[..]].concat()).contains("digest"));
    assert!(refusal(&run(&["model", "import", &checkpoint])).contains("name a folder"));
    assert!(refusal(&run(&["train", "--out", "runs"])).contains("--local FILE"));
    assert!(refusal(&run(&["train", "--local", "x.toml", "--detach"])).contains("--detach"));
}

#[test]
fn the_first_digits_of_a_digest_name_a_model_where_they_are_enough() {
    let harbour = Harbour::open();
    let models = harbour.json(&["model", "list"]);
    let digest = models[0]["digest"].as_str().unwrap();
    let prefix = &digest[..8];
    for digits in [prefix, &digest[..63], digest, &prefix.to_uppercase()] {
        assert_eq!(harbour.json(&["model", "show", digits])[0]["digest"], digest);
    }
    harbour.done(&["embed", &image("0003_c_25x110_SAR.tif"), "--model", prefix]);
    harbour.done(&["gallery", "create", "quay", "--model", prefix]);
    assert_eq!(harbour.json(&["gallery", "show", "quay"])[0]["model"], digest);
    harbour.done(&["model", "activate", prefix]);
    harbour.done(&["model", "export", prefix, &harbour.file("model.zip")]);
    assert!(harbour.refused(&["model", "activate", &digest[..7]]).contains("at least the first 8"));
    assert!(
        harbour.refused(&["model", "show", "harbour.pth"]).contains("harbour.pth is not a digest of a model")
    );
    let other = if prefix == "00000000" { "11111111" } else { "00000000" };
    let unknown = harbour.refused(&["model", "delete", other, "--yes"]);
    assert!(unknown.contains(other) && unknown.contains(digest), "{unknown}");
}

#[test]
fn entries_are_listed_and_matched_by_every_filter_of_the_contract() {
    let harbour = Harbour::open();
    let (optical, sar) = (image("0001_a_33x97_RGB.tif"), image("0003_c_25x110_SAR.tif"));
    let manifest = harbour.file("seen.jsonl");
    let seen = r#"{"file": "0001_a_33x97_RGB.tif", "observed_at": "2026-03-01T04:05:06Z", "latitude": 52, "longitude": 4}"#;
    std::fs::write(&manifest, seen).unwrap();
    let enroll = ["gallery", "enroll", "harbour"];
    harbour.done(
        &[&enroll[..], &[&optical, "--manifest", &manifest, "--vessel", "1", "--label", "port=west"]]
            .concat(),
    );
    harbour.done(&[&enroll[..], &[&sar, "--vessel", "3"]].concat());
    let listed = |filter: &[&str]| harbour.json(&[&["gallery", "list-entries", "harbour"], filter].concat());
    assert_eq!(listed(&[]).len(), 2);
    for filter in [
        &["--among", "optical"][..],
        &["--vessel", "1"],
        &["--label", "port=west"],
        &["--entry", "0001_a_33x97_RGB.tif"],
        &["--from", "2026-03-01T00:00:00Z"],
        &["--from", "2026-03-01T00:00:00Z", "--to", "2026-03-02T00:00:00Z"],
        &["--area", "51.5,3.0,52.5,4.5"],
    ] {
        assert_eq!(ids(&listed(filter)), ["0001_a_33x97_RGB.tif"], "{filter:?}");
        let query = ["match", &sar, "--gallery", "harbour"];
        let matched = harbour.json(&[&query[..], filter].concat());
        assert_eq!(matched[0]["results"][0]["matched"], 1, "{filter:?}: {}", matched[0]);
    }
    let vessels = |filter: &[&str]| harbour.json(&[&["gallery", "list-vessels", "harbour"], filter].concat());
    let found = vessels(&[]);
    assert_eq!(found.iter().map(|vessel| &vessel["vessel_id"]).collect::<Vec<_>>(), ["1", "3"]);
    assert_eq!(found[0]["first_observed_at"], "2026-03-01T04:05:06Z");
    assert_eq!(found[0]["modalities"], serde_json::json!(["MODALITY_OPTICAL"]));
    assert_eq!(vessels(&["--among", "sar"]).len(), 1);
    assert!(harbour.done(&["gallery", "list-vessels", "harbour"]).contains("optical"));
    let missing = harbour.run(&["gallery", "list-vessels", "quay"]);
    assert!(text(&missing.stderr).contains("GALLERY_NOT_FOUND"), "{}", text(&missing.stderr));
    let query = ["match", &sar, "--gallery", "harbour"];
    let answer = &harbour.json(&[&query[..], &["--vessel", "1"]].concat())[0];
    let candidate = &answer["results"][0]["candidates"][0];
    assert_eq!(answer["results"][0]["query_id"], "0003_c_25x110_SAR.tif");
    assert_eq!(candidate["labels"], serde_json::json!({ "port": "west" }));
    assert_eq!(candidate["modality"], "MODALITY_OPTICAL");
    let table = harbour.done(&query);
    assert!(table.contains("2026-03-01T04:05:06Z") && table.contains("52.0000, 4.0000"), "{table}");
    let entry = &listed(&["--vessel", "1"])[0];
    assert_eq!(entry["observation"]["observed_at"], "2026-03-01T04:05:06Z");
    assert_eq!(entry["modality"], "MODALITY_OPTICAL");
    assert!(harbour.done(&["gallery", "list-entries", "harbour"]).contains("0003_c_25x110_SAR.tif"));
    let late = [
        "gallery",
        "list-entries",
        "harbour",
        "--from",
        "2026-03-02T00:00:00Z",
        "--to",
        "2026-03-01T00:00:00Z",
    ];
    assert!(harbour.refused(&late).contains("is not before --to"));

    assert!(
        harbour
            .done(&["gallery", "merge", "harbour", "1", "3", "--into", "1"])
            .contains("1 entries moved to 1")
    );
    assert_eq!(listed(&["--vessel", "1"]).len(), 2);
    assert_eq!(harbour.json(&["gallery", "list"])[0]["vessels"], 1);
    assert!(harbour.refused(&["gallery", "merge", "harbour", "1", "--into", "1"]).contains("only vessel"));
}

#[test]
fn an_image_is_read_from_standard_input_as_well() {
    let harbour = Harbour::open();
    let sar = image("0003_c_25x110_SAR.tif");
    let piped = |arguments: &[&str]| {
        let output = harbour.command(arguments).stdin(File::open(&sar).unwrap()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let from_pipe = piped(&["embed", "-", "--modality", "sar", "--json"]);
    let from_file = &harbour.json(&["embed", &sar])[0];
    assert_eq!(from_pipe["result"], from_file["result"]);
    assert_eq!(
        (&from_pipe["chip_id"], &from_file["chip_id"], &from_pipe["model"]),
        (&"-".into(), &sar.as_str().into(), &from_file["model"])
    );
    let matched = piped(&["match", "-", "--modality", "sar", "--gallery", "harbour", "--json"]);
    assert_eq!(matched["results"][0]["matched"], 0);
}

#[test]
fn a_folder_is_enrolled_without_hidden_files_and_says_what_it_passes_over() {
    let harbour = Harbour::open();
    let ships = harbour.folder.path().join("ships");
    std::fs::create_dir(&ships).unwrap();
    for (from, to) in [
        ("0001_a_33x97_RGB.tif", "1_RGB.TIF"),
        ("0002_b_40x120_RGB.tif", "2_RGB.tiff"),
        ("0003_c_25x110_SAR.tif", "3_SAR.tif"),
    ] {
        std::fs::copy(image(from), ships.join(to)).unwrap();
    }
    std::fs::write(ships.join("._1_RGB.TIF"), b"what macOS leaves").unwrap();
    let notes = ships.join("notes.txt");
    let ships = ships.to_str().unwrap();
    let enroll = ["gallery", "enroll", "harbour", ships, "--modality", "optical"];
    // Nothing is enrolled where a line of the manifest stands for no file.
    let manifest = harbour.file("seen.jsonl");
    std::fs::write(&manifest, "\u{feff}{\"file\": \"pass/9_RGB.TIF\", \"latitude\": null}\n").unwrap();
    let refused = harbour.run(&[&enroll[..], &["--manifest", &manifest]].concat());
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("pass/9_RGB.TIF (line 1)"), "{}", text(&refused.stderr));
    assert!(harbour.json(&["gallery", "list-entries", "harbour"]).is_empty());

    let line = format!("\u{feff}{{\"file\": \"{ships}/1_RGB.TIF\", \"latitude\": 52, \"longitude\": 4}}\n");
    std::fs::write(&manifest, line).unwrap();
    std::fs::write(notes, b"text").unwrap();
    let output = harbour.run(&[&enroll[..], &["--manifest", &manifest]].concat());
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 file (notes.txt) passed over"), "{said}");
    let mut entries = harbour.json(&["gallery", "list-entries", "harbour"]);
    entries.sort_by_key(|entry| entry["entry_id"].to_string());
    assert_eq!(ids(&entries), ["1_RGB.TIF", "2_RGB.tiff", "3_SAR.tif"]);
    assert_eq!(entries[0]["observation"]["latitude"], 52.0);
}

#[test]
fn nothing_is_deleted_unasked_and_no_file_is_replaced() {
    let harbour = Harbour::open();
    let chip = image("0003_c_25x110_SAR.tif");
    harbour.done(&["gallery", "enroll", "harbour", &chip, "--pixel-size", "1.702,1.124"]);
    for deletion in [
        &["gallery", "delete", "harbour"][..],
        &["gallery", "delete", "harbour", "--entry", "0003_c_25x110_SAR.tif"],
        &["model", "delete", "00000000"],
        &["jobs", "delete", "job-1"],
    ] {
        let refused = harbour.refused(deletion);
        assert!(refused.contains("cannot be undone") && refused.contains("--yes"), "{refused}");
    }
    for (command, name) in [
        (&["gallery", "export", "harbour"][..], "harbour.export"),
        (&["embed", &chip, "--npy"], "embeddings.npy"),
    ] {
        let file = harbour.file(name);
        let with = |more: &[&str]| harbour.run(&[command, &[&file], more].concat());
        assert!(with(&[]).status.success());
        let written = std::fs::read(&file).unwrap();
        std::fs::write(&file, "ours").unwrap();
        let refused = refusal(&with(&[]));
        assert!(
            refused.contains(&format!("{file} already exists")) && refused.contains("--force"),
            "{refused}"
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "ours");
        assert!(with(&["--force"]).status.success());
        assert_eq!(std::fs::read(&file).unwrap().len(), written.len());
    }
    harbour.done(&["gallery", "delete", "harbour", "--entry", "0003_c_25x110_SAR.tif", "--yes"]);
    harbour.done(&["gallery", "delete", "harbour", "-y"]);
    assert_eq!(harbour.json(&["gallery", "list"]), Vec::<Value>::new());
}

#[test]
fn a_file_that_is_there_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kept.png");
    std::fs::write(&file, "ours").unwrap();
    let kept = file.to_str().unwrap();
    for command in [
        &["eval", "--data", "/nowhere", "--sheet", kept][..],
        &["calibrate", "--data", "/nowhere", "--out", kept],
        &["calibrate", "--data", "/nowhere", "--out", "/nowhere/new.toml", "--picture", kept],
        &["jobs", "report", "job-1", "--out", kept],
        &["model", "export", "00000000", kept],
        &["gallery", "export", "harbour", kept],
    ] {
        let refused = refusal(&run(command));
        assert!(refused.contains(&format!("{kept} already exists")), "{command:?}: {refused}");
    }
    let device = run(&["gallery", "export", "harbour", "/dev/null", "--force"]);
    assert!(refusal(&device).contains("/dev/null is a device or a pipe"));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "ours");
}

#[test]
fn folders_that_hold_something_are_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let model = imported(folder.path());
    let (place, checkpoint) = (model.to_str().unwrap(), format!("{GOLDEN}/ckpt_wrapped.pth"));
    let import = |place: &str, more: &[&str]| {
        run(&[&["model", "import", &checkpoint, place, "--heads", "2", "--image", "64x32"], more].concat())
    };
    assert!(refusal(&import(place, &[])).contains("replace the model in it with --force"));
    assert!(import(place, &["--force"]).status.success());
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("thesis.tex"), "years").unwrap();
    let other = other.to_str().unwrap();
    assert!(refusal(&import(other, &["--force"])).contains("is not an empty folder"));
    let drawn = run(&["synth", "--ids", "2", "--pairs", "0", "--out", other]);
    assert!(refusal(&drawn).contains("is not an empty folder"));
    assert_eq!(std::fs::read_dir(other).unwrap().count(), 1);
}

#[test]
fn shells_and_man_know_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("list-entries"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("man1");
    let man = |more: &[&str]| run(&[&["man", place.to_str().unwrap()], more].concat());
    assert!(man(&[]).status.success());
    let page = std::fs::read_to_string(place.join("shipreid-gallery-list-entries.1")).unwrap();
    assert!(page.contains("SHIPREID_ENDPOINT") && place.join("shipreid.1").exists(), "{page}");
    assert!(refusal(&man(&[])).contains("--force"));
    assert!(man(&["--force"]).status.success());
}
