//! Imports point down: what each module may name of the others.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Modules in the order in which they may import: only what is listed.
const ALLOWED: &[(&str, &[&str])] = &[
    ("processor", &[]),
    ("arithmetic", &["processor"]),
    ("message", &[]),
    ("config", &["arithmetic", "message"]),
    ("metrics", &[]),
    ("wire", &[]),
    ("chip", &[]),
    ("embedding", &[]),
    ("durable", &[]),
    ("keys", &[]),
    ("sheet", &[]),
    ("synth", &["sheet"]),
    ("telemetry", &["config"]),
    ("weights", &["chip", "durable", "embedding"]),
    ("gallery", &["chip", "durable", "embedding", "metrics", "processor"]),
    ("evaluate", &["chip", "embedding"]),
    ("matching", &["chip", "embedding", "evaluate", "gallery"]),
    ("encoder", &["chip", "embedding", "metrics"]),
    ("registry", &["chip", "durable", "embedding", "encoder", "gallery", "metrics", "weights"]),
    ("model", &["arithmetic", "chip", "embedding", "encoder", "processor", "weights"]),
    (
        "train",
        &[
            "arithmetic",
            "chip",
            "durable",
            "embedding",
            "encoder",
            "evaluate",
            "message",
            "model",
            "processor",
            "sheet",
            "weights",
        ],
    ),
    ("jobs", &["arithmetic", "chip", "durable", "embedding", "evaluate", "gallery", "metrics", "train"]),
    ("manifest", &["message", "wire"]),
    ("page", &["embedding", "gallery", "jobs"]),
    (
        "rpc",
        &[
            "chip",
            "config",
            "embedding",
            "encoder",
            "gallery",
            "jobs",
            "keys",
            "matching",
            "metrics",
            "page",
            "registry",
            "weights",
            "wire",
        ],
    ),
    ("client", &["chip", "wire"]),
    ("job_page", &["client", "wire"]),
    (
        "app",
        &[
            "arithmetic",
            "chip",
            "config",
            "durable",
            "embedding",
            "encoder",
            "gallery",
            "jobs",
            "matching",
            "metrics",
            "model",
            "processor",
            "registry",
            "rpc",
            "telemetry",
            "train",
            "weights",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "arithmetic",
            "chip",
            "client",
            "config",
            "embedding",
            "encoder",
            "evaluate",
            "gallery",
            "job_page",
            "jobs",
            "keys",
            "manifest",
            "matching",
            "metrics",
            "model",
            "processor",
            "registry",
            "sheet",
            "synth",
            "telemetry",
            "train",
            "weights",
            "wire",
        ],
    ),
];
/// Only these speak gRPC.
const WIRE: &[&str] = &["app", "client", "rpc", "wire"];
/// Only these speak libtorch.
const TORCH: &[&str] = &["model", "train"];

/// Files that are tests as a whole.
const TEST_FILES: &[&str] = &["faults.rs", "fixture.rs", "golden.rs", "jpeg.rs", "oracle.rs", "tests.rs"];

/// The text of every module, without tests.
fn modules() -> BTreeMap<String, String> {
    let mut modules = BTreeMap::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !["lib", "main"].contains(&name.as_str()) {
            collect(&path, modules.entry(name).or_default());
        }
    }
    modules
}

fn collect(path: &Path, text: &mut String) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| collect(&entry.unwrap().path(), text));
        return;
    }
    if TEST_FILES.iter().any(|name| path.ends_with(name)) {
        return;
    }
    let content = fs::read_to_string(path).unwrap();
    let code = content.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.push_str(code);
}

/// Whether `text` names `name::` as a path of its own.
fn names(text: &str, name: &str) -> bool {
    text.match_indices(&format!("{name}::")).any(|(at, _)| {
        !text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
    })
}

#[test]
fn imports_point_down() {
    let modules = modules();
    let listed: Vec<_> = ALLOWED.iter().map(|(name, _)| *name).collect();
    for (module, text) in &modules {
        let (_, allowed) =
            ALLOWED.iter().find(|(name, _)| name == module).expect("every module has its place");
        let root = if module == "cli" { "shipreid" } else { "crate" };
        for other in listed.iter().filter(|other| *other != module && !allowed.contains(other)) {
            let path = format!("{root}::{other}");
            let imported = ["::", ";", ","].iter().any(|end| text.contains(&format!("{path}{end}")));
            assert!(!imported, "{module} must not import {other}");
        }
        for (library, speakers) in [("tonic", WIRE), ("tch", TORCH), ("torch_sys", TORCH)] {
            assert!(speakers.contains(&module.as_str()) || !names(text, library), "{module} names {library}");
        }
    }
    assert_eq!(modules.len(), ALLOWED.len());
}
