//! Galleries, their entries, and changes to them.

use super::super::problem::Problem;
use super::sighting::{
    entry_id, labels, labels_to_wire, modality_to_wire, observation, observation_to_wire, timestamp,
    vessel_id,
};
use super::{each, embedding, filter, model_digest, source_chip};
use crate::chip::{Modality, SourceChip};
use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::{
    About, Chips, Content, ContentHash, Entry, EntryId, Field, Info, Labels, Observation, Selector, Update,
    VesselId, VesselSummary,
};
use crate::message::excerpt;
use crate::reason::Reason;
use crate::wire;
use crate::wire::delete_entries_request::Selection;
use crate::wire::enroll_request::Source;

/// An item of an Enroll stream whose every field has been read.
pub struct EnrollItem {
    pub id: EntryId,
    pub vessel: Option<VesselId>,
    pub labels: Labels,
    pub observation: Observation,
    pub source: EnrollSource,
    pub overwrite: bool,
}

/// The source of an entry's embedding.
pub enum EnrollSource {
    Chip(SourceChip),
    /// With the chip that it was made from, if known.
    Ready {
        embedding: Embedding,
        model: ModelDigest,
        modality: Modality,
        chip: Option<SourceChip>,
    },
}

impl EnrollItem {
    /// # Errors
    /// What is wrong with the item, by field.
    pub fn parse(request: wire::EnrollRequest) -> Result<Self, Problem> {
        let (source, observed) = match request.source {
            None => {
                return Err(Problem::invalid(Reason::NoSource, "chip", "neither chip nor embedding is set"));
            }
            Some(Source::Chip(mut chip)) => {
                let observed = chip.observation.take();
                let chip = source_chip(chip).map_err(|problem| problem.within("chip"))?;
                (EnrollSource::Chip(chip), (observed, "chip.observation"))
            }
            Some(Source::Embedding(mut ready)) => {
                let observed =
                    ready_observation(&mut ready).map_err(|problem| problem.within("embedding"))?;
                let source = ready_source(ready).map_err(|problem| problem.within("embedding"))?;
                (source, observed)
            }
        };
        let (observed, place) = observed;
        Ok(Self {
            id: entry_id("entry_id", &request.entry_id)?,
            vessel: vessel_id("vessel_id", &request.vessel_id)?,
            labels: labels(request.labels)?,
            observation: observation(observed.unwrap_or_default())
                .map_err(|problem| problem.within(place))?,
            source,
            overwrite: request.overwrite,
        })
    }

    pub fn content(&self) -> ContentHash {
        let Self { labels, observation, .. } = self;
        let content = Content { vessel: self.vessel.as_ref(), labels, observation };
        match &self.source {
            EnrollSource::Chip(chip) => content.with_chip(chip),
            EnrollSource::Ready { embedding, modality, chip, .. } => {
                content.with_embedding(*modality, embedding, chip.as_ref())
            }
        }
    }
}

/// What is known of the sighting, and the field that states it.
fn ready_observation(
    ready: &mut wire::ReadyEmbedding,
) -> Result<(Option<wire::Observation>, &'static str), Problem> {
    let of_chip = ready.chip.as_mut().and_then(|chip| chip.observation.take());
    match (ready.observation.take(), of_chip) {
        (Some(_), Some(_)) => {
            let message = "observation and chip.observation are both set";
            Err(Problem::invalid(Reason::ObservationTwice, "chip.observation", message))
        }
        (None, Some(of_chip)) => Ok((Some(of_chip), "embedding.chip.observation")),
        (own, None) => Ok((own, "embedding.observation")),
    }
}

