//! Which entries take part in a search, a listing or a deletion.

use super::entry::{Entry, EntryId, NumberError, Position, Time, VesselId, check_number};
use crate::chip::Modality;

/// Conditions joined by "and", the values of one condition by "or"; an empty condition admits every entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    pub modalities: Vec<Modality>,
    /// An entry without a time is in no range.
    pub time_range: Option<TimeRange>,
    /// An entry without a position is in no area.
    pub area: Option<Area>,
    pub vessels: Vec<VesselId>,
    /// The entry must have every label with this value.
    pub labels: Vec<(String, String)>,
    pub entries: Vec<EntryId>,
    /// Entries of these vessels are excluded.
    pub excluded_vessels: Vec<VesselId>,
    /// Entries with any of these labels are excluded.
    pub excluded_labels: Vec<(String, String)>,
    pub excluded_entries: Vec<EntryId>,
    /// Only entries without vessel id take part.
    pub is_unnamed: bool,
}

/// `from` is included, `to` excluded; `None` leaves that end open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    from: Option<Time>,
    to: Option<Time>,
}

/// The range ends before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("time_range ends before it begins")]
pub struct TimeRangeError;

impl TimeRange {
    /// # Errors
    /// The end is before the beginning. A range from a time to itself is valid and empty.
    pub fn new(from: Option<Time>, to: Option<Time>) -> Result<Self, TimeRangeError> {
        match (from, to) {
            (Some(from), Some(to)) if to < from => Err(TimeRangeError),
            _ => Ok(Self { from, to }),
        }
    }

    pub fn contains(&self, time: Time) -> bool {
        self.from.is_none_or(|from| from <= time) && self.to.is_none_or(|to| time < to)
    }
}

/// A box in degrees, including its edges. When west is greater than east, it crosses the antimeridian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    south: f64,
    west: f64,
    north: f64,
    east: f64,
}

impl Area {
    /// # Errors
    /// A latitude or longitude is out of range, or north is below south.
    pub fn new(south: f64, west: f64, north: f64, east: f64) -> Result<Self, NumberError> {
        check_number("area.south", south, "-90 to 90", |value| value.abs() <= 90.0)?;
        check_number("area.north", north, "area.south to 90", |value| value <= 90.0 && value >= south)?;
        check_number("area.west", west, "-180 to 180", |value| value.abs() <= 180.0)?;
        check_number("area.east", east, "-180 to 180", |value| value.abs() <= 180.0)?;
        Ok(Self { south, west, north, east })
    }

    pub fn contains(&self, position: &Position) -> bool {
        let (latitude, longitude) = (position.latitude_deg(), position.longitude_deg());
        if !(self.south..=self.north).contains(&latitude) {
            return false;
        }
        // -180 and 180 are the same meridian, so a point on it is checked with both values.
        let named = |longitude: f64| {
            if self.west <= self.east {
                (self.west..=self.east).contains(&longitude)
            } else {
                longitude >= self.west || longitude <= self.east
            }
        };
        named(longitude) || (longitude.abs() == 180.0 && named(-longitude))
    }
}

impl Filter {
    /// Whether every entry takes part.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it only excludes entries.
    pub fn only_excludes(&self) -> bool {
        let exclusions = Self {
            excluded_vessels: self.excluded_vessels.clone(),
            excluded_labels: self.excluded_labels.clone(),
            excluded_entries: self.excluded_entries.clone(),
            ..Self::default()
        };
        *self == exclusions
    }

    /// Whether `entry` takes part.
    pub fn admits(&self, entry: &Entry) -> bool {
        fn among<T>(wanted: &[T], holds: impl Fn(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(holds)
        }
        let observation = &entry.observation;
        let has = |(name, value): &(String, String)| entry.labels.get(name) == Some(value);
        among(&self.modalities, |modality| *modality == entry.modality)
            && among(&self.vessels, |vessel| entry.vessel.as_ref() == Some(vessel))
            && among(&self.entries, |id| *id == entry.id)
            && self.labels.iter().all(has)
            && !self.excluded_vessels.iter().any(|vessel| entry.vessel.as_ref() == Some(vessel))
            && !self.excluded_entries.contains(&entry.id)
            && !self.excluded_labels.iter().any(has)
            && (!self.is_unnamed || entry.vessel.is_none())
            && self
                .time_range
                .is_none_or(|range| observation.observed_at.is_some_and(|time| range.contains(time)))
            && self
                .area
                .is_none_or(|area| observation.position.as_ref().is_some_and(|place| area.contains(place)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(latitude: f64, longitude: f64) -> Position {
        Position::new(latitude, longitude, 0.0).expect("a place")
    }

    #[test]
    fn an_area_may_cross_the_antimeridian_and_has_its_edges() {
        let fiji = Area::new(-20.0, 175.0, -10.0, -175.0).expect("an area");
        for (latitude, longitude, inside) in [
            (-15.0, 179.0, true),
            (-15.0, -179.0, true),
            (-15.0, 180.0, true),
            (-15.0, -180.0, true),
            (-20.0, 175.0, true),
            (-15.0, 170.0, false),
            (-15.0, 0.0, false),
            (-21.0, 179.0, false),
        ] {
            assert_eq!(fiji.contains(&place(latitude, longitude)), inside, "{latitude} {longitude}");
        }
        let up_to_the_line = Area::new(-90.0, 170.0, 90.0, 180.0).expect("an area");
        assert!(up_to_the_line.contains(&place(0.0, -180.0)));
        assert!(!up_to_the_line.contains(&place(0.0, -179.0)));
        assert!(Area::new(10.0, 0.0, 5.0, 1.0).is_err() && Area::new(0.0, -181.0, 1.0, 1.0).is_err());
    }

    #[test]
    fn a_time_range_is_half_open() {
        let at = Time::from_nanos;
        let range = TimeRange::new(Some(at(5)), Some(at(7))).expect("a range");
        assert_eq!([4, 5, 6, 7].map(|time| range.contains(at(time))), [false, true, true, false]);
        assert!(TimeRange::new(None, Some(at(0))).expect("open").contains(at(i64::MIN)));
        assert_eq!(TimeRange::new(Some(at(7)), Some(at(5))), Err(TimeRangeError));
        assert!(!TimeRange::new(Some(at(5)), Some(at(5))).expect("empty").contains(at(5)));
    }
}
