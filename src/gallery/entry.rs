//! What a gallery knows of one sighting: identity, observation, labels. The types hold only valid values.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use crate::arithmetic::Precision;
use crate::chip::Modality;

/// Longest identifier or text that callers choose, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// Most labels of one entry.
pub const LABELS_MAX: usize = 32;

/// One sighting of one ship, without its embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub id: EntryId,
    /// The vessel that it shows; an entry without one counts as a vessel of its own.
    pub vessel: Option<VesselId>,
    pub modality: Modality,
    pub observation: Observation,
    pub labels: Labels,
    /// Width and length of the chip in metres; `None` for a ready embedding.
    pub extent_m: Option<[f64; 2]>,
    pub enrolled_at: Time,
    /// In which the embedding that it was enrolled with was computed; `None` for a ready embedding, and where an earlier
    /// release enrolled it.
    pub precision: Option<Precision>,
    /// Hash of what was enrolled, which distinguishes a repeated enrolment from another one. Updates do not change it.
    pub content: ContentHash,
}

impl Entry {
    /// Length in metres: the observed one, else the chip's.
    pub fn length_m(&self) -> Option<f64> {
        self.observation.length_m.or(self.extent_m.map(|[_, length]| length))
    }

    /// Beam in metres: the observed one, else the chip's.
    pub fn width_m(&self) -> Option<f64> {
        self.observation.width_m.or(self.extent_m.map(|[width, _]| width))
    }

    /// Checks the bounds that the types of its parts do not enforce.
    ///
    /// # Errors
    /// The observation is invalid, or the chip's extent is not above 0.
    pub fn check(&self) -> Result<(), ObservationError> {
        self.observation.check()?;
        let [width_m, length_m] = self.extent_m.map_or([None; 2], |extent_m| extent_m.map(Some));
        check_size("the width of the chip", width_m)?;
        Ok(check_size("the length of the chip", length_m)?)
    }
}

/// A text that names something, of limited length and without control characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("is empty")]
    Empty,
    #[error("has {bytes} bytes, the limit is {limit}")]
    TooLong { bytes: usize, limit: usize },
    #[error("contains a control character")]
    Control,
}

/// # Errors
/// A text over the limit, or with control characters.
pub fn check_text(text: &str) -> Result<(), TextError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(TextError::TooLong { bytes: text.len(), limit: TEXT_BYTES_MAX });
    }
    if text.chars().any(char::is_control) { Err(TextError::Control) } else { Ok(()) }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// # Errors
            /// An empty text, one over the limit, or one with control characters.
            pub fn new(text: &str) -> Result<Self, TextError> {
                check_text(text)?;
                if text.is_empty() { Err(TextError::Empty) } else { Ok(Self(text.into())) }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier! {
    /// Unique in a gallery, 1 to 256 bytes.
    EntryId
}
identifier! {
    /// A vessel, as the caller names it, 1 to 256 bytes.
    VesselId
}

/// Nanoseconds since 1970, UTC; from the year 1678 to 2262.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(i64);

impl Time {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_nanos().try_into().unwrap_or(i64::MAX))
    }

    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// `None` where nanoseconds since 1970 do not fit 64 bits.
    pub fn from_unix(seconds: i64, nanos: u32) -> Option<Self> {
        i64::try_from(i128::from(seconds) * 1_000_000_000 + i128::from(nanos)).ok().map(Self)
    }

    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Seconds since 1970 and the nanoseconds after them.
    pub const fn unix(self) -> (i64, u32) {
        (self.0.div_euclid(1_000_000_000), self.0.rem_euclid(1_000_000_000) as u32)
    }

    /// Seconds between two times, at least 0.
    pub fn seconds_apart(self, other: Self) -> f64 {
        self.0.abs_diff(other.0) as f64 / 1e9
    }
}

/// A position on the sphere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    latitude_deg: f64,
    longitude_deg: f64,
    sigma_m: f64,
}

/// A number that is invalid in an observation.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{field} is {value}, it must be {bounds}")]
pub struct NumberError {
    pub field: &'static str,
    pub value: f64,
    pub bounds: &'static str,
}

impl Position {
    /// Degrees north and east, and the standard deviation in metres.
    ///
    /// # Errors
    /// A latitude beyond 90 degrees, a longitude beyond 180, a negative deviation, or a number that is not finite.
    pub fn new(latitude_deg: f64, longitude_deg: f64, sigma_m: f64) -> Result<Self, NumberError> {
        check_number("latitude", latitude_deg, "-90 to 90", |value| value.abs() <= 90.0)?;
        check_number("longitude", longitude_deg, "-180 to 180", |value| value.abs() <= 180.0)?;
        check_number("position_sigma_m", sigma_m, "0 or more", |value| value >= 0.0)?;
        Ok(Self { latitude_deg, longitude_deg, sigma_m })
    }

    pub fn latitude_deg(&self) -> f64 {
        self.latitude_deg
    }

    pub fn longitude_deg(&self) -> f64 {
        self.longitude_deg
    }

    pub fn sigma_m(&self) -> f64 {
        self.sigma_m
    }
}

/// The direction of the bow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heading {
    deg: f64,
    ambiguous: bool,
}

