//! What is known of a sighting: identifiers, labels, observation, times.

use std::collections::HashMap;

use prost_types::Timestamp;

use super::super::problem::Problem;
use super::text_problem;
use crate::chip::Modality;
use crate::gallery::{EntryId, Heading, Labels, Observation, ObservationError, Position, Time, VesselId};
use crate::reason::Reason;
use crate::wire;

pub fn entry_id(field: &str, text: &str) -> Result<EntryId, Problem> {
    EntryId::new(text).map_err(|cause| text_problem(field, cause))
}

/// `None` for the empty text: the vessel is unknown.
pub fn vessel_id(field: &str, text: &str) -> Result<Option<VesselId>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    VesselId::new(text).map(Some).map_err(|cause| text_problem(field, cause))
}

pub fn labels(labels: HashMap<String, String>) -> Result<Labels, Problem> {
    Labels::new(labels)
        .map_err(|cause| Problem::invalid(Reason::LabelsInvalid, "labels", format!("labels: {cause}")))
}

/// An observation; its fields are named by their path in the request.
pub fn observation(observation: wire::Observation) -> Result<Observation, Problem> {
    let observed_at = observation.observed_at.as_ref();
    let observation = Observation {
        observed_at: observed_at.map(|timestamp| time("observed_at", timestamp)).transpose()?,
        position: position(&observation)?,
        heading: heading(&observation)?,
        length_m: observation.length_m,
        width_m: observation.width_m,
        detection_id: observation.detection_id,
        scene_id: observation.scene_id,
        sensor: observation.sensor,
    };
    observation.check().map_err(|cause| match cause {
        ObservationError::Text { field, cause } => text_problem(field, cause),
        ObservationError::Number(cause) => cause.into(),
    })?;
    Ok(observation)
}

pub fn observation_to_wire(observation: Observation) -> wire::Observation {
    let Observation { position, heading, .. } = observation;
    wire::Observation {
        detection_id: observation.detection_id,
        scene_id: observation.scene_id,
        sensor: observation.sensor,
        observed_at: observation.observed_at.map(timestamp),
        latitude: position.map(|place| place.latitude_deg()),
        longitude: position.map(|place| place.longitude_deg()),
        position_sigma_m: position.map(|place| place.sigma_m()),
        heading_deg: heading.map(|heading| heading.deg()),
        heading_ambiguous: heading.is_some_and(|heading| heading.is_ambiguous()),
        length_m: observation.length_m,
        width_m: observation.width_m,
    }
}

pub fn labels_to_wire(labels: &Labels) -> HashMap<String, String> {
    labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

pub fn modality_to_wire(modality: Modality) -> wire::Modality {
    match modality {
        Modality::Optical => wire::Modality::Optical,
        Modality::Sar => wire::Modality::Sar,
    }
}

pub fn timestamp(time: Time) -> Timestamp {
    let (seconds, nanos) = time.unix();
    Timestamp { seconds, nanos: nanos as i32 }
}

pub fn time(field: &str, timestamp: &Timestamp) -> Result<Time, Problem> {
    let nanos = u32::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    nanos.and_then(|nanos| Time::from_unix(timestamp.seconds, nanos)).ok_or_else(|| {
        let message = format!("{field} is no time between the years 1678 and 2262");
        Problem::invalid(Reason::TimeInvalid, field, message)
    })
}

fn position(observation: &wire::Observation) -> Result<Option<Position>, Problem> {
    let sigma_m = observation.position_sigma_m.unwrap_or(0.0);
    match (observation.latitude, observation.longitude) {
        (Some(latitude), Some(longitude)) => Ok(Some(Position::new(latitude, longitude, sigma_m)?)),
        (None, None) if observation.position_sigma_m.is_none() => Ok(None),
        (latitude, _) => {
            let missing = if latitude.is_none() { "latitude" } else { "longitude" };
            let message = format!("{missing} is missing: a position has both, an uncertainty has a position");
            Err(Problem::invalid(Reason::PositionIncomplete, missing, message))
        }
    }
}

fn heading(observation: &wire::Observation) -> Result<Option<Heading>, Problem> {
    let heading = observation.heading_deg.map(|deg| Heading::new(deg, observation.heading_ambiguous));
    Ok(heading.transpose()?)
}
