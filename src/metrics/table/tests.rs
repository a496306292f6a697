use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use super::*;

/// Set, the document is written and not compared.
const WRITE: &str = "SHIPREID_WRITE_DOCS";

const HEAD: &str = "# Metrics\n\n\
    What `/metrics` on `server.metrics_listen` shows, written from `src/metrics/table.rs` by\n\
    `SHIPREID_WRITE_DOCS=1 cargo test --no-default-features --lib metrics`.\n\n\
    Durations are in seconds, sizes in bytes. No label carries the id of a ship, chip, gallery, job or caller, so\n\
    that the number of series is bounded by the program. A metric appears with its first value. Beside these stand\n\
    the standard `process_*` metrics: processor time, memory, open files, threads, start time.\n";

fn kind(kind: Kind) -> String {
    match kind {
        Kind::Counter => "counter".into(),
        Kind::Gauge => "gauge".into(),
        Kind::Histogram(bounds) => {
            let bounds: Vec<String> = bounds.iter().map(ToString::to_string).collect();
            format!("histogram: {}", bounds.join(", "))
        }
    }
}

fn document() -> String {
    let mut text = HEAD.to_owned();
    for group in TABLE {
        write!(text, "\n## {}\n\n", group.title).expect("a string");
        text.push_str("| name | kind | unit | labels | meaning |\n|---|---|---|---|---|\n");
        for Metric { name, kind, unit, labels, meaning } in group.metrics {
            let labels: Vec<String> =
                labels.iter().map(|(label, values)| format!("`{label}`: {values}")).collect();
            let (kind, labels) = (self::kind(*kind), labels.join("; "));
            writeln!(text, "| `{name}` | {kind} | {unit} | {labels} | {meaning} |").expect("a string");
        }
    }
    text
}

#[test]
fn the_document_says_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, document()).expect("the folder of the documents");
    }
    let found = std::fs::read_to_string(&path).expect("the document is there");
    assert!(
        found == document(),
        "docs/metrics.md is not what the table says; write it with \
         {WRITE}=1 cargo test --no-default-features --lib metrics"
    );
}

#[test]
fn names_are_unique_and_end_as_prometheus_wants() {
    let names: BTreeSet<&str> = all().map(|metric| metric.name).collect();
    assert_eq!(names.len(), all().count());
    for Metric { name, kind, unit, .. } in all() {
        assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
        assert!(*unit != "seconds" || name.contains("seconds"), "{name}");
        assert!(*unit != "bytes" || name.contains("bytes"), "{name}");
    }
}
