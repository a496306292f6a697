//! Filters of entries.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::super::problem::Problem;
use super::sighting::time;
use super::{bounded_text, each, entry_id, modality, text_problem};
use crate::gallery::{Area, Filter, TimeRange, VesselId};
use crate::message::excerpt;
use crate::reason::Reason;
use crate::wire;

/// Maximum number of values that one condition of a filter may list.
const VALUES_MAX: usize = 10_000;

/// A filter; its fields are named by their path in the request.
pub fn filter(filter: wire::EntryFilter) -> Result<Filter, Problem> {
    check_counts(&filter)?;
    check_contradictions(&filter)?;
    let modalities = filter.modalities.iter().enumerate().map(|(at, number)| {
        let field = format!("modalities[{at}]");
        let unset = || Problem::invalid(Reason::ModalityUnknown, &*field, format!("{field} is not set"));
        modality(&field, *number)?.ok_or_else(unset)
    });
    Ok(Filter {
        modalities: modalities.collect::<Result<_, _>>()?,
        time_range: filter.time_range.map(time_range).transpose()?.flatten(),
        area: filter.area.map(area).transpose()?.flatten(),
        vessels: each("vessel_ids", &filter.vessel_ids, vessel)?,
        labels: labels("labels", filter.labels)?,
        entries: each("entry_ids", &filter.entry_ids, entry_id)?,
        excluded_vessels: each("exclude_vessel_ids", &filter.exclude_vessel_ids, vessel)?,
        excluded_labels: labels("exclude_labels", filter.exclude_labels)?,
        excluded_entries: each("exclude_entry_ids", &filter.exclude_entry_ids, entry_id)?,
        is_unnamed: filter.without_vessel,
    })
}

fn check_counts(filter: &wire::EntryFilter) -> Result<(), Problem> {
    for (field, count) in [
        ("modalities", filter.modalities.len()),
        ("vessel_ids", filter.vessel_ids.len()),
        ("labels", filter.labels.len()),
        ("entry_ids", filter.entry_ids.len()),
        ("exclude_vessel_ids", filter.exclude_vessel_ids.len()),
        ("exclude_labels", filter.exclude_labels.len()),
        ("exclude_entry_ids", filter.exclude_entry_ids.len()),
    ] {
        if count > VALUES_MAX {
            let message = format!("{field} has {count} elements, the limit is {VALUES_MAX}");
            return Err(
                Problem::invalid(Reason::FilterTooLong, field, message).with_metadata("limit", VALUES_MAX)
            );
        }
    }
    Ok(())
}

/// No entry can match a value that is both wanted and excluded.
fn check_contradictions(filter: &wire::EntryFilter) -> Result<(), Problem> {
    if filter.without_vessel && !filter.vessel_ids.is_empty() {
        let message =
            "without_vessel wants entries without a vessel, vessel_ids those of some: leave one out";
        return Err(Problem::invalid(Reason::FilterContradicts, "without_vessel", message));
    }
    let contradicts = |field: &str, value: &str, wanted: &str| {
        let message = format!("{field} names {}, which {wanted} wants: leave one out", excerpt(value));
        Err(Problem::invalid(Reason::FilterContradicts, field, message))
    };
    if let Some(id) = in_both(&filter.vessel_ids, &filter.exclude_vessel_ids) {
        return contradicts("exclude_vessel_ids", id, "vessel_ids");
    }
    if let Some(id) = in_both(&filter.entry_ids, &filter.exclude_entry_ids) {
        return contradicts("exclude_entry_ids", id, "entry_ids");
    }
    if let Some((name, value)) = in_both(&filter.labels, &filter.exclude_labels) {
        return contradicts("exclude_labels", &format!("{name}={value}"), "labels");
    }
    Ok(())
}

fn in_both<T: Eq + Hash>(
    wanted: impl IntoIterator<Item = T>,
    excluded: impl IntoIterator<Item = T>,
) -> Option<T> {
    let wanted: HashSet<T> = wanted.into_iter().collect();
    excluded.into_iter().find(|value| wanted.contains(value))
}

