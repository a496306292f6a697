//! Restarts of servers one after the other, behind HAProxy.

use std::process::Command;

use crate::tools::{missing, python, skipped};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/rolling_cluster.py");

#[test]
fn no_call_fails_while_three_servers_are_restarted() {
    let Some(python) = python("grpc, grpc_tools, grpc_status") else {
        return skipped(SCRIPT, "no grpcio in .venv (make python)");
    };
    if missing(&["haproxy"]).is_some() || !std::path::Path::new("/usr/lib/postgresql").exists() {
        return skipped(SCRIPT, "no HAProxy or PostgreSQL (make operators)");
    }
    let mut rolling = Command::new(python);
    rolling.args([SCRIPT, "--server", env!("CARGO_BIN_EXE_shipreid"), "--calls", "300"]);
    let output = rolling.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
