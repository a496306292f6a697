//! A client in another language, from the protos alone.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::galleries::data_in;
use crate::server::start;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The Python of `make python`, if it has what the client needs.
fn python() -> Option<String> {
    let python = format!("{ROOT}/.venv/bin/python");
    let imports = "import grpc, grpc_tools, grpc_status, grpc_health, grpc_reflection";
    let found = Command::new(&python).args(["-c", imports]).output();
    found.is_ok_and(|output| output.status.success()).then_some(python)
}

/// Runs a script against a server with these settings; says so by name where there is nothing to run it with.
async fn run(script: &str, settings: &[&str]) {
    let Some(python) = python() else {
        // Not a print macro: the runner would keep that to itself.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "skipped: {script}: no grpcio in .venv (make python)").unwrap();
        return;
    };
    let (server, _client) = start(settings).await;
    let mut client = Command::new(python);
    client.arg(Path::new(ROOT).join("tests/python").join(script));
    client.arg(server.address.to_string()).arg(Path::new(ROOT).join("tests/golden/images"));
    let output = tokio::task::spawn_blocking(move || client.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.stop().await;
}

#[tokio::test]
async fn a_python_client_is_served_and_refused_as_the_contract_says() {
    run("embed.py", &[]).await;
}

#[tokio::test]
async fn a_python_client_enrols_finds_corrects_copies_and_deletes_ships() {
    let folder = tempfile::tempdir().unwrap();
    run("galleries.py", &[&data_in(&folder)]).await;
}
