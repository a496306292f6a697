//! A gallery as its callers know it, for the checker of histories: few entries and vessels, so that calls meet.

use std::ops::Range;

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;

use super::linearizability::Object;

/// Entries that a history is about, by number.
pub const KEYS: u8 = 8;
pub const VESSELS: u8 = 4;
/// Directions of embeddings that are far enough from each other to be told apart in f32.
pub const LOOKS: Range<u8> = 16..48;

/// What is known of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    pub vessel: u8,
    /// A label; no two calls write the same.
    pub note: u32,
    /// Which of some directions its embedding has. Only enrolments set it.
    pub look: u8,
}

pub type Contents = [Option<Held>; KEYS as usize];

pub const EMPTY: Contents = [None; KEYS as usize];

#[derive(Clone, Debug)]
pub enum Call {
    Enrol { key: u8, held: Held, overwrite: bool },
    Update { keys: Vec<u8>, vessel: u8, note: u32 },
    Merge { vessels: Vec<u8>, into: u8 },
    DeleteKeys(Vec<u8>),
    DeleteVessel(u8),
    Get(Vec<u8>),
    List,
    Match,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Created,
    Replaced,
    /// Never right: no two enrolments are the same.
    Unchanged,
    Exists,
    /// How many were changed, and which were missing.
    Updated(u64, Vec<u8>),
    Count(u64),
    /// Sorted; an entry that is there twice would be twice among them.
    Entries(Vec<(u8, Held)>),
}

impl Call {
    /// A random call. What it writes carries `note`.
    pub fn draw(random: &mut ChaCha8Rng, note: u32) -> Self {
        let vessel = |random: &mut ChaCha8Rng| random.random_range(0..VESSELS);
        let keys = |random: &mut ChaCha8Rng| -> Vec<u8> {
            let count = random.random_range(1..4);
            (0..KEYS).sample(random, count)
        };
        match random.random_range(0..20) {
            0..=5 => {
                let held = Held { vessel: vessel(random), note, look: random.random_range(LOOKS) };
                Self::Enrol { key: random.random_range(0..KEYS), held, overwrite: random.random() }
            }
            6 | 7 => Self::Update { keys: keys(random), vessel: vessel(random), note },
            8 | 9 => Self::Merge { vessels: (0..VESSELS).sample(random, 2), into: vessel(random) },
            10 => Self::DeleteKeys(keys(random)),
            11 => Self::DeleteVessel(vessel(random)),
            12..=14 => Self::Get(keys(random)),
            15 | 16 => Self::List,
            _ => Self::Match,
        }
    }

    pub fn is_read(&self) -> bool {
        matches!(self, Self::Get(_) | Self::List | Self::Match)
    }
}

#[derive(Debug)]
pub struct Gallery;

impl Object for Gallery {
    type State = Contents;
    type Call = Call;
    type Answer = Answer;

    fn apply(contents: &Contents, call: &Call) -> (Contents, Answer) {
        let mut after = *contents;
        let answer = match call {
            Call::Enrol { key, held, overwrite } => enrol(&mut after[usize::from(*key)], *held, *overwrite),
            Call::Update { keys, vessel, note } => update(&mut after, keys, *vessel, *note),
            Call::Merge { vessels, into } => merge(&mut after, vessels, *into),
            Call::DeleteKeys(keys) => delete(&mut after, |key, _| keys.contains(&key)),
            Call::DeleteVessel(vessel) => delete(&mut after, |_, held| held.vessel == *vessel),
            Call::Get(keys) => Answer::Entries(entries(contents, |key| keys.contains(&key))),
            Call::List | Call::Match => Answer::Entries(entries(contents, |_| true)),
        };
        (after, answer)
    }

    fn mark(call: &Call) -> Option<u32> {
        match call {
            Call::Enrol { held, .. } => Some(held.note),
            Call::Update { note, .. } => Some(*note),
            _ => None,
        }
    }

    fn marks(answer: &Answer) -> Vec<u32> {
        match answer {
            Answer::Entries(entries) => entries.iter().map(|(_, held)| held.note).collect(),
            _ => vec![],
        }
    }
}

fn enrol(place: &mut Option<Held>, held: Held, overwrite: bool) -> Answer {
    let answer = match place {
        None => Answer::Created,
        Some(_) if overwrite => Answer::Replaced,
        Some(_) => return Answer::Exists,
    };
    *place = Some(held);
    answer
}

fn update(contents: &mut Contents, keys: &[u8], vessel: u8, note: u32) -> Answer {
    let (mut updated, mut missing) = (0, vec![]);
    for key in keys {
        match &mut contents[usize::from(*key)] {
            Some(held) => {
                *held = Held { vessel, note, ..*held };
                updated += 1;
            }
            None => missing.push(*key),
        }
    }
    Answer::Updated(updated, missing)
}

fn merge(contents: &mut Contents, vessels: &[u8], into: u8) -> Answer {
    let mut moved = 0;
    for held in contents.iter_mut().flatten() {
        if held.vessel != into && vessels.contains(&held.vessel) {
            held.vessel = into;
            moved += 1;
        }
    }
    Answer::Count(moved)
}

fn delete(contents: &mut Contents, goes: impl Fn(u8, &Held) -> bool) -> Answer {
    let mut deleted = 0;
    for (key, place) in (0..).zip(contents) {
        if place.as_ref().is_some_and(|held| goes(key, held)) {
            *place = None;
            deleted += 1;
        }
    }
    Answer::Count(deleted)
}

fn entries(contents: &Contents, wanted: impl Fn(u8) -> bool) -> Vec<(u8, Held)> {
    let there = (0..).zip(contents).filter_map(|(key, place)| Some((key, (*place)?)));
    there.filter(|(key, _)| wanted(*key)).collect()
}
