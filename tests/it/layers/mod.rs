//! The picture in ARCHITECTURE.md matches the imports: layers only import from lower ones, without cycles.

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use imports::Imports;

/// Only these use gRPC.
const WIRE: &[&str] = &["app", "client", "rpc", "wire"];
/// Only these use libtorch.
const TORCH: &[&str] = &["distributed", "model", "train"];
/// The markers before and after the picture.
const BEGIN: &str = "<!-- layers -->\n```text\n";
const END: &str = "```\n<!-- /layers -->\n";

/// The modules by level, from the top: each is directly above the highest module that it imports.
fn picture(arrows: &BTreeMap<String, BTreeSet<String>>) -> String {
    let mut floors: BTreeMap<usize, Vec<&String>> = BTreeMap::new();
    for module in arrows.keys() {
        floors.entry(floor(arrows, module, &mut vec![])).or_default().push(module);
    }
    let mut picture = String::new();
    for (number, modules) in floors.iter().rev() {
        for module in modules {
            let below: Vec<&str> = arrows[*module].iter().map(String::as_str).collect();
            picture += format!("{number:>2} {module:<11} {}", below.join(" ")).trim_end();
            picture.push('\n');
        }
    }
    picture
}

/// The length of the longest import chain from `module` to a module without imports.
fn floor<'a>(
    arrows: &'a BTreeMap<String, BTreeSet<String>>,
    module: &'a str,
    way: &mut Vec<&'a str>,
) -> usize {
    assert!(!way.contains(&module), "modules import each other: {way:?} {module}");
    way.push(module);
    let below = arrows[module].iter().map(|below| floor(arrows, below, way) + 1).max().unwrap_or(0);
    way.pop();
    below
}

#[test]
fn the_picture_in_the_architecture_is_that_of_the_imports() {
    let imports = Imports::read();
    let expected = picture(&imports.between_modules());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the picture begins");
    let (drawn, after) = rest.split_once(END).expect("the picture ends");
    if std::env::var_os("SHIPREID_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(drawn, expected, "SHIPREID_WRITE_DOCS=1 cargo test --test it -- layers draws it anew");
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = Imports::read().circles();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn few_modules_speak_grpc_or_libtorch() {
    let imports = Imports::read();
    for (library, speakers) in [("tonic", WIRE), ("tch", TORCH), ("torch_sys", TORCH)] {
        let found = imports.modules_that_name(library);
        let others: Vec<_> = found.iter().filter(|module| !speakers.contains(&module.as_str())).collect();
        assert!(others.is_empty(), "{others:?} name {library}");
        assert!(library == "torch_sys" || !found.is_empty(), "nobody names {library}");
    }
}
