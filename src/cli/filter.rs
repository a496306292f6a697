//! Flags that select the entries of a gallery, like `EntryFilter` of the contract.

use std::num::ParseFloatError;

use anyhow::bail;
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use prost_types::Timestamp;
use shipreid::wire::{Area, EntryFilter, Modality, TimeRange};

use super::{Refusal, labels};

/// Conditions on entries, joined by "and"; the values of one condition are joined by "or".
#[derive(Args)]
#[command(next_help_heading = "Which entries take part")]
pub struct FilterFlags {
    /// Entries of this modality only. May be repeated.
    #[arg(long = "among", value_name = "optical|sar", value_parser = modality)]
    modalities: Vec<Modality>,
    /// Entries of this vessel only. May be repeated.
    #[arg(long = "vessel", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    vessels: Vec<String>,
    /// This entry only. May be repeated.
    #[arg(long = "entry", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    entries: Vec<String>,
    /// Entries with this label only. May be repeated: with all of them.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// Entries that were seen at this time or later, as RFC 3339: 2026-03-01T04:05:06Z.
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// Entries that were seen before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
    /// Entries within this box, in degrees; one whose west is above its east crosses the antimeridian.
    #[arg(long, value_name = "SOUTH,WEST,NORTH,EAST", value_parser = area, allow_hyphen_values = true)]
    area: Option<Area>,
    /// No entries of this vessel. May be repeated.
    #[arg(long = "not-vessel", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    excluded_vessels: Vec<String>,
    /// Not this entry. May be repeated.
    #[arg(long = "not-entry", value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    excluded_entries: Vec<String>,
    /// No entries with this label. May be repeated: with none of them.
    #[arg(long = "not-label", value_name = "NAME=VALUE")]
    excluded_labels: Vec<String>,
    /// Only entries that have no vessel yet.
    #[arg(long, conflicts_with = "vessels")]
    without_vessel: bool,
}

impl FilterFlags {
    /// `None` if every entry is selected.
    ///
    /// # Errors
    /// A label is malformed, or a time range ends before it begins.
    pub fn filter(&self) -> anyhow::Result<Option<EntryFilter>> {
        if let (Some(from), Some(to)) = (self.from, self.to)
            && (from.seconds, from.nanos) >= (to.seconds, to.nanos)
        {
            bail!(Refusal(format!("--from {from} is not before --to {to}")));
        }
        let is_bounded = self.from.is_some() || self.to.is_some();
        let filter = EntryFilter {
            modalities: self.modalities.iter().map(|modality| i32::from(*modality)).collect(),
            time_range: is_bounded.then_some(TimeRange { start: self.from, end: self.to }),
            area: self.area,
            vessel_ids: self.vessels.clone(),
            labels: labels::parse(&self.labels)?,
            entry_ids: self.entries.clone(),
            exclude_vessel_ids: self.excluded_vessels.clone(),
            exclude_labels: labels::parse(&self.excluded_labels)?,
            exclude_entry_ids: self.excluded_entries.clone(),
            without_vessel: self.without_vessel,
        };
        Ok(Some(filter).filter(|filter| *filter != EntryFilter::default()))
    }
}

fn modality(text: &str) -> Result<Modality, String> {
    match text {
        "optical" => Ok(Modality::Optical),
        "sar" => Ok(Modality::Sar),
        _ => Err("expected optical or sar".into()),
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "expected a time as in RFC 3339, for example 2026-03-01T04:05:06Z".into())
}

fn area(text: &str) -> Result<Area, String> {
    let numbers: Result<Vec<f64>, ParseFloatError> =
        text.split(',').map(|number| number.trim().parse()).collect();
    let Ok([south, west, north, east]) = <[f64; 4]>::try_from(numbers.unwrap_or_default()) else {
        return Err("expected south,west,north,east in degrees, for example 51.5,3.0,52.5,4.5".into());
    };
    for (name, value, bound) in
        [("south", south, 90.0), ("north", north, 90.0), ("west", west, 180.0), ("east", east, 180.0)]
    {
        // This also rejects NaN.
        if !(-bound..=bound).contains(&value) {
            return Err(format!("{name} is {value}, expected -{bound} to {bound}"));
        }
    }
    if south > north {
        return Err(format!("south is {south}, which is above north, {north}"));
    }
    Ok(Area { south, west, north, east })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        filter: FilterFlags,
    }

    /// The filter, or why it is invalid.
    fn filter(arguments: &[&str]) -> Result<Option<EntryFilter>, String> {
        let arguments = Arguments::try_parse_from([&["program"], arguments].concat());
        arguments.map_err(|cause| cause.to_string())?.filter.filter().map_err(|cause| cause.to_string())
    }

    #[test]
    fn every_condition_of_the_contract_has_a_flag() {
        let found = filter(&[
            "--among=sar",
            "--among",
            "optical",
            "--vessel",
            "0003",
            "--entry",
            "a.tif",
            "--label",
            "port=a=b",
            "--from",
            "2026-03-01T00:00:00Z",
            "--to",
            "2026-03-02T00:00:00+01:00",
            "--area",
            "-10.5,170,5,-170",
            "--not-vessel=0004",
            "--not-label=fleet=tugs",
            "--not-entry=b.tif",
        ]);
        let expected = EntryFilter {
            modalities: vec![Modality::Sar.into(), Modality::Optical.into()],
            time_range: Some(TimeRange {
                start: Some(Timestamp { seconds: 1_772_323_200, nanos: 0 }),
                end: Some(Timestamp { seconds: 1_772_406_000, nanos: 0 }),
            }),
            area: Some(Area { south: -10.5, west: 170.0, north: 5.0, east: -170.0 }),
            vessel_ids: vec!["0003".into()],
            labels: HashMap::from([("port".into(), "a=b".into())]),
            entry_ids: vec!["a.tif".into()],
            exclude_vessel_ids: vec!["0004".into()],
            exclude_labels: HashMap::from([("fleet".into(), "tugs".into())]),
            exclude_entry_ids: vec!["b.tif".into()],
            without_vessel: false,
        };
        let unnamed = EntryFilter { without_vessel: true, ..EntryFilter::default() };
        assert_eq!(filter(&["--without-vessel"]), Ok(Some(unnamed)));
        assert_eq!(found, Ok(Some(expected)));
        assert_eq!(filter(&[]), Ok(None));
    }

    #[test]
    fn what_no_entry_can_meet_is_refused_with_its_value() {
        for (arguments, says) in [
            (&["--among", "radar"][..], "radar"),
            (&["--vessel", ""], "--vessel"),
            (&["--label", "port"], "--label port"),
            (&["--label", "port=a", "--label", "port=b"], "port is given twice"),
            (&["--from", "yesterday"], "yesterday"),
            (&["--from", "2026-03-02T00:00:00Z", "--to", "2026-03-02T00:00:00Z"], "is not before --to"),
            (&["--area", "1,2,3"], "south,west,north,east"),
            (&["--area", "a,b,c,d"], "south,west,north,east"),
            (&["--area", "3,2,1,4"], "south is 3"),
            (&["--area", "-91,2,1,4"], "south is -91"),
            (&["--area", "1,2,3,181"], "east is 181"),
            (&["--area", "1,NaN,3,4"], "west is NaN"),
            (&["--not-label", "port"], "port"),
            (&["--without-vessel", "--vessel", "0003"], "--vessel"),
        ] {
            let refused = filter(arguments).expect_err("refused");
            assert!(refused.contains(says), "{arguments:?}: {refused}");
        }
    }
}
