//! Bytes that change on the disk: a gallery is refused, repaired or unaffected, but never silently wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use redb::{ReadableTable, TableDefinition};

use super::*;
use crate::durable::faults::tally::{Tally, rounds};
use crate::gallery::embedded::schema::{CHIP_ROWS, CHIPS, CODES, ENTRIES as ENTRY_ROWS, GALLERY, GONE};

const TENANT: &str = "default";
const SPOILT: &str = "harbour";
const SIBLING: &str = "offshore";
/// Enough entries, with long ids, for inner pages in every table.
const ENTRIES: u64 = 300;
const PAGE: usize = 4096;
/// The first byte of redb's inner pages.
const BRANCH: u8 = 2;

fn long_id(seed: u64) -> String {
    format!("{seed:03}-{}", "x".repeat(200))
}

/// Two closed galleries, and the files of the first as they were written.
struct Galleries {
    folder: tempfile::TempDir,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Galleries {
    async fn new() -> Self {
        let folder = folder();
        let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("free");
        let spoilt = catalog.create(TENANT, &name(SPOILT), new_gallery()).expect("made");
        for seed in 0..ENTRIES {
            spoilt.enrol(enrolment(&long_id(seed), seed)).await.expect("enrolled");
        }
        let sibling = catalog.create(TENANT, &name(SIBLING), new_gallery()).expect("made");
        sibling.enrol(enrolment("sibling", 1)).await.expect("enrolled");
        catalog.close();
        let path = |file| folder.path().join("t-default").join(SPOILT).join(file);
        let files = [GALLERY, CHIPS, CODES].map(|file| (file, fs::read(path(file)).expect("there")));
        Self { folder, files: BTreeMap::from(files) }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join("t-default").join(SPOILT).join(file)
    }

    /// Restores all files but `spoilt`, which gets `bytes`.
    fn spoil(&self, spoilt: &str, bytes: &[u8]) {
        for (file, whole) in &self.files {
            fs::write(self.path(file), if *file == spoilt { bytes } else { whole }).expect("writable");
        }
    }

    fn open(&self) -> EmbeddedCatalog {
        let catalog = EmbeddedCatalog::open(self.folder.path(), settings()).expect("free");
        let sibling = catalog.get(TENANT, &name(SIBLING)).expect("siblings serve");
        assert_eq!(
            sibling.snapshot().get(&[id("sibling")], &Cancellation::default()).expect("readable").found.len(),
            1
        );
        catalog
    }

    /// The outcome after everything was read, written to and opened again.
    async fn outcome(&self) -> Outcome {
        let catalog = self.open();
        let outcome = match catalog.get(TENANT, &name(SPOILT)) {
            Err(CatalogError::Refused { cause, .. }) => {
                assert!(!cause.to_string().is_empty());
                Outcome::Refused
            }
            Err(other) => panic!("{other}"),
            Ok(gallery) => use_it(&gallery).await,
        };
        catalog.close();
        if outcome != Outcome::Whole {
            return outcome;
        }
        // Writing must not have made it worse.
        let catalog = self.open();
        let outcome = match catalog.get(TENANT, &name(SPOILT)) {
            Ok(gallery) => use_it(&gallery).await,
            Err(_) => Outcome::Refused,
        };
        catalog.close();
        outcome
    }
}

/// The effect of a changed byte on a gallery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// It is not opened, and the error states why.
    Refused,
    /// Errors name the unreadable data, or writes are refused with the reason.
    Named,
    /// Every answer is correct.
    Whole,
}

impl Outcome {
    fn text(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Named => "named in use",
            Self::Whole => "unaffected or repaired",
        }
    }
}

/// Reads everything and writes to it. Panics on a wrong answer.
async fn use_it(gallery: &Gallery) -> Outcome {
    let mut outcome = read_all(&gallery.snapshot());
    for seed in [0, ENTRIES / 2, ENTRIES - 1] {
        let again = gallery.enrol(enrolment(&long_id(seed), seed)).await;
        outcome = outcome.min(told(again, |again| *again == Enrolled::Unchanged));
    }
    let other = enrolment("another", ENTRIES);
    outcome = outcome.min(told(gallery.enrol(other).await, |enrolled| *enrolled == Enrolled::Created));
    let deleted = gallery.delete(Selector::Ids(vec![id("another")])).await;
    outcome.min(told(deleted, |deleted| *deleted == 1))
}

