//! Entries for tests.

use crate::chip::Modality;
use crate::gallery::{ContentHash, Entry, EntryId, Labels, Observation, Time};

/// An optical sighting of which nothing else is known.
pub fn entry(id: &str) -> Entry {
    Entry {
        id: EntryId::new(id).expect("an id"),
        vessel: None,
        modality: Modality::Optical,
        observation: Observation::default(),
        labels: Labels::default(),
        extent_m: None,
        enrolled_at: Time::from_nanos(0),
        content: ContentHash::new([0; 32]),
    }
}
