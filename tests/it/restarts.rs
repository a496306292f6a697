//! Callers over restarts and crashes of a server, with the service config that docs/operations.md documents.

use std::io::{BufRead, BufReader, Lines};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::galleries::data_in;
use crate::program::{GOLDEN, Server, imported};
use crate::tools::{python, skipped};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SCRIPT: &str = "tests/python/restarts.py";

/// Unary calls and streams that are answered between two restarts.
const CALLS: usize = 40;
const STREAMS: usize = 2;

/// A client that calls in loops, and prints a line whenever it is answered.
struct Caller {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Caller {
    fn start(python: &str, address: &str, server: &str) -> Self {
        let mut command = Command::new(python);
        command.arg(Path::new(ROOT).join(SCRIPT)).arg(address);
        command.args([&format!("{GOLDEN}/images"), &format!("{ROOT}/docs/operations.md"), server]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    fn is_served(&mut self) {
        let (mut calls, mut streams) = (0, 0);
        while calls < CALLS || streams < STREAMS {
            match self.lines.next().expect("it calls until it is told to stop").unwrap().as_str() {
                "answered" => calls += 1,
                "enrolled" => streams += 1,
                other => panic!("{other}"),
            }
        }
    }

    fn ends_without_a_loss(mut self) {
        drop(self.process.stdin.take());
        self.lines.by_ref().for_each(|line| drop(line.unwrap()));
        assert!(self.process.wait().unwrap().success(), "it says why");
    }
}

/// In place of a server, closes so many connections at once.
fn refuse(address: &str, connections: usize) {
    let listener = TcpListener::bind(address).unwrap();
    listener.incoming().take(connections).for_each(|connection| drop(connection.unwrap()));
}

/// A caller over restarts that each begin with `signal`; before a server is back, so many connections are refused.
fn check(signal: libc::c_int, refused: &[usize]) {
    let Some(python) = python("grpc, grpc_tools, grpc_status") else {
        return skipped(SCRIPT, "no grpcio in .venv (make python)");
    };
    let folder = TempDir::new().unwrap();
    let (model, data) = (imported(folder.path()), data_in(&folder));
    let mut server = Server::start(&model, &[&data]);
    let address = server.endpoint.strip_prefix("http://").unwrap().to_owned();
    let listen = format!("server.listen={address}");
    let is_killed = signal == libc::SIGKILL;
    let mut caller = Caller::start(&python, &address, if is_killed { "killed" } else { "restarted" });
    for refused in refused {
        caller.is_served();
        server.signal(signal);
        let ended = server.ended();
        assert_eq!(ended.signal().or(ended.code()), Some(if is_killed { signal } else { 0 }));
        refuse(&address, *refused);
        server = Server::start(&model, &[&data, &listen]);
    }
    caller.is_served();
    caller.ends_without_a_loss();
    server.terminate();
}

#[test]
fn a_caller_with_the_documented_service_config_loses_no_call_over_restarts() {
    // The last one takes longer than five attempts alone would wait.
    check(libc::SIGTERM, &[0, 1, 3]);
}

#[test]
fn a_caller_with_the_documented_service_config_loses_no_entry_over_crashes() {
    check(libc::SIGKILL, &[0, 1]);
}
