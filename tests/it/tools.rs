//! External programs that some tests need; without them such a test reports what is missing.

use std::io::Write;
use std::process::Command;

/// The first of these programs that is not installed.
pub fn missing(programs: &[&'static str]) -> Option<&'static str> {
    let is_missing = |program: &&str| Command::new(program).arg("--version").output().is_err();
    programs.iter().copied().find(is_missing)
}

/// The Python of `make python`, if it has these modules.
pub fn python(modules: &str) -> Option<String> {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/bin/python");
    let found = Command::new(python).args(["-c", &format!("import {modules}")]).output();
    found.is_ok_and(|output| output.status.success()).then(|| python.to_owned())
}

/// Not a print macro: the test runner would capture the output.
pub fn skipped(test: &str, cause: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: {test}: {cause}").unwrap();
}
