//! The program on processors with fewer features: its one-line refusals, and its messages otherwise.

use std::process::Output;

use shipreid::arithmetic::{Kernel, Precision};
use shipreid::processor::{LIMIT, Level, Processor};

use crate::program::{PORTS, Server, imported, shipreid};
use crate::runs::{drawn_training_set, training};
use crate::server::page;

const CHECK: [&str; 4] = ["serve", "--check-config", "--set", "model.preset=tiny"];

/// Runs the program limited to one level of this processor.
fn run_with(level: &str, arguments: &[&str]) -> Output {
    shipreid().args(arguments).env(LIMIT, level).output().unwrap()
}

/// Expects exit code 2, and returns the single line of output.
fn refusal(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!((error.lines().count(), output.stdout.len()), (1, 0), "{error}");
    error
}

/// Expects exit code 0, and returns the output.
fn report(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The levels of this processor that can run models.
fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| *level != Level::Portable && Processor::here().has(*level))
}

#[test]
fn less_than_the_minimum_is_one_line_and_exit_code_2() {
    let serve = [&["serve", "--set", "model.preset=tiny", "--set", "store.data_dir="], &PORTS[..]].concat();
    let train = ["train", "--local", "/nowhere/train.toml", "--out", "/nowhere"];
    let step = ["bench", "step", "/nowhere/train.toml"];
    for command in [&serve[..], &CHECK, &train, &step] {
        let error = refusal(&run_with("portable", command));
        assert!(error.contains("SHIPREID_CPU_MAX=portable leaves less than x86-64-v3"), "{error}");
        let error = refusal(&run_with("sse9", command));
        assert!(error.contains("SHIPREID_CPU_MAX is \"sse9\"; it must be one of portable, avx2,"), "{error}");
    }
}

#[test]
fn a_kernel_that_the_processor_cannot_run_is_refused_where_it_is_asked_for_by_name() {
    let forced = ["--set", "encoder.precision=bf16", "--set", "encoder.linear=onednn"];
    let error = refusal(&run_with("avx2", &[&CHECK[..], &forced].concat()));
    assert!(error.contains("onednn in bf16 needs avx512 or avx2_vnni_2"), "{error}");
    assert!(error.contains("set encoder.linear to \"auto\", or encoder.precision to \"f32\""), "{error}");
    let serve = [&["serve", "--set", "model.preset=tiny", "--set", "store.data_dir="], &PORTS[..]].concat();
    let error = refusal(&run_with("avx2", &[&serve[..], &forced].concat()));
    assert!(error.contains("onednn in bf16 needs avx512 or avx2_vnni_2"), "{error}");
}

#[test]
fn bf16_is_served_or_refused_with_its_ratio_at_every_level() {
    let bf16 = |level: Level, more: &[&str]| {
        let arguments = [&CHECK[..], &["--set", "encoder.precision=bf16"], more].concat();
        run_with(level.name(), &arguments)
    };
    for level in levels() {
        let error = refusal(&bf16(level, &["--set", "encoder.precision_speed_min=100"]));
        assert!(error.contains("bf16 runs at ") && error.contains(" of the speed of f32"), "{error}");
        assert!(error.contains("or encoder.precision_speed_min to 0"), "{error}");
        let said = report(&bf16(level, &["--set", "encoder.precision_speed_min=0"]));
        assert!(said.contains(&format!("of the speed of f32 on this processor ({level})")), "{said}");
    }
    if Kernel::OneDnn.check(Precision::Bf16, Processor::here()).is_err() {
        let error = refusal(&bf16(Processor::here().level(), &[]));
        assert!(
            error.contains("of the speed of f32"),
            "without instructions for it, bf16 is no choice: {error}"
        );
    }
}

#[test]
fn int8_is_served_at_every_level_by_its_own_kernel_alone() {
    let int8 = |level: Level, more: &[&str]| {
        run_with(level.name(), &[&CHECK[..], &["--set", "encoder.precision=int8"], more].concat())
    };
    for level in levels() {
        let said = report(&int8(level, &["--set", "encoder.precision_speed_min=0"]));
        assert!(said.contains(" in int8, by chips in a batch: int8 1 to 8"), "{said}");
    }
    let error = refusal(&int8(Processor::here().level(), &["--set", "encoder.linear=onednn"]));
    assert!(error.contains("onednn does not compute in int8; set encoder.linear to \"auto\""), "{error}");
}

#[test]
fn the_choice_is_in_the_answer_to_check_config_and_in_a_metric() {
    let said = report(&shipreid().args(CHECK).output().unwrap());
    let processor = Processor::here();
    assert!(said.starts_with(&format!("the configuration is valid\nprocessor: {processor}\n")), "{said}");
    assert!(said.contains("instruction sets: avx avx2 bmi1 bmi2"), "{said}");
    assert!(said.contains("linear layers of width 192 in f32, by chips in a batch: "), "{said}");
    for batch in [1, 2, 4, 8] {
        let timings = said.lines().find(|line| line.starts_with(&format!("  a batch of {batch}: ")));
        let timings = timings.expect("every batch is timed");
        assert!(timings.contains("aten ") && timings.contains("onednn "), "{timings}");
    }
    let forced = report(&shipreid().args(CHECK).args(["--set", "encoder.linear=onednn"]).output().unwrap());
    assert!(forced.contains(": onednn 1 to 8\n"), "{forced}");
}

#[tokio::test]
async fn a_server_shows_one_kernel_for_every_batch() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&imported(folder.path()), &["store.data_dir="]);
    let page = page(server.metrics, "/metrics").await;
    let level = Processor::here().level();
    for batch in [1, 2, 4, 8] {
        let computes = |kernel: &Kernel| {
            let kernel = kernel.name();
            let labels = format!("kernel=\"{kernel}\",precision=\"f32\",isa=\"{level}\",batch=\"{batch}\"");
            let series = format!("shipreid_linear_kernel_info{{{labels}}} 1");
            page.lines().any(|line| line == series)
        };
        assert_eq!(Kernel::of(Precision::F32).iter().filter(|kernel| computes(kernel)).count(), 1, "{page}");
        let timing = format!(
            "shipreid_linear_timing_seconds{{kernel=\"aten\",precision=\"f32\",batch=\"{batch}\"}} 0."
        );
        assert!(page.contains(&timing), "{page}");
    }
    server.terminate();
}

#[test]
fn a_run_in_a_precision_that_is_too_slow_does_not_start() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let mut run = training(root.path(), "out");
    run.args(["--set", "model.precision=bf16", "--set", "model.precision_speed_min=100"]);
    let error = refusal(&run.stderr(std::process::Stdio::piped()).output().unwrap());
    assert!(error.contains("model.precision is refused: bf16 runs at "), "{error}");
    assert!(error.contains("model.precision_speed_min = 0 trains all the same"), "{error}");
}