impl Heading {
    /// Degrees clockwise from north; `ambiguous` where bow and stern could not be distinguished.
    ///
    /// # Errors
    /// An angle outside 0 to below 360.
    pub fn new(deg: f64, ambiguous: bool) -> Result<Self, NumberError> {
        check_number("heading_deg", deg, "0 to below 360", |value| (0.0..360.0).contains(&value))?;
        Ok(Self { deg, ambiguous })
    }

    pub fn deg(&self) -> f64 {
        self.deg
    }

    pub fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }
}

/// One detection, as far as a tracking backend knows it. An empty text means unknown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    pub detection_id: String,
    pub scene_id: String,
    pub sensor: String,
    pub observed_at: Option<Time>,
    pub position: Option<Position>,
    pub heading: Option<Heading>,
    /// Above 0.
    pub length_m: Option<f64>,
    /// Above 0.
    pub width_m: Option<f64>,
}

/// An invalid observation.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ObservationError {
    #[error("{field} {cause}")]
    Text { field: &'static str, cause: TextError },
    #[error(transparent)]
    Number(#[from] NumberError),
}

impl Observation {
    /// Checks the bounds that the types of its parts do not enforce: those of texts and sizes.
    ///
    /// # Errors
    /// A text over the limit or with control characters, or a size that is not finite and above 0.
    pub fn check(&self) -> Result<(), ObservationError> {
        let texts =
            [("detection_id", &self.detection_id), ("scene_id", &self.scene_id), ("sensor", &self.sensor)];
        for (field, text) in texts {
            check_text(text).map_err(|cause| ObservationError::Text { field, cause })?;
        }
        check_size("length_m", self.length_m)?;
        Ok(check_size("width_m", self.width_m)?)
    }
}

fn check_size(field: &'static str, metres: Option<f64>) -> Result<(), NumberError> {
    metres.map_or(Ok(()), |metres| check_number(field, metres, "above 0", |metres| metres > 0.0))
}

/// # Errors
/// A value that is not finite or for which `holds` does not hold.
pub fn check_number(
    field: &'static str,
    value: f64,
    bounds: &'static str,
    holds: impl Fn(f64) -> bool,
) -> Result<(), NumberError> {
    if value.is_finite() && holds(value) { Ok(()) } else { Err(NumberError { field, value, bounds }) }
}

/// Names and values that callers attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

/// Invalid labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    #[error("has {count} labels, the limit is {LABELS_MAX}")]
    TooMany { count: usize },
    #[error("{what} of the label \"{name}\" {cause}")]
    Text { what: &'static str, name: String, cause: TextError },
}

impl Labels {
    /// # Errors
    /// Too many labels, an empty name, or a text that is too long or has control characters.
    pub fn new(labels: impl IntoIterator<Item = (String, String)>) -> Result<Self, LabelsError> {
        let labels: BTreeMap<String, String> = labels.into_iter().collect();
        if labels.len() > LABELS_MAX {
            return Err(LabelsError::TooMany { count: labels.len() });
        }
        for (name, value) in &labels {
            let shown = || name.chars().take(32).collect::<String>();
            let error = |what| move |cause| LabelsError::Text { what, name: shown(), cause };
            if name.is_empty() {
                return Err(error("the name")(TextError::Empty));
            }
            check_text(name).map_err(error("the name"))?;
            check_text(value).map_err(error("the value"))?;
        }
        Ok(Self(labels))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// By name, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// SHA-256 of what a caller enrolled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        assert_eq!(EntryId::new(""), Err(TextError::Empty));
        assert_eq!(EntryId::new(&"x".repeat(257)), Err(TextError::TooLong { bytes: 257, limit: 256 }));
        assert_eq!(VesselId::new("a\nb"), Err(TextError::Control));
        assert_eq!(Position::new(91.0, 0.0, 0.0).expect_err("beyond a pole").field, "latitude");
        assert_eq!(Position::new(0.0, f64::NAN, 0.0).expect_err("no number").field, "longitude");
        assert_eq!(Position::new(0.0, 0.0, -1.0).expect_err("negative").field, "position_sigma_m");
        assert!(Position::new(-90.0, 180.0, 0.0).is_ok());
        assert!(Heading::new(360.0, false).is_err());
        let many = (0..=LABELS_MAX).map(|n| (n.to_string(), String::new()));
        assert_eq!(Labels::new(many), Err(LabelsError::TooMany { count: LABELS_MAX + 1 }));
        let unnamed = Labels::new([(String::new(), "x".into())]).expect_err("no name");
        assert_eq!(unnamed.to_string(), "the name of the label \"\" is empty");
    }

    #[test]
    fn a_time_keeps_its_nanoseconds_before_and_after_1970() {
        for (seconds, nanos) in [(0, 0), (1, 999_999_999), (-1, 1), (9_223_372_036, 854_775_807)] {
            let time = Time::from_unix(seconds, nanos).expect("in range");
            assert_eq!(time.unix(), (seconds, nanos));
        }
        assert_eq!(Time::from_unix(9_223_372_037, 0), None);
        assert_eq!(
            Time::from_nanos(i64::MIN).seconds_apart(Time::from_nanos(i64::MAX)),
            u64::MAX as f64 / 1e9
        );
    }

    #[test]
    fn the_time_now_is_that_of_the_system() {
        let seconds =
            |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let before = seconds(SystemTime::now());
        let (now, _) = Time::now().unix();
        assert!((before..=seconds(SystemTime::now())).contains(&now.unsigned_abs()), "{now}");
    }
}
