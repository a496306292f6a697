//! Counts the outcomes of a torture test, as a row for the table in `docs/reliability.md`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;

/// `make torture` sets a larger number.
const ROUNDS: &str = "SHIPREID_TORTURE_ROUNDS";
/// A file that rows are appended to.
const TABLE: &str = "SHIPREID_TORTURE_TABLE";

pub fn rounds(default: usize) -> usize {
    std::env::var(ROUNDS).map_or(default, |rounds| rounds.parse().expect("a number"))
}

/// The outcomes of one kind of torture. Anything lost, duplicated, reappearing or silently wrong fails the
/// test, so the row shows 0 there.
#[derive(Debug)]
pub struct Tally {
    what: String,
    rounds: usize,
    /// Calls that were answered with OK.
    pub acknowledged: usize,
    outcomes: BTreeMap<String, usize>,
}

impl Tally {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), rounds: 0, acknowledged: 0, outcomes: BTreeMap::new() }
    }

    pub fn round(&mut self) {
        self.rounds += 1;
    }

    pub fn count(&mut self, outcome: &str) {
        *self.outcomes.entry(outcome.to_owned()).or_default() += 1;
    }

    /// The number of occurrences of an outcome.
    pub fn counted(&self, outcome: &str) -> usize {
        self.outcomes.get(outcome).copied().unwrap_or(0)
    }

    /// Prints the row, and appends it to the table if one is configured.
    pub fn tell(&self) {
        let outcomes: Vec<_> =
            self.outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
        let row = format!(
            "| {} | {} | {} | 0 | {} |",
            self.what,
            self.rounds,
            self.acknowledged,
            outcomes.join(", ")
        );
        println!("{row}");
        if let Some(table) = std::env::var_os(TABLE) {
            let mut table = OpenOptions::new().create(true).append(true).open(table).expect("writable");
            // In one write, since tests run concurrently.
            table.write_all(format!("{row}\n").as_bytes()).expect("writable");
        }
    }
}
