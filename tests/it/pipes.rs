//! Commands whose output is not read completely, as with `head -1`: they end like other programs on SIGPIPE.

use std::io::pipe;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::program::{GOLDEN, Server, imported, run, shipreid};

/// Runs a command whose reader has closed the pipe before the first line is printed.
fn ends_quietly(arguments: &[&str]) {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let child = shipreid().args(arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error, "", "{arguments:?}");
    assert_eq!(output.status.signal(), Some(libc::SIGPIPE), "{arguments:?}: {}", output.status);
}

#[test]
fn a_command_whose_reader_has_left_ends_as_by_sigpipe_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let (drawn, checkpoint) = (folder.path().join("drawn"), format!("{GOLDEN}/ckpt_wrapped.pth"));
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["gallery", "--help"],
        &["model", "inspect", &checkpoint, "--heads", "2", "--image", "64x32"],
        &["serve", "--check-config"],
        &["synth", "--ids", "2", "--pairs", "0", "--out", drawn.to_str().unwrap()],
    ] {
        ends_quietly(arguments);
    }
}

#[test]
fn lists_of_a_server_and_embeddings_end_quietly_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("store.data_dir={}", folder.path().join("data").display());
    let server = Server::start(&imported(folder.path()), &[&data]);
    let at = ["--endpoint", &server.endpoint];
    let chip = format!("{GOLDEN}/images/0003_c_25x110_SAR.tif");
    for prepared in [&["create", "harbour"][..], &["enroll", "harbour", &chip, "--vessel", "3"]] {
        assert!(run(&[&["gallery"], prepared, &at].concat()).status.success());
    }
    for command in [
        &["model", "list"][..],
        &["model", "list", "--json"],
        &["model", "show"],
        &["gallery", "list"],
        &["gallery", "list", "--json"],
        &["gallery", "show", "harbour"],
        &["gallery", "list-entries", "harbour"],
        &["gallery", "list-entries", "harbour", "--json"],
        &["gallery", "list-vessels", "harbour"],
        &["gallery", "list-vessels", "harbour", "--json"],
        &["match", &chip, "--gallery", "harbour"],
        &["match", &chip, "--gallery", "harbour", "--json"],
        &["jobs", "list"],
        &["embed", &chip],
        &["embed", &chip, "--json"],
    ] {
        ends_quietly(&[command, &at].concat());
    }
    server.terminate();
}

#[test]
fn wrong_arguments_are_exit_code_2_also_where_nobody_reads_why() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let status = shipreid().arg("embark").stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(2));
}