fn ready_source(ready: wire::ReadyEmbedding) -> Result<EnrollSource, Problem> {
    let model = model_digest(&ready.model)?
        .ok_or_else(|| Problem::invalid(Reason::ModelMalformed, "model", "model is not set"))?;
    let chip = ready.chip.map(source_chip).transpose().map_err(|problem| problem.within("chip"))?;
    let of_chip = chip.as_ref().map(|chip| chip.view.modality);
    let own = super::modality("modality", ready.modality)?;
    if let (Some(own), Some(of_chip)) = (own, of_chip)
        && own != of_chip
    {
        let message = format!("the chip is {}, the embedding is said to be {}", of_chip.name(), own.name());
        return Err(Problem::invalid(Reason::ModalityContradicts, "chip.modality", message));
    }
    let modality = own
        .or(of_chip)
        .ok_or_else(|| Problem::invalid(Reason::ModalityUnknown, "modality", "modality is not set"))?;
    let embedding = embedding("embedding", ready.embedding.unwrap_or_default())?;
    Ok(EnrollSource::Ready { embedding, model, modality, chip })
}

/// The entries that a deletion selects.
pub fn selector(selection: Option<Selection>) -> Result<Selector, Problem> {
    match selection {
        None => Err(Problem::invalid(Reason::NoSelection, "ids", "neither ids nor filter is set")),
        Some(Selection::Ids(ids)) => Ok(Selector::Ids(each("ids.entry_ids", &ids.entry_ids, entry_id)?)),
        Some(Selection::Filter(wanted)) => {
            let wanted = filter(wanted).map_err(|problem| problem.within("filter"))?;
            if wanted.only_excludes() {
                let message = if wanted.is_empty() {
                    "filter is empty: it would delete every entry; delete the gallery instead"
                } else {
                    "filter only excludes: it would delete every other entry; say which ones to delete"
                };
                return Err(Problem::invalid(Reason::FilterEmpty, "filter", message));
            }
            Ok(Selector::Filter(Box::new(wanted)))
        }
    }
}

/// Updates and the fields that they write.
pub fn updates(request: wire::UpdateEntriesRequest) -> Result<(Vec<Update>, Vec<Field>), Problem> {
    let fields = fields(&request.update_mask.unwrap_or_default().paths)?;
    let updates = request.updates.into_iter().enumerate().map(|(index, update)| {
        self::update(update).map_err(|problem| problem.within(&format!("updates[{index}]")))
    });
    Ok((updates.collect::<Result<_, _>>()?, fields))
}

fn update(update: wire::EntryUpdate) -> Result<Update, Problem> {
    let observed = observation(update.observation.unwrap_or_default());
    Ok(Update {
        id: entry_id("entry_id", &update.entry_id)?,
        vessel: vessel_id("vessel_id", &update.vessel_id)?,
        labels: labels(update.labels)?,
        observation: observed.map_err(|problem| problem.within("observation"))?,
    })
}

fn fields(paths: &[String]) -> Result<Vec<Field>, Problem> {
    if paths.is_empty() {
        let message = "update_mask is empty: it says which of vessel_id, labels, observation to write";
        return Err(Problem::invalid(Reason::UpdateMaskEmpty, "update_mask", message));
    }
    let field = |path: &String| {
        Ok(match path.as_str() {
            "vessel_id" => Field::Vessel,
            "labels" => Field::Labels,
            "observation" => Field::Observation,
            "observation.detection_id" => Field::DetectionId,
            "observation.scene_id" => Field::SceneId,
            "observation.sensor" => Field::Sensor,
            "observation.observed_at" => Field::ObservedAt,
            // A position is a unit: its parts are written together.
            "observation.latitude" | "observation.longitude" | "observation.position_sigma_m" => {
                Field::Position
            }
            "observation.heading_deg" | "observation.heading_ambiguous" => Field::Heading,
            "observation.length_m" => Field::Length,
            "observation.width_m" => Field::Width,
            other => {
                let message = format!("update_mask names {}, which cannot be updated", excerpt(other));
                return Err(Problem::invalid(Reason::UpdateMaskUnknown, "update_mask", message));
            }
        })
    };
    paths.iter().map(field).collect()
}