fn read_all(snapshot: &Arc<dyn GalleryReader>) -> Outcome {
    let mut outcome = Outcome::Whole;
    let mut check = |told: Outcome| outcome = outcome.min(told);
    for seed in 0..ENTRIES {
        let (row, expected) = (RowId(seed), enrolment(&long_id(seed), seed));
        check(told(snapshot.find(&expected.entry.id), |found| *found == Some(row)));
        check(told(snapshot.entry(row), |entry| *entry == expected.entry));
        check(told(snapshot.embedding(row), |embedding| *embedding == expected.embedding));
        check(told(snapshot.chip(row), |chip| *chip == expected.chip));
    }
    let listed = snapshot.list(&Filter::default(), None, usize::MAX, &Cancellation::default());
    check(told(listed, |listed| listed.entries.len() == ENTRIES as usize));
    let query = embedding(7);
    let without_vessels = &VesselSet::default();
    let query = IndexQuery { vector: query.as_slice(), part: 0, k: 1, without_row: None, without_vessels };
    let selection = snapshot.select(&Filter::default()).expect("no ids are read");
    let found = snapshot.search(&[query], &selection, Group::Entry, &Cancellation::default());
    check(told(found, |found| found[0].hits[0].row == RowId(7)));
    let exported: Result<Vec<Bytes>, StoreError> = Export::new(Arc::clone(snapshot), Chips::With).collect();
    check(told(exported, |pieces| inspect(pieces).is_ok_and(|found| found.entries == ENTRIES)));
    outcome
}

