//! `make gpu-check`, on the CPU: every step of the script, its table, and its messages when nothing
//! can be checked.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use crate::tools::{missing, skipped};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu_check.py");

/// The script with the program from this build.
fn check(tests: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("python3");
    command.arg(SCRIPT).arg("--short").args(["--binary", env!("CARGO_BIN_EXE_shipreid")]);
    command.arg("--tests").arg(tests).args(arguments).output().unwrap()
}

/// The library's tests, which cargo has built next to this binary; `None` if they were not built.
fn library_tests() -> Option<PathBuf> {
    let beside = std::env::current_exe().unwrap();
    let files = std::fs::read_dir(beside.parent().unwrap()).unwrap().map(|file| file.unwrap().path());
    let named = files.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("shipreid-") && path.extension().is_none()
    });
    let holds_goldens = |path: &PathBuf| {
        let listed = Command::new(path).args(["--list", "model::transoss::golden"]).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).contains("model::transoss::golden::")
    };
    let built =
        |path: &PathBuf| path.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    named.filter(holds_goldens).max_by_key(built)
}

/// A program that prints this on its standard output.
fn stand_in(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("tests");
    std::fs::write(&path, format!("#!/bin/sh\ncat <<'END'\n{text}\nEND\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Cells of a table's rows, without its head.
fn rows(output: &Output) -> Vec<Vec<String>> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let mut rows: Vec<Vec<String>> = text.lines().map(cells).collect();
    assert_eq!(rows.remove(0), ["what", "value", "bound", "verdict"], "{text}");
    rows.remove(0);
    rows
}

fn row<'a>(rows: &'a [Vec<String>], what: &str) -> &'a [String] {
    rows.iter().find(|row| row[0] == what).unwrap_or_else(|| panic!("no row {what}: {rows:?}"))
}

#[test]
fn every_step_passes_on_the_cpu() {
    let name = "every_step_passes_on_the_cpu";
    if let Some(program) = missing(&["python3"]) {
        return skipped(name, &format!("{program} is not installed"));
    }
    let Some(tests) = library_tests() else {
        return skipped(name, "the tests of the library were not built");
    };
    let output = check(&tests, &["--device", "cpu"]);
    let error = String::from_utf8_lossy(&output.stderr);
    let rows = rows(&output);
    assert!(output.status.success(), "{rows:?}\n{error}");
    for what in [
        "every variant and batch gives the recorded features",
        "every kernel points in bf16 and in int8 where f32 does",
        "training moves the neck and drops branches",
        "three fine tuning steps are the recorded ones",
        "tiny f32: chips in a batch, mean",
        "tiny f32: calls failed",
        "training tiny f32: loss",
        "its growth over swaps 4 to 6",
    ] {
        assert_eq!(row(&rows, what)[3], "ok", "{rows:?}");
    }
    let golden = row(&rows, "every variant and batch gives the recorded features");
    let [found, bound] = [&golden[1], &golden[2]].map(|number| number.parse::<f64>().unwrap());
    assert!(found > 0.0 && found <= bound && bound == 2e-5, "{golden:?}");
    assert_eq!(row(&rows, "device")[1], "cpu");
}

#[test]
fn a_device_that_is_not_there_is_one_line_and_exit_code_2() {
    if let Some(program) = missing(&["python3"]) {
        return skipped("a_device_that_is_not_there", &format!("{program} is not installed"));
    }
    let folder = tempfile::tempdir().unwrap();
    let tests = stand_in(folder.path(), "");
    let refused = |arguments: &[&str], cause: &str| {
        let output = check(&tests, arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{error}");
        assert!(error.contains(cause) && output.stdout.is_empty(), "{error}");
    };
    refused(&["--device", "cuda:99"], "cuda:99 is not available");
    refused(&["--device", "gpu"], "invalid value 'gpu'");
    refused(&["--device", "cpu", "--torch", "/nowhere"], "no libtorch in /nowhere");
    refused(&["--device", "cpu", "--binary", "/nowhere"], "/nowhere is not there or cannot be run");
}

#[test]
fn a_test_that_fails_or_is_missing_fails_the_check() {
    if let Some(program) = missing(&["python3"]) {
        return skipped("a_test_that_fails_or_is_missing", &format!("{program} is not installed"));
    }
    let folder = tempfile::tempdir().unwrap();
    let golden = "model::transoss::golden";
    let said = format!(
        "test {golden}::a_branch_is_dropped_as_recorded ... difference 1e-7 of 1e-6 in a\n\
         difference 3e-6 of 1e-6 in b\nFAILED\n\
         test {golden}::every_stage_gives_the_recorded_activations ... difference 1e-5 of 2e-5 in a\n\
         difference 1e-6 of 1e-6 in b\ndifference 1e-9 of 1e-4 in c\nok"
    );
    let tests = stand_in(folder.path(), &said);
    let output = check(&tests, &["--device", "cpu", "--step", "serving goldens"]);
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&output);
    let cells = |what| row(&rows, what)[1..].to_vec();
    assert_eq!(cells("a branch is dropped as recorded"), ["3.0e-06", "1.0e-06", "FAILED"]);
    assert_eq!(cells("every stage gives the recorded activations"), ["1.0e-06", "1.0e-06", "ok"]);
    assert_eq!(cells("training moves the neck and drops branches"), ["-", "-", "FAILED"], "it did not run");
}

#[test]
fn another_libtorch_is_named_and_tried() {
    if let Some(program) = missing(&["python3"]) {
        return skipped("another_libtorch_is_named_and_tried", &format!("{program} is not installed"));
    }
    let folder = tempfile::tempdir().unwrap();
    let given = std::env::var_os("LIBTORCH").expect("cargo sets it");
    symlink(Path::new(&given).canonicalize().unwrap().join("lib"), folder.path().join("lib")).unwrap();
    std::fs::write(folder.path().join("version.py"), "__version__ = '2.8.0+cu128'\n").unwrap();
    let torch = folder.path().to_str().unwrap();
    let tests = stand_in(folder.path(), "");
    let output = check(&tests, &["--device", "cpu", "--torch", torch, "--step", "machine"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = rows(&output);
    let libtorch = row(&rows, "libtorch");
    assert!(
        libtorch[1].starts_with("2.8.0+cu128 in ") && libtorch[3] == "pinned is 2.13.0; tried",
        "{libtorch:?}"
    );
}
