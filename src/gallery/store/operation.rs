//! What callers ask of a store, and what they are answered.

use crate::chip::SourceChip;
use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::entry::{Entry, EntryId, Labels, Observation, VesselId};
use crate::gallery::filter::Filter;

/// A sighting to keep.
#[derive(Clone, Debug)]
pub struct Enrolment {
    pub entry: Entry,
    pub embedding: Embedding,
    /// Made the embedding.
    pub model: ModelDigest,
    /// The embedding by the model of the gallery's shadow, from whoever knows it.
    pub shadow: Option<ShadowEmbedding>,
    /// Kept in galleries that keep chips.
    pub chip: Option<SourceChip>,
    pub conflict: Conflict,
}

/// An embedding for a gallery's shadow.
#[derive(Clone, Debug)]
pub struct ShadowEmbedding {
    pub embedding: Embedding,
    pub model: ModelDigest,
}

/// What happens when another content has the id already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    Refuse,
    /// The entry is replaced as a whole.
    Overwrite,
}

/// What became of an enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    Created,
    Replaced,
    /// The same content was there already; what is known of it is left as it is.
    Unchanged,
}

/// Which entries are deleted.
#[derive(Clone, Debug)]
pub enum Selector {
    /// Those of them that exist.
    Ids(Vec<EntryId>),
    Filter(Box<Filter>),
}

/// What is now known of an entry.
#[derive(Clone, Debug)]
pub struct Update {
    pub id: EntryId,
    pub vessel: Option<VesselId>,
    pub labels: Labels,
    pub observation: Observation,
}

/// A part of an [`Update`] that is written; the others are left as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Vessel,
    Labels,
    /// All of it.
    Observation,
    DetectionId,
    SceneId,
    Sensor,
    ObservedAt,
    Position,
    Heading,
    Length,
    Width,
}

/// What became of updates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Updated {
    /// Entries that now are as asked for.
    pub updated: u64,
    pub missing: Vec<EntryId>,
}

/// What became of a shadow that was to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    Done,
    /// This many entries have no embedding in the shadow yet; nothing has changed.
    Incomplete {
        missing: u64,
    },
}

impl Update {
    /// Writes `fields` into `entry`.
    pub(in crate::gallery) fn apply(&self, fields: &[Field], entry: &mut Entry) {
        let (from, to) = (&self.observation, &mut entry.observation);
        for field in fields {
            match field {
                Field::Vessel => entry.vessel.clone_from(&self.vessel),
                Field::Labels => entry.labels.clone_from(&self.labels),
                Field::Observation => to.clone_from(from),
                Field::DetectionId => to.detection_id.clone_from(&from.detection_id),
                Field::SceneId => to.scene_id.clone_from(&from.scene_id),
                Field::Sensor => to.sensor.clone_from(&from.sensor),
                Field::ObservedAt => to.observed_at = from.observed_at,
                Field::Position => to.position = from.position,
                Field::Heading => to.heading = from.heading,
                Field::Length => to.length_m = from.length_m,
                Field::Width => to.width_m = from.width_m,
            }
        }
    }
}
