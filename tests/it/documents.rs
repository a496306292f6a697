//! Links in the project's pages.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Markdown files of the project and of these folders, excluding those that tools have installed.
fn pages() -> Vec<PathBuf> {
    let folders = ["", "docs", "findings", "deploy/kubernetes", "tests/golden"];
    let files = folders.iter().flat_map(|folder| fs::read_dir(Path::new(ROOT).join(folder)).unwrap());
    let pages: Vec<_> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "md"))
        .collect();
    assert!(pages.len() > 10, "{pages:?}");
    pages
}

#[test]
fn every_link_within_the_project_leads_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.starts_with("https://") {
                continue;
            }
            assert!(page.parent().unwrap().join(file).exists(), "{}: {target}", page.display());
        }
    }
}

#[test]
fn every_file_that_is_named_is_there() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let folder = name.split_once('/').map(|(folder, _)| folder);
            if folder.is_some_and(|folder| {
                ["src", "tests", "benches", "scripts", "deploy", "configs"].contains(&folder)
            }) {
                let glob = name.contains(|character| "*[ ".contains(character));
                assert!(glob || Path::new(ROOT).join(name).exists(), "{}: {name}", page.display());
            }
        }
    }
}

#[test]
fn every_finding_is_listed() {
    let list = fs::read_to_string(Path::new(ROOT).join("findings/README.md")).unwrap();
    for file in fs::read_dir(Path::new(ROOT).join("findings")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || list.contains(&format!("({name})")), "{name}");
    }
}