fn vessel(field: &str, id: &str) -> Result<VesselId, Problem> {
    if id.is_empty() {
        let message = format!("{field} is empty: entries without a vessel are those of without_vessel");
        return Err(Problem::invalid(Reason::TextEmpty, field, message));
    }
    VesselId::new(id).map_err(|cause| text_problem(field, cause))
}

/// `None` for a range without either end, which is not a condition.
fn time_range(range: wire::TimeRange) -> Result<Option<TimeRange>, Problem> {
    let instant = |field, timestamp: Option<prost_types::Timestamp>| {
        timestamp.as_ref().map(|timestamp| time(field, timestamp)).transpose()
    };
    let (start, end) = (instant("time_range.start", range.start)?, instant("time_range.end", range.end)?);
    if start.is_none() && end.is_none() {
        return Ok(None);
    }
    let range = TimeRange::new(start, end);
    let range = range
        .map_err(|cause| Problem::invalid(Reason::TimeRangeInverted, "time_range", cause.to_string()))?;
    Ok(Some(range))
}

/// `None` for an area without any field set, which is not a condition.
fn area(area: wire::Area) -> Result<Option<Area>, Problem> {
    if area == wire::Area::default() {
        return Ok(None);
    }
    Ok(Some(Area::new(area.south, area.west, area.north, area.east)?))
}

fn labels(field: &str, labels: HashMap<String, String>) -> Result<Vec<(String, String)>, Problem> {
    let mut labels: Vec<(String, String)> = labels.into_iter().collect();
    labels.sort();
    labels
        .iter()
        .try_for_each(|(name, value)| bounded_text(field, name).and_then(|()| bounded_text(field, value)))?;
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(wanted: wire::EntryFilter) -> (Reason, String) {
        let problem = filter(wanted).expect_err("a filter at fault");
        (problem.reason, problem.field.expect("a field"))
    }

    #[test]
    fn what_is_wanted_and_excluded_at_once_is_refused() {
        let texts = |text: &str| vec!["other".to_owned(), text.to_owned()];
        let label = |value: &str| HashMap::from([("port".to_owned(), value.to_owned())]);
        let default = wire::EntryFilter::default;
        for (wanted, field) in [
            (
                wire::EntryFilter { vessel_ids: texts("a"), exclude_vessel_ids: texts("a"), ..default() },
                "exclude_vessel_ids",
            ),
            (
                wire::EntryFilter { entry_ids: texts("a"), exclude_entry_ids: texts("b"), ..default() },
                "exclude_entry_ids",
            ),
            (
                wire::EntryFilter { labels: label("Kiel"), exclude_labels: label("Kiel"), ..default() },
                "exclude_labels",
            ),
            (
                wire::EntryFilter { vessel_ids: texts("a"), without_vessel: true, ..default() },
                "without_vessel",
            ),
        ] {
            assert_eq!(refused(wanted), (Reason::FilterContradicts, field.to_owned()));
        }
        let fine = wire::EntryFilter {
            labels: label("Kiel"),
            exclude_labels: label("Oslo"),
            exclude_vessel_ids: texts("a"),
            without_vessel: true,
            ..default()
        };
        assert!(filter(fine).is_ok());
        let unset = wire::EntryFilter { modalities: vec![1, 0], ..default() };
        assert_eq!(refused(unset), (Reason::ModalityUnknown, "modalities[1]".to_owned()));
        let empty = wire::EntryFilter { exclude_vessel_ids: vec![String::new()], ..default() };
        assert_eq!(refused(empty), (Reason::TextEmpty, "exclude_vessel_ids[0]".to_owned()));
    }

    #[test]
    fn conditions_without_any_end_are_none() {
        let empty = wire::EntryFilter {
            time_range: Some(wire::TimeRange::default()),
            area: Some(wire::Area::default()),
            ..wire::EntryFilter::default()
        };
        assert!(filter(empty).expect("a filter").is_empty());
        let end = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
        let open = wire::EntryFilter {
            time_range: Some(wire::TimeRange { start: None, end }),
            ..wire::EntryFilter::default()
        };
        assert!(!filter(open).expect("a filter").is_empty());
    }
}
