//! Filters of entries.

use super::super::problem::Problem;
use super::sighting::time;
use super::{bounded_text, entry_id, modality, text_problem};
use crate::gallery::{Area, Filter, TimeRange, VesselId};
use crate::reason::Reason;
use crate::wire;

/// Values that one condition of a filter may list.
const VALUES_MAX: usize = 10_000;

/// A filter whose fields are named from its place in the request.
pub fn filter(filter: wire::EntryFilter) -> Result<Filter, Problem> {
    for (field, count) in [
        ("modalities", filter.modalities.len()),
        ("vessel_ids", filter.vessel_ids.len()),
        ("labels", filter.labels.len()),
        ("entry_ids", filter.entry_ids.len()),
    ] {
        if count > VALUES_MAX {
            let message = format!("{field} has {count} elements, the limit is {VALUES_MAX}");
            return Err(
                Problem::invalid(Reason::FilterTooLong, field, message).with_metadata("limit", VALUES_MAX)
            );
        }
    }
    let modalities = filter.modalities.iter().map(|number| {
        modality("modalities", *number)?
            .ok_or_else(|| Problem::invalid(Reason::ModalityUnknown, "modalities", "a modality is not set"))
    });
    let vessels = filter
        .vessel_ids
        .iter()
        .map(|id| VesselId::new(id).map_err(|cause| text_problem("vessel_ids", cause)));
    let entries = filter.entry_ids.iter().map(|id| entry_id("entry_ids", id));
    Ok(Filter {
        modalities: modalities.collect::<Result<_, _>>()?,
        time_range: filter.time_range.map(time_range).transpose()?,
        area: filter.area.map(area).transpose()?,
        vessels: vessels.collect::<Result<_, _>>()?,
        labels: labels(filter.labels)?,
        entries: entries.collect::<Result<_, _>>()?,
    })
}

fn time_range(range: wire::TimeRange) -> Result<TimeRange, Problem> {
    let instant = |field, timestamp: Option<prost_types::Timestamp>| {
        timestamp.as_ref().map(|timestamp| time(field, timestamp)).transpose()
    };
    let (start, end) = (instant("time_range.start", range.start)?, instant("time_range.end", range.end)?);
    TimeRange::new(start, end)
        .map_err(|cause| Problem::invalid(Reason::TimeRangeInverted, "time_range", cause.to_string()))
}

fn area(area: wire::Area) -> Result<Area, Problem> {
    Ok(Area::new(area.south, area.west, area.north, area.east)?)
}

fn labels(labels: std::collections::HashMap<String, String>) -> Result<Vec<(String, String)>, Problem> {
    let mut labels: Vec<(String, String)> = labels.into_iter().collect();
    labels.sort();
    labels.iter().try_for_each(|(name, value)| {
        bounded_text("labels", name).and_then(|()| bounded_text("labels", value))
    })?;
    Ok(labels)
}
