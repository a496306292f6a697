//! Operations of a store and their results.

use crate::chip::SourceChip;
use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::entry::{Entry, EntryId, Labels, Observation, VesselId};
use crate::gallery::filter::Filter;

/// A sighting to store.
#[derive(Clone, Debug)]
pub struct Enrolment {
    pub entry: Entry,
    pub embedding: Embedding,
    /// The model that made the embedding.
    pub model: ModelDigest,
    /// The embedding by the model of the gallery's shadow, if the caller has it.
    pub shadow: Option<ShadowEmbedding>,
    /// Stored only in galleries that keep chips.
    pub chip: Option<SourceChip>,
    pub conflict: Conflict,
}

/// An embedding for a gallery's shadow.
#[derive(Clone, Debug)]
pub struct ShadowEmbedding {
    pub embedding: Embedding,
    pub model: ModelDigest,
}

/// What happens when the id already exists with other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    Refuse,
    /// The entry is replaced as a whole.
    Overwrite,
}

/// The result of an enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    Created,
    Replaced,
    /// The same content already exists; what is known of it is left unchanged.
    Unchanged,
}

/// Selects the entries to delete.
#[derive(Clone, Debug)]
pub enum Selector {
    /// Ids that do not exist are skipped.
    Ids(Vec<EntryId>),
    Filter(Box<Filter>),
}

/// The new facts of an entry.
#[derive(Clone, Debug)]
pub struct Update {
    pub id: EntryId,
    pub vessel: Option<VesselId>,
    pub labels: Labels,
    pub observation: Observation,
}

/// A part of an [`Update`] that is written; the others are left unchanged.
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

/// The result of updates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Updated {
    /// Entries that now have the requested values.
    pub updated: u64,
    pub missing: Vec<EntryId>,
}

/// The result of making a shadow active.
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
