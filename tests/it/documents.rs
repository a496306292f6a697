//! Links in the project's pages, and code in them that is part of a file.

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
                ["src", "tests", "benches", "scripts", "deploy", "configs", "examples"].contains(&folder)
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

/// A line before a block of code that names the file, below `examples`, of which it is a part.
const PART_OF: &str = "<!-- examples/";

/// The lines of a file between the comments `[region]` and `[/region]`, without their common indentation.
fn region(file: &str, region: &str) -> String {
    let text = fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_else(|_| panic!("no {file}"));
    let is = |line: &str, mark: &str| line.trim_start_matches([' ', '\t', '#', '/']) == mark;
    let (begin, end) = (format!("[{region}]"), format!("[/{region}]"));
    let from_begin = text.lines().skip_while(|line| !is(line, &begin)).skip(1);
    let lines: Vec<&str> = from_begin.take_while(|line| !is(line, &end)).collect();
    assert!(!lines.is_empty(), "{file} has no [{region}]");
    let written = lines.iter().filter(|line| !line.trim().is_empty());
    let common = written.map(|line| line.len() - line.trim_start().len()).min().unwrap();
    let lines: Vec<&str> = lines.iter().map(|line| line.get(common..).unwrap_or_default()).collect();
    format!("{}\n", lines.join("\n").trim_matches('\n'))
}

/// A page with every block of code that follows the name of a file's part as that part now is.
fn with_parts(page: &str) -> (String, usize) {
    let (mut written, mut parts) = (String::new(), 0);
    let mut lines = page.split_inclusive('\n');
    while let Some(line) = lines.next() {
        written.push_str(line);
        let Some(part) = line.strip_prefix("<!-- ").filter(|_| line.starts_with(PART_OF)) else { continue };
        let (file, name) = part.trim_end().trim_end_matches(" -->").split_once(' ').unwrap();
        let opening = lines.next().filter(|line| line.starts_with("```")).expect("a block of code follows");
        lines.by_ref().find(|line| line.trim_end() == "```").expect("the block of code ends");
        written.extend([opening, &region(file, name), "```\n"]);
        parts += 1;
    }
    (written, parts)
}

#[test]
fn code_that_is_part_of_an_example_is_what_the_example_runs() {
    let path = Path::new(ROOT).join("docs/clients.md");
    let page = fs::read_to_string(&path).unwrap();
    let (expected, parts) = with_parts(&page);
    assert!(parts > 20, "{parts}");
    if std::env::var_os("SHIPREID_WRITE_DOCS").is_some() {
        return fs::write(&path, expected).unwrap();
    }
    assert!(
        page == expected,
        "SHIPREID_WRITE_DOCS=1 cargo test --test it -- documents copies the parts anew"
    );
}
