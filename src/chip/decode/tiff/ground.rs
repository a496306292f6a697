//! The georeferencing tags of a TIFF, bounded and not interpreted.

use super::super::DecodeError;
use super::directory::Directory;
use super::tag::Tag;
use crate::chip::georeference::GeoTags;

/// Six numbers for each ground control point; a chip has few.
const TIEPOINT_NUMBERS_MAX: u64 = 6 * 1024;
/// Four numbers for each key.
const KEY_NUMBERS_MAX: u64 = 4 * 256;
const PARAMETERS_MAX: u64 = 1024;
const TEXT_BYTES_MAX: u64 = 4096;

pub fn read(directory: &Directory<'_>) -> Result<GeoTags, DecodeError> {
    let ascii = directory.raw(Tag::GEO_ASCII, TEXT_BYTES_MAX)?;
    Ok(GeoTags {
        pixel_scale: directory.reals(Tag::PIXEL_SCALE, 3)?,
        tiepoints: directory.reals(Tag::TIEPOINTS, TIEPOINT_NUMBERS_MAX)?,
        transformation: directory.reals(Tag::TRANSFORMATION, 16)?,
        geo_keys: {
            let numbers = directory.integers(Tag::GEO_KEYS, KEY_NUMBERS_MAX)?;
            numbers.into_iter().map(|number| u16::try_from(number).unwrap_or(u16::MAX)).collect()
        },
        geo_doubles: directory.reals(Tag::GEO_DOUBLES, PARAMETERS_MAX)?,
        geo_ascii: String::from_utf8_lossy(ascii).trim_end_matches('\0').to_owned(),
    })
}
