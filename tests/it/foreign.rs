//! A client in another language, from the protos alone.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::server::start;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The Python of `make python`, if it has what the client needs.
fn python() -> Option<String> {
    let python = format!("{ROOT}/.venv/bin/python");
    let imports = "import grpc, grpc_tools, grpc_status, grpc_health, grpc_reflection";
    let found = Command::new(&python).args(["-c", imports]).output();
    found.is_ok_and(|output| output.status.success()).then_some(python)
}

#[tokio::test]
async fn a_python_client_is_served_and_refused_as_the_contract_says() {
    let Some(python) = python() else {
        // Not a print macro: the runner would keep that to itself.
        writeln!(std::io::stderr(), "skipped: a_python_client: no grpcio in .venv (make python)").unwrap();
        return;
    };
    let (server, _client) = start(&[]).await;
    let script = Path::new(ROOT).join("tests/python/embed.py");
    let output = tokio::task::spawn_blocking({
        let address = server.address.to_string();
        let images = Path::new(ROOT).join("tests/golden/images");
        move || Command::new(python).arg(script).arg(address).arg(images).output().unwrap()
    });
    let output = output.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.stop().await;
}
