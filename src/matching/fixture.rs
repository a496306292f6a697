//! Entries for tests.

use crate::chip::Modality;
use crate::gallery::{
    ContentHash, DetectionHash, Entry, EntryId, Index, Labels, Observation, SceneNumber, Time,
};

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

/// Detections, by scene id and detection id, in the terms of an index.
pub fn detections(index: &Index, of: &[(&str, &str)]) -> Vec<(SceneNumber, Option<DetectionHash>)> {
    let detection = |(scene, id): &(&str, &str)| Some((index.scene_number(scene)?, DetectionHash::of(id)));
    of.iter().filter_map(detection).collect()
}
