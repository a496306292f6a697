//! Levels, and everything that depends on them, tested at each level that this processor has.

use std::io::Write;
use std::process::Command;

use super::*;

#[test]
fn a_level_includes_what_it_is_built_on() {
    assert!(Level::Avx512Bf16.includes(Level::Avx512) && Level::Avx512Bf16.includes(Level::Portable));
    assert!(!Level::Avx512.includes(Level::Avx512Vnni));
    assert!(!Level::Avx512Bf16.includes(Level::Avx2Vnni2), "the two ways beyond AVX2 are apart");
    for level in Level::ALL {
        assert_eq!(Processor::with(level).level(), level);
        assert_eq!(Processor::with(level).sets().count(), Processor::with(level).sets.len());
    }
}

#[test]
fn a_limit_hides_what_is_above_it() {
    let limited = |limit| Processor { limit: Some(limit), ..Processor::with(Level::Amx) };
    for level in Level::ALL.into_iter().filter(|level| *level != Level::Avx2Vnni2) {
        assert_eq!(limited(level).level(), level);
    }
    assert_eq!(limited(Level::Avx2Vnni2).level(), Level::Avx2);
    assert!(limited(Level::Avx2).sets().all(|set| !set.starts_with("avx512")));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn less_than_the_minimum_is_refused_by_name() {
    let check = |processor: &Processor, expected: Option<&str>| {
        let found = processor.suffices().err().map(|cause| cause.to_string());
        assert_eq!(found.as_deref(), expected);
    };
    check(&Processor::with(Level::Avx2), None);
    check(&Processor { limit: Some(Level::Avx2), ..Processor::with(Level::Avx512) }, None);
    let mut ivy_bridge = Processor::with(Level::Avx2);
    ivy_bridge.sets = vec!["avx", "f16c"];
    check(
        &ivy_bridge,
        Some(
            "this processor (a test) has no avx2, bmi1, bmi2, fma, lzcnt, movbe: models and searches need x86-64-v3",
        ),
    );
    check(
        &Processor { limit: Some(Level::Portable), ..Processor::with(Level::Avx2) },
        Some("SHIPREID_CPU_MAX=portable leaves less than x86-64-v3, which models and searches need"),
    );
}

/// Tests of what depends on the processor: the network and its kernels, training, the products of a search.
const DEPENDENT: &[&str] = if cfg!(feature = "torch") {
    &[
        "model::",
        "train::learner::",
        "train::losses::",
        "train::heads::",
        "gallery::index::kernel::",
        "int8::",
    ]
} else {
    &["gallery::index::kernel::", "int8::"]
};

/// Every library reads its limit once per process, so each level runs in its own process. The run that
/// contains this test covers all that the processor supports.
#[test]
fn networks_and_searches_are_right_at_every_level_of_this_processor() {
    let processor = Processor::here();
    for level in Level::ALL {
        if !processor.has(level) {
            tell(&format!("not on this processor: {level} ({})", processor.name()));
            continue;
        }
        let mut tests = Command::new(std::env::current_exe().expect("this program"));
        // What ranks exchange depends on no kernel.
        tests
            .args(DEPENDENT)
            .args(["--skip", "at_every_level", "--skip", "ranks::"])
            .env(LIMIT, level.name());
        if level == processor.level() {
            // It is unaffected by the limit, and takes longest.
            tests.args(["--skip", "full_size"]);
        }
        let output = tests.envs(level.of_libtorch()).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout);
        let passed = said.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next());
        let passed: usize = passed.and_then(|count| count.parse().ok()).unwrap_or_default();
        let least = if cfg!(feature = "torch") { 30 } else { 2 };
        assert!(output.status.success() && passed >= least, "{level}: {said}");
        tell(&format!("{passed} tests at level {level}"));
    }
}

/// Not a print macro: the test runner would capture the output.
fn tell(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error is open");
}

/// The test above relies on this: a process with a limit respects it.
#[test]
fn this_process_keeps_to_its_limit() {
    let limit = std::env::var(LIMIT).ok();
    let processor = Processor::here();
    assert_eq!(processor.limit().map(Level::name), limit.as_deref());
    assert!(processor.limit().is_none_or(|limit| limit.includes(processor.level())));
}
