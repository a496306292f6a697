//! The keys of a GeoTIFF: a directory of short numbers, some of which refer to values elsewhere.

use super::GeoTags;

/// Numbers before the first entry, and in each entry: key, tag that holds the value, count, value or offset.
const HEADER: usize = 4;
const DOUBLES: u16 = 34736;
const ASCII: u16 = 34737;

// Of GeoTIFF 1.1 (OGC 19-008r4), annex B.
pub const MODEL_TYPE: u16 = 1024;
pub const CITATION: u16 = 1026;
pub const GEOGRAPHIC_SYSTEM: u16 = 2048;
pub const ANGULAR_UNIT: u16 = 2054;
pub const ANGULAR_UNIT_SIZE: u16 = 2055;
pub const SEMI_MAJOR_AXIS: u16 = 2057;
pub const SEMI_MINOR_AXIS: u16 = 2058;
pub const INVERSE_FLATTENING: u16 = 2059;
pub const PROJECTED_SYSTEM: u16 = 3072;
pub const PROJECTED_CITATION: u16 = 3073;
pub const PROJECTION: u16 = 3074;
pub const PROJECTION_METHOD: u16 = 3075;
pub const LINEAR_UNIT: u16 = 3076;
pub const LINEAR_UNIT_SIZE: u16 = 3077;
pub const PARALLEL_1: u16 = 3078;
pub const PARALLEL_2: u16 = 3079;
pub const ORIGIN_LONGITUDE: u16 = 3080;
pub const ORIGIN_LATITUDE: u16 = 3081;
pub const FALSE_EASTING: u16 = 3082;
pub const FALSE_NORTHING: u16 = 3083;
pub const FALSE_ORIGIN_LONGITUDE: u16 = 3084;
pub const FALSE_ORIGIN_LATITUDE: u16 = 3085;
pub const FALSE_ORIGIN_EASTING: u16 = 3086;
pub const FALSE_ORIGIN_NORTHING: u16 = 3087;
pub const CENTER_LONGITUDE: u16 = 3088;
pub const CENTER_LATITUDE: u16 = 3089;
pub const CENTER_EASTING: u16 = 3090;
pub const CENTER_NORTHING: u16 = 3091;
pub const ORIGIN_SCALE: u16 = 3092;
pub const CENTER_SCALE: u16 = 3093;
pub const POLE_LONGITUDE: u16 = 3095;

/// Reads keys by their number.
pub struct Keys<'a>(&'a GeoTags);

impl<'a> Keys<'a> {
    pub fn new(tags: &'a GeoTags) -> Self {
        Self(tags)
    }

    /// A code; codes that mean "undefined" give `None`.
    pub fn code(&self, key: u16) -> Option<u16> {
        let [_, 0, _, value] = *self.entry(key)? else { return None };
        (value != 0).then_some(value)
    }

    pub fn number(&self, key: u16) -> Option<f64> {
        let [_, DOUBLES, _, at] = *self.entry(key)? else { return None };
        self.0.geo_doubles.get(usize::from(at)).copied().filter(|number| number.is_finite())
    }

    /// The first of these keys that is present.
    pub fn any_number(&self, keys: &[u16]) -> Option<f64> {
        keys.iter().find_map(|key| self.number(*key))
    }

    pub fn text(&self, key: u16) -> Option<&'a str> {
        let [_, ASCII, count, at] = *self.entry(key)? else { return None };
        let (from, count) = (usize::from(at), usize::from(count));
        let end = (from + count).min(self.0.geo_ascii.len());
        self.0.geo_ascii.get(from..end).map(|text| text.trim_end_matches(['|', '\0']))
    }

    fn entry(&self, key: u16) -> Option<&'a [u16; 4]> {
        let entries = self.0.geo_keys.get(HEADER..)?;
        entries.as_chunks::<4>().0.iter().find(|entry| entry[0] == key)
    }
}