/// Whether an answer is correct or an error that names the damage. Panics on a wrong one.
fn told<T: fmt::Debug>(answer: Result<T, StoreError>, is_right: impl Fn(&T) -> bool) -> Outcome {
    match answer {
        Ok(answer) => {
            assert!(is_right(&answer), "silently wrong: {answer:?}");
            Outcome::Whole
        }
        Err(StoreError::Unreadable(_) | StoreError::ReadOnly { .. }) => Outcome::Named,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_changed_byte_is_named_or_changes_nothing() {
    let galleries = Galleries::new().await;
    let random = &mut ChaCha8Rng::seed_from_u64(17);
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    for _ in 0..rounds(30) {
        let files: Vec<_> = galleries.files.iter().collect();
        let (file, whole) = files[random.random_range(0..files.len())];
        let mut bytes = whole.clone();
        let at = match random.random_range(0..10) {
            0 => random.random_range(0..bytes.len().min(320)),
            1..5 => random.random_range(0..bytes.len()),
            _ => loop {
                // Most zero bytes are unused.
                let at = random.random_range(0..bytes.len());
                if bytes[at] != 0 {
                    break at;
                }
            },
        };
        bytes[at] ^= 1 << random.random_range(0..8);
        galleries.spoil(file, &bytes);
        let tally = tallies.entry(file).or_insert_with(|| Tally::new(format!("flip, {file}")));
        tally.count(galleries.outcome().await.text());
        tally.round();
    }
    tallies.values().for_each(Tally::tell);
}

/// In the header, which selects one of two commits, changes one bit of every third byte and all bits of the flags.
#[tokio::test]
async fn a_changed_header_shows_no_earlier_state() {
    const FLAGS: usize = 9;
    let galleries = Galleries::new().await;
    let flags = (0..8).map(|bit| (FLAGS, bit));
    for (at, bit) in flags.chain((0..320).step_by(3).map(|at| (at, at % 8))) {
        for file in [GALLERY, CHIPS] {
            let mut bytes = galleries.files[file].clone();
            bytes[at] ^= 1 << bit;
            galleries.spoil(file, &bytes);
            galleries.outcome().await;
        }
    }
}

#[tokio::test]
async fn a_changed_key_of_an_inner_page_is_refused() {
    let galleries = Galleries::new().await;
    let whole = &galleries.files[GALLERY];
    let inner = whole.chunks(PAGE).enumerate().filter(|(_, page)| page[0] == BRANCH);
    let mut refused = 0;
    for (number, page) in inner {
        let keys = usize::from(u16::from_le_bytes([page[2], page[3]]));
        // The checksum and number of each child come first, then the ends of the keys unless all have the same length,
        // then the keys.
        let ends = 8 + 24 * (keys + 1);
        for at in [ends, ends + 4 * keys, ends + 4 * keys + 1, ends + 4 * keys + 2] {
            for bit in [1, 2] {
                let mut bytes = whole.clone();
                bytes[number * PAGE + at] ^= bit;
                galleries.spoil(GALLERY, &bytes);
                refused += usize::from(galleries.outcome().await == Outcome::Refused);
            }
        }
    }
    assert!(refused > 0);
}

/// Changes a table without the gallery noticing.
fn change<K: redb::Key + 'static, V: redb::Value + 'static>(
    path: &Path,
    table: TableDefinition<K, V>,
    change: impl FnOnce(&mut redb::Table<K, V>),
) {
    let database = redb::Database::open(path).expect("whole");
    let transaction = database.begin_write().expect("writable");
    change(&mut transaction.open_table(table).expect("there"));
    transaction.commit().expect("writable");
}

#[tokio::test]
async fn a_chip_that_is_missing_or_of_no_row_is_named() {
    let galleries = Galleries::new().await;
    change(&galleries.path(CHIPS), CHIP_ROWS, |table| {
        table.remove(5).expect("writable");
    });
    assert_eq!(galleries.outcome().await, Outcome::Named);
    galleries.spoil(CHIPS, &galleries.files[CHIPS]);
    change(&galleries.path(CHIPS), CHIP_ROWS, |table| {
        table.insert(1 << 40, b"a chip".as_slice()).expect("writable");
    });
    assert_eq!(galleries.outcome().await, Outcome::Refused);
    let kept = fs::read(galleries.path(CHIPS)).expect("there");
    assert!(kept.windows(6).any(|part| part == b"a chip"), "what cannot be is kept to be looked at");
}

#[tokio::test]
async fn what_a_changed_key_leads_to_is_not_taken_for_another_rows() {
    let galleries = Galleries::new().await;
    for (file, table) in [(CHIPS, CHIP_ROWS), (GALLERY, TableDefinition::new("vectors-1"))] {
        galleries.spoil("", &[]);
        change(&galleries.path(file), table, |table| {
            let others = table.get(6).expect("readable").expect("there").value().to_vec();
            table.insert(5, others.as_slice()).expect("writable");
        });
        assert_eq!(galleries.outcome().await, Outcome::Named);
    }
}

#[tokio::test]
async fn a_record_under_the_key_of_another_is_refused() {
    let galleries = Galleries::new().await;
    change(&galleries.path(GALLERY), ENTRY_ROWS, |table| {
        let others = table.get(6).expect("readable").expect("there").value().to_vec();
        table.insert(5, others.as_slice()).expect("writable");
    });
    assert_eq!(galleries.outcome().await, Outcome::Refused);
}

#[tokio::test]
async fn a_saved_index_that_is_damaged_or_of_an_earlier_program_is_passed_over() {
    /// In the header.
    const VERSION: usize = 8;
    let galleries = Galleries::new().await;
    let whole = &galleries.files[CODES];
    for at in [0, VERSION, 60, 64, 200, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        galleries.spoil(CODES, &bytes);
        assert_eq!(galleries.outcome().await, Outcome::Whole, "byte {at}");
    }
    for length in [0, 63, 64, 100, whole.len() - 4] {
        galleries.spoil(CODES, &whole[..length]);
        assert_eq!(galleries.outcome().await, Outcome::Whole, "{length} bytes");
    }
}

#[tokio::test]
async fn a_mark_on_a_row_that_is_there_costs_no_chip() {
    let galleries = Galleries::new().await;
    change(&galleries.path(GALLERY), GONE, |table| {
        table.insert(5, ()).expect("writable");
    });
    assert_eq!(galleries.outcome().await, Outcome::Refused);
    fs::write(galleries.path(GALLERY), &galleries.files[GALLERY]).expect("writable");
    assert_eq!(galleries.outcome().await, Outcome::Whole, "the chip is still there");
}
