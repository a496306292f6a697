//! Signals to the program: during startup, as a container's first process, and while one of its
//! threads hangs.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use shipreid::client::Client;
use shipreid::weights::native::DESCRIPTION;
use shipreid::wire::TrainRequest;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::galleries::data_in;
use crate::program::{PORTS, Server, imported, model_path, shipreid};

/// A file that blocks its reader, like an unreachable network disk.
fn hanging(folder: &Path) -> PathBuf {
    let path = folder.join("hangs");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Returns once a process has opened the file for reading; that process is blocked until the result
/// is dropped.
async fn read_by_somebody(path: &Path) -> File {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || OpenOptions::new().write(true).open(path).unwrap()).await.unwrap()
}

fn signal(process: u32, signal: libc::c_int) {
    let process = i32::try_from(process).unwrap();
    // SAFETY: the process is a child or grandchild that has not been waited for.
    assert_eq!(unsafe { libc::kill(process, signal) }, 0);
}

async fn code(mut process: Child) -> Option<i32> {
    tokio::task::spawn_blocking(move || process.wait().unwrap().code()).await.unwrap()
}

/// `program`, whose last argument is the program's own path, as a server whose start hangs.
async fn starting(mut program: Command, folder: &TempDir) -> (Child, File) {
    let (model, hangs) = (imported(folder.path()), hanging(folder.path()));
    program.arg("serve").args(PORTS).args(["--set", &model_path(&model), "--set", &data_in(folder)]);
    program.args(["--set", &format!("matching.calibrators={}", hangs.display())]);
    let process = program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    (process, read_by_somebody(&hangs).await)
}

#[tokio::test]
async fn a_server_ends_in_order_whenever_it_is_asked_while_it_starts() {
    for asked in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let folder = TempDir::new().unwrap();
        let (process, _hangs) = starting(shipreid(), &folder).await;
        signal(process.id(), asked);
        assert_eq!(code(process).await, Some(0));
    }
}

#[tokio::test]
async fn a_containers_first_process_hears_a_signal_while_it_starts() {
    let folder = TempDir::new().unwrap();
    let mut container = Command::new("unshare");
    container.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
    container.arg(env!("CARGO_BIN_EXE_shipreid"));
    let (process, _hangs) = starting(container, &folder).await;
    let children = format!("/proc/{0}/task/{0}/children", process.id());
    let first = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    signal(first, libc::SIGTERM);
    assert_eq!(code(process).await, Some(0));
}

/// A server with a thread that is blocked reading; the caller that caused it has disconnected.
async fn with_a_hanging_thread(folder: &TempDir, drain_seconds_max: u32) -> (Server, File) {
    // A model folder whose description blocks its reader.
    let start = folder.path().join("start");
    std::fs::create_dir(&start).unwrap();
    let hangs = hanging(&start);
    std::fs::rename(&hangs, start.join(DESCRIPTION)).unwrap();
    let settings = [
        data_in(folder),
        format!("training.data_roots={}", folder.path().display()),
        "training.nice=0".to_owned(),
        format!("server.drain_seconds_max={drain_seconds_max}"),
    ];
    let server = Server::start(&imported(folder.path()), &settings.each_ref().map(String::as_str));
    let client = Client::connect(&server.endpoint).await.unwrap();
    let config_toml = format!(
        r#"
        seed = 1
        objective = "fine_tune"
        data = {{ root = "nowhere", loader_threads = 1 }}
        model = {{ preset = "tiny", size_token = true, drop_path = 0.0 }}
        start = {{ from = "model", path = "{}" }}
        batch = {{ images = 4, images_per_identity = 2 }}
        optimizer = {{ kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }}
        schedule = {{ base_rate = 1e-3, warm_up_epochs = 1, epochs = 2 }}
        checkpoint = {{ epochs = 1, keep = 1 }}
        "#,
        start.display()
    );
    let request = TrainRequest { config_toml, validate_only: true, ..TrainRequest::default() };
    let asking = tokio::spawn(async move { client.ship_re_id().train(request).await.map(drop) });
    let held = read_by_somebody(&start.join(DESCRIPTION)).await;
    asking.abort();
    // The connection closes with its last user.
    assert!(asking.await.unwrap_err().is_cancelled());
    (server, held)
}

#[tokio::test]
async fn a_thread_that_hangs_does_not_keep_the_process() {
    for asked in [libc::SIGTERM, libc::SIGHUP] {
        let folder = TempDir::new().unwrap();
        let (server, _held) = with_a_hanging_thread(&folder, 1).await;
        server.signal(asked);
        let ended = tokio::task::spawn_blocking(|| server.ended()).await.unwrap();
        assert_eq!(ended.code(), Some(0));
    }
}

#[tokio::test]
async fn a_second_signal_ends_a_process_that_waits_for_a_thread() {
    let folder = TempDir::new().unwrap();
    let (server, _held) = with_a_hanging_thread(&folder, 600).await;
    server.signal(libc::SIGTERM);
    // Once the pages are gone, the runtime has shut down as far as it can.
    while TcpStream::connect(server.metrics).await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.signal(libc::SIGTERM);
    let ended = tokio::task::spawn_blocking(|| server.ended()).await.unwrap();
    assert_eq!(ended.code(), Some(3));
}
