//! The program from its users' point of view.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;

use tempfile::NamedTempFile;

pub const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
/// Free ports.
pub const PORTS: [&str; 4] =
    ["--set", "server.listen=127.0.0.1:0", "--set", "server.metrics_listen=127.0.0.1:0"];

pub fn shipreid() -> Command {
    Command::new(env!("CARGO_BIN_EXE_shipreid"))
}

pub fn run(arguments: &[&str]) -> Output {
    shipreid().args(arguments).output().unwrap()
}

pub fn model_path(path: &Path) -> String {
    format!("model.path={}", path.display())
}

/// The recorded micro checkpoint in our model format.
pub fn imported(folder: &Path) -> PathBuf {
    let model = folder.join("micro");
    let checkpoint = format!("{GOLDEN}/ckpt_wrapped.pth");
    let place = model.to_str().unwrap();
    let output = run(&["model", "import", &checkpoint, place, "--heads", "2", "--image", "64x32"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    model
}

/// A server in a separate process. It is killed when it goes out of scope; a panic in its log then
/// fails the test.
pub struct Server {
    process: Child,
    /// `None` if the log is not read.
    log: Option<NamedTempFile>,
    pub endpoint: String,
    /// The address of its HTTP pages.
    pub metrics: SocketAddr,
}

impl Server {
    /// Serves `model` with settings in the form `section.key=value`.
    pub fn start(model: &Path, settings: &[&str]) -> Self {
        Self::start_as(shipreid(), model, settings)
    }

    /// The same through `program`, whose last argument is the program's own path.
    pub fn start_as(program: Command, model: &Path, settings: &[&str]) -> Self {
        Self::launch(program, model, settings, Some(NamedTempFile::new().unwrap()))
    }

    /// The same with a log that is not read.
    pub fn start_unread(model: &Path, settings: &[&str]) -> Self {
        Self::launch(shipreid(), model, settings, None)
    }

    fn launch(mut program: Command, model: &Path, settings: &[&str], log: Option<NamedTempFile>) -> Self {
        program.arg("serve").args(PORTS).args(["--set", &model_path(model)]);
        // Load balancers need no notice before a test's server shuts down.
        program.args(["--set", "server.drain_notice_seconds=0"]);
        for setting in settings {
            program.args(["--set", setting]);
        }
        let stderr = log.as_ref().map_or_else(Stdio::piped, |log| log.reopen().unwrap().into());
        let mut process = program.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
        let address = lines.next().expect("a line");
        let address = address.strip_prefix("gRPC on ").expect("the first line names the port").to_owned();
        let metrics = lines.next().expect("a line");
        let metrics = metrics.strip_prefix("metrics on http://").expect("the second line names the other");
        let metrics = metrics.trim_end_matches("/metrics").parse().unwrap();
        Self { process, log, endpoint: format!("http://{address}"), metrics }
    }

    /// A path from the server's point of view, which may have its own disk mounted.
    pub fn path(&self, path: &Path) -> PathBuf {
        let root = Path::new("/proc").join(self.process.id().to_string()).join("root");
        root.join(path.strip_prefix("/").unwrap())
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        let log = self.log.as_ref().expect("somebody reads it");
        String::from_utf8_lossy(&std::fs::read(log.path()).unwrap()).into_owned()
    }

    /// The memory mappings of its process, from Linux.
    pub fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.process.id())).unwrap()
    }

    /// Asks the server to terminate, and waits until it has.
    pub fn terminate(self) {
        self.signal(libc::SIGTERM);
        assert!(self.ended().success());
    }

    pub fn signal(&self, signal: libc::c_int) {
        let pid = i32::try_from(self.process.id()).unwrap();
        // SAFETY: the process is a child that has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Sets the limit on its descriptors; descriptors that are already open stay open.
    pub fn limit_descriptors(&self, current: u64, most: u64) {
        let limit = libc::rlimit { rlim_cur: current, rlim_max: most };
        let pid = i32::try_from(self.process.id()).unwrap();
        // SAFETY: the call only reads the limit, which outlives it.
        let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    }

    /// Waits until the server has exited.
    pub fn ended(mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    /// SIGKILL, to simulate a crash.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that a test has terminated has already exited.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if self.log.is_some() && !thread::panicking() {
            check_log(&self.log());
        }
    }
}

/// A server must never panic, even if it continues afterwards.
pub fn check_log(log: &str) {
    if let Some(at) = log.find("panicked") {
        let line = log[..at].rfind('\n').map_or(0, |end| end + 1);
        panic!("a server has panicked: {}", &log[line..]);
    }
}

#[test]
#[should_panic(expected = "a server has panicked: thread 'main' panicked at src/x.rs")]
fn a_panic_in_the_log_of_a_server_fails_a_test() {
    let mut program = Command::new("sh");
    let script = "echo a line >&2; echo \"thread 'main' panicked at src/x.rs\" >&2
        echo gRPC on 127.0.0.1:1; echo metrics on http://127.0.0.1:1/metrics; exec cat";
    program.args(["-c", script]).stdin(Stdio::piped());
    Server::start_as(program, Path::new("none"), &[]).kill();
}