pub fn gallery(name: &str, (info, commit): (Info, u64)) -> wire::Gallery {
    wire::Gallery {
        name: name.into(),
        model: info.about.model.to_string(),
        dimension: info.about.dimension as u32,
        entries: info.entries,
        vessels: info.vessels,
        stored_bytes: info.stored_bytes,
        created_at: Some(timestamp(info.about.created_at)),
        keeps_chips: info.about.keeps_chips,
        read_only_reason: info.read_only.unwrap_or_default(),
        following: info.following.map(|following| wire::Following {
            model: following.model.to_string(),
            embedded_entries: following.embedded,
            stalled_reason: following.stalled.unwrap_or_default(),
        }),
        commit,
    }
}

/// An entry of a gallery that is `about` this.
pub fn entry(about: &About, entry: Entry, embedding: Option<Embedding>) -> wire::Entry {
    wire::Entry {
        precision: about.precision_of(&entry).map(|precision| precision.name().into()).unwrap_or_default(),
        entry_id: entry.id.to_string(),
        vessel_id: entry.vessel.as_ref().map(ToString::to_string).unwrap_or_default(),
        modality: modality_to_wire(entry.modality).into(),
        labels: labels_to_wire(&entry.labels),
        enrolled_at: Some(timestamp(entry.enrolled_at)),
        embedding: embedding.map(|embedding| wire::Embedding { values: embedding.into_vec() }),
        observation: Some(observation_to_wire(entry.observation)),
    }
}

pub fn vessel(vessel: VesselSummary) -> wire::Vessel {
    let modalities = vessel.modalities.into_iter().map(|modality| modality_to_wire(modality).into());
    wire::Vessel {
        vessel_id: vessel.id.to_string(),
        entries: vessel.entries,
        first_observed_at: vessel.first_observed.map(timestamp),
        last_observed_at: vessel.last_observed.map(timestamp),
        modalities: modalities.collect(),
    }
}

/// What a copy contains in addition to embeddings.
pub fn chips(with_chips: bool) -> Chips {
    if with_chips { Chips::With } else { Chips::Without }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_deletion_needs_a_condition_that_selects_whatever_else_is_set() {
        type Set = fn(&mut wire::EntryFilter);
        let not_selecting: [Set; 7] = [
            |filter| filter.time_range = Some(wire::TimeRange::default()),
            |filter| filter.area = Some(wire::Area::default()),
            |filter| filter.exclude_vessel_ids = vec!["v".into()],
            |filter| filter.exclude_labels = HashMap::from([("port".into(), "Kiel".into())]),
            |filter| filter.exclude_entry_ids = vec!["e".into()],
            |filter| filter.modalities = vec![],
            |filter| filter.labels = HashMap::new(),
        ];
        let selecting: [Set; 8] = [
            |filter| filter.modalities = vec![1],
            |filter| filter.time_range.get_or_insert_default().end = Some(prost_types::Timestamp::default()),
            |filter| {
                filter.time_range.get_or_insert_default().start = Some(prost_types::Timestamp::default())
            },
            |filter| filter.area.get_or_insert_default().east = 1.0,
            |filter| filter.vessel_ids = vec!["w".into()],
            |filter| filter.labels = HashMap::from([("flag".into(), "PA".into())]),
            |filter| filter.entry_ids = vec!["f".into()],
            |filter| filter.without_vessel = true,
        ];
        for subset in 0..1 << not_selecting.len() {
            let chosen = not_selecting.iter().enumerate().filter(|(number, _)| subset >> number & 1 == 1);
            let mut filter = wire::EntryFilter::default();
            chosen.for_each(|(_, set)| set(&mut filter));
            let problem = selector(Some(Selection::Filter(filter.clone()))).expect_err("nothing is selected");
            assert_eq!(
                (problem.reason, problem.field.as_deref()),
                (Reason::FilterEmpty, Some("filter")),
                "{filter:?}"
            );
            for set in selecting {
                let mut filter = filter.clone();
                set(&mut filter);
                assert!(selector(Some(Selection::Filter(filter.clone()))).is_ok(), "{filter:?}");
            }
        }
        let problem = selector(None).expect_err("nothing is selected");
        assert_eq!(problem.reason, Reason::NoSelection);
    }
}
