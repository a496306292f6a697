//! A client in another language, generated only from the protos.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use shipreid::keys::Role;

use crate::certificates::{Authority, Pair, Term};
use crate::galleries::data_in;
use crate::identity::Keys;
use crate::server::{start, start_alone};
use crate::tools::{python, skipped};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The modules that the clients import.
const MODULES: &str = "grpc, grpc_tools, grpc_status, grpc_health, grpc_reflection, numpy, PIL";

/// Runs a script against a server with these settings; reports what is missing if it cannot run.
async fn run(script: &str, settings: &[&str]) {
    let (server, _client) = start(settings).await;
    let address = server.address.to_string();
    call(script, &[&address, &format!("{ROOT}/tests/golden/images")]).await;
    server.stop().await;
}

async fn call(script: &str, arguments: &[&str]) {
    let Some(python) = python(MODULES) else {
        return skipped(script, "no grpcio in .venv (make python)");
    };
    let mut client = Command::new(python);
    client.arg(Path::new(ROOT).join("tests/python").join(script)).args(arguments);
    let output = tokio::task::spawn_blocking(move || client.output().unwrap()).await.unwrap();
    let [said, complained] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    println!("{said}");
    assert!(output.status.success(), "{complained}");
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

/// One name is not what it was, `TimeRange.from`: callers that were built with it are served all the same.
#[tokio::test]
async fn a_client_generated_from_the_first_contract_is_served_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    run("old_client.py", &[&data_in(&folder)]).await;
}

#[tokio::test]
async fn a_python_client_is_let_in_as_its_keys_and_certificates_say() {
    let folder = tempfile::tempdir().unwrap();
    let keys = keys_of_every_kind(folder.path());
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let trusted = authority.write(folder.path().join("authority.pem"));
    stranger.write(folder.path().join("stranger.pem"));
    let issued = |name, term| authority.issue(folder.path(), name, term);
    let (server, expired) = (issued("server", Term::Valid), issued("expired", Term::Expired));
    let mutual = issued("mutual", Term::Valid);
    for (name, term) in
        [("second", Term::Valid), ("third", Term::Valid), ("caller", Term::Valid), ("late", Term::Expired)]
    {
        issued(name, term);
    }
    stranger.issue(folder.path(), "outsider", Term::Valid);

    let client_ca = format!("tls.client_ca={}", trusted.display());
    let fixed = [
        keys.setting(),
        "auth.reload_seconds=0.01".into(),
        // Every wrong key is tried with every method.
        "auth.rejections_per_second_max=0".into(),
        "tls.reload_seconds=0.01".into(),
    ];
    let start = async |pair: Option<&Pair>, more: &[&str]| {
        let tls = pair.map(Pair::settings).into_iter().flatten().collect::<Vec<_>>();
        let settings = fixed.iter().chain(&tls).map(String::as_str);
        start_alone(&settings.chain(more.iter().copied()).collect::<Vec<_>>()).await
    };
    let servers = [
        ("tls", start(Some(&server), &[]).await),
        ("mutual", start(Some(&mutual), &[&client_ca]).await),
        ("expired", start(Some(&expired), &[]).await),
        ("plain", start(None, &[]).await),
    ];
    let ports = servers.each_ref().map(|(name, server)| format!("{name}={}", server.address.port()));
    let images = format!("{ROOT}/tests/golden/images");
    let fixed = [folder.path().to_str().unwrap(), &images];
    call("auth.py", &fixed.into_iter().chain(ports.iter().map(String::as_str)).collect::<Vec<_>>()).await;
    for (_, server) in servers {
        server.stop().await;
    }
}

/// A key for each role, an expired one and one that will be revoked; `tokens.json` has their tokens.
fn keys_of_every_kind(folder: &Path) -> Keys {
    let mut keys = Keys::new(folder);
    let mut tokens = serde_json::Map::new();
    for role in Role::EVERY {
        tokens.insert(role.name().into(), keys.add(role.name(), "harbour", &[role]).into());
    }
    tokens.insert("revoked".into(), keys.add("revoked", "harbour", &[Role::Embed]).into());
    let past = SystemTime::now() - Duration::from_secs(60);
    tokens.insert("expired".into(), keys.add_until("expired", past).into());
    std::fs::write(folder.join("tokens.json"), serde_json::Value::from(tokens).to_string()).unwrap();
    keys
}

/// The program, which the client starts itself.
#[cfg(feature = "torch")]
mod program {
    use super::*;
    use crate::tools::missing;

    #[tokio::test]
    async fn a_bad_neighbour_costs_a_good_tenant_none_of_its_calls() {
        if let Some(program) = missing(&["openssl", "prlimit"]) {
            return skipped("hostile.py", &format!("no {program}"));
        }
        let program = env!("CARGO_BIN_EXE_shipreid");
        call("hostile.py", &["--server", program, "--seconds", "6", "--entries", "2000"]).await;
    }
}
