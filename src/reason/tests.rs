use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use super::*;

/// Set, the document is written and not compared.
const WRITE: &str = "SHIPREID_WRITE_DOCS";

const HEAD: &str = "# Reasons and warnings\n\n\
    Every name that programs may read in an answer, written from `src/reason` by\n\
    `SHIPREID_WRITE_DOCS=1 cargo test --no-default-features --lib reason`. Names are stable; messages are for people.\n\n\
    A failed call carries its reason in `google.rpc.ErrorInfo` (domain `shipreid`), a failed item of a batch in\n\
    `ItemError.reason`. What to do, by the third column:\n\n\
    - *correct*: the request is at fault; the same one fails again.\n\
    - *resolve*: something has to change first, which the message names.\n\
    - *wait*: send it again, at the earliest after the time that `RetryInfo` names; the least is given here.\n\
    - *more time*: send it again with a longer deadline, if the answer is still wanted.\n\
    - *operator*: the server is at fault, and its log says more.\n\n\
    An error that the gRPC library raises by itself has the name of its code as its reason, for example `UNIMPLEMENTED`.\n";

fn advice(retry: Retry) -> String {
    match retry {
        Retry::Correct => "correct".into(),
        Retry::Resolve => "resolve".into(),
        Retry::Wait(time) => format!("wait {} s", time.as_secs_f64()),
        Retry::MoreTime => "more time".into(),
        Retry::Operator => "operator".into(),
    }
}

/// One table a group, in the order of the groups.
fn sections<T: Copy>(text: &mut String, every: &[(&str, T)], columns: &str, row: impl Fn(T) -> String) {
    let mut open = "";
    for &(group, item) in every {
        if group != open {
            let dashes = "|---".repeat(columns.matches('|').count() - 1);
            write!(text, "\n## {group}\n\n{columns}\n{dashes}|\n").expect("a string");
            open = group;
        }
        writeln!(text, "{}", row(item)).expect("a string");
    }
}

fn document() -> String {
    let mut text = HEAD.to_owned();
    sections(&mut text, Reason::EVERY, "| reason | code | do | meaning |", |reason| {
        let (name, code, meaning) = (reason.name(), reason.code().name(), reason.meaning());
        format!("| `{name}` | {code} | {} | {meaning} |", advice(reason.retry()))
    });
    sections(&mut text, FailureReason::EVERY, "| reason | tried again | meaning |", |reason| {
        let again = if reason.is_passing() { "by itself" } else { "when resumed" };
        format!("| `{}` | {again} | {} |", reason.name(), reason.meaning())
    });
    sections(&mut text, Warning::EVERY, "| code | meaning | what to do |", |warning| {
        format!("| `{}` | {} | {} |", warning.name(), warning.meaning(), warning.advice())
    });
    sections(&mut text, Removal::EVERY, "| reason | meaning | what to do |", |removal| {
        format!("| `{}` | {} | {} |", removal.name(), removal.meaning(), removal.advice())
    });
    text
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("the file is there")
}

#[test]
fn the_document_says_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reasons.md");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, document()).expect("the folder of the documents");
    }
    assert!(
        read("docs/reasons.md") == document(),
        "docs/reasons.md is not what the tables say; write it with \
         {WRITE}=1 cargo test --no-default-features --lib reason"
    );
}

#[test]
fn a_name_and_code_stand_in_the_table_once() {
    let pairs: BTreeSet<(&str, i32)> =
        Reason::EVERY.iter().map(|(_, reason)| (reason.name(), reason.code() as i32)).collect();
    assert_eq!(pairs.len(), Reason::EVERY.len());
    let codes: BTreeSet<&str> = Warning::EVERY.iter().map(|(_, warning)| warning.name()).collect();
    assert_eq!(codes.len(), Warning::EVERY.len());
}

#[test]
fn a_code_is_found_by_its_number() {
    Code::EVERY.iter().for_each(|code| assert_eq!(Code::of(*code as i32), *code));
    assert_eq!(
        (Code::of(16), Code::of(17), Code::of(-1)),
        (Code::Unauthenticated, Code::Unknown, Code::Unknown)
    );
}

#[test]
fn advice_suits_the_code() {
    for (_, reason) in Reason::EVERY {
        let is_right = match reason.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::Cancelled => reason.retry() == Retry::Correct,
            Code::Internal | Code::DataLoss => reason.retry() == Retry::Operator,
            Code::Unavailable => matches!(reason.retry(), Retry::Wait(_)),
            _ => true,
        };
        assert!(is_right, "{reason:?}");
    }
}

/// A name that nothing gives any more is a promise to nobody.
#[test]
fn the_program_gives_every_reason() {
    let mut source = String::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.extend(Some(path).filter(|path| !path.ends_with("src/reason")));
            } else if path.extension() == Some("rs".as_ref()) {
                source += &std::fs::read_to_string(path).expect("a source file");
            }
        }
    }
    let is_given = |kind: &str, variant: String| {
        let named = format!("{kind}::{variant}");
        source
            .match_indices(&named)
            .any(|(at, _)| !source[at + named.len()..].starts_with(|next: char| next.is_alphanumeric()))
    };
    let mut missing: Vec<String> = Vec::new();
    missing.extend(
        Reason::EVERY
            .iter()
            .map(|(_, reason)| format!("{reason:?}"))
            .filter(|name| !is_given("Reason", name.clone())),
    );
    missing.extend(
        FailureReason::EVERY
            .iter()
            .map(|(_, reason)| format!("{reason:?}"))
            .filter(|name| !is_given("FailureReason", name.clone())),
    );
    missing.extend(
        Warning::EVERY
            .iter()
            .map(|(_, code)| format!("{code:?}"))
            .filter(|name| !is_given("Warning", name.clone())),
    );
    missing.extend(
        Removal::EVERY
            .iter()
            .map(|(_, reason)| format!("{reason:?}"))
            .filter(|name| !is_given("Removal", name.clone())),
    );
    assert!(missing.is_empty(), "no code gives {missing:?}");
}

#[test]
fn settings_that_are_named_exist() {
    let settings = read("configs/server.toml");
    let document = document();
    let named = document.split('`').skip(1).step_by(2).filter_map(|words| words.split_once('.'));
    for (section, key) in named.filter(|(section, _)| settings.contains(&format!("\n[{section}]\n"))) {
        assert!(settings.contains(&format!("\n{key} = ")), "{section}.{key}");
    }
}

#[test]
fn a_failure_is_told_and_stored_by_the_same_name() {
    for (_, reason) in FailureReason::EVERY {
        assert_eq!(FailureReason::named(reason.name()), Some(*reason));
        assert_eq!(serde_json::to_value(reason).expect("a text"), reason.name());
    }
}
