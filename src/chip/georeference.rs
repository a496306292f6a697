//! The size of a pixel on the ground according to the file itself: the tags of GeoTIFF.
//!
//! A file states steps in its coordinate system: degrees, or metres of a projection, which are longer or
//! shorter than metres on the ground (in Web Mercator at 60 degrees north, twice as long). Ground lengths are
//! measured between points on the WGS 84 ellipsoid around the image's centre, whatever the projection.

mod crs;
mod grid;
mod keys;
#[cfg(test)]
mod tests;

use self::crs::Crs;
use self::grid::Grid;
use self::keys::Keys;
use super::pixel_size::PixelSize;

/// ModelPixelScale, ModelTiepoint and ModelTransformation: a TIFF without any of them does not
/// state its pixel size.
const SIZE_TAGS: [u16; 3] = [33550, 33922, 34264];
/// A directory entry: tag, type, count and value; in BigTIFF the last two have eight bytes.
const ENTRY_BYTES: (usize, usize) = (12, 20);

/// The GeoTIFF tags as stored in the file; empty where it has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GeoTags {
    /// ModelPixelScale (33550).
    pub pixel_scale: Vec<f64>,
    /// ModelTiepoint (33922), six numbers each.
    pub tiepoints: Vec<f64>,
    /// ModelTransformation (34264), a matrix of 4 x 4, row by row.
    pub transformation: Vec<f64>,
    /// GeoKeyDirectory (34735).
    pub geo_keys: Vec<u16>,
    /// GeoDoubleParams (34736).
    pub geo_doubles: Vec<f64>,
    /// GeoAsciiParams (34737).
    pub geo_ascii: String,
}

/// What a file states about the size of its pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ground {
    /// Nothing.
    Silent,
    /// Metres on the ground, at the image's centre.
    Size(PixelSize),
    /// Something from which no metres on the ground can be derived.
    Unusable(Unusable),
}

/// Why a georeferenced file gives no pixel size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("it names no coordinate system")]
    NoSystem,
    #[error("its coordinate system is neither geographic nor projected")]
    Kind,
    #[error("the scale of its projection{} is not known", Code(.0))]
    Projection(Option<u16>),
    #[error("its unit {0} is not known")]
    Unit(u16),
    #[error("its numbers map no pixels to the ground")]
    Grid,
    #[error("its coordinates lie outside their coordinate system")]
    Outside,
    #[error("its pixels would be less than nothing or more than 100 metres large")]
    Size,
}

/// An EPSG code in a message.
struct Code<'a>(&'a Option<u16>);

impl std::fmt::Display for Code<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |code| write!(f, " (EPSG:{code})"))
    }
}

impl GeoTags {
    /// Metres on the ground at the centre of an image that is stored with this many columns and rows.
    pub fn ground(&self, width: usize, height: usize) -> Ground {
        match self.ground_size(width, height) {
            Ok(None) => Ground::Silent,
            Ok(Some(size)) => Ground::Size(size),
            Err(why) => Ground::Unusable(why),
        }
    }

    fn ground_size(&self, width: usize, height: usize) -> Result<Option<PixelSize>, Unusable> {
        if !Grid::is_in(self) {
            return Ok(None);
        }
        let crs = Crs::read(&Keys::new(self))?;
        let grid = Grid::read(self, crs.turn())?;
        let centre = grid.at(width as f64 / 2.0, height as f64 / 2.0);
        let metres = |step: [f64; 2]| ground_length(&crs, centre, step);
        let size = PixelSize::new(metres(grid.column)?, metres(grid.row)?);
        size.map(Some).map_err(|_| Unusable::Size)
    }
}

impl Ground {
    /// The size for the image with rows and columns swapped.
    pub fn turned(self) -> Self {
        match self {
            Self::Size(size) => Self::Size(size.turned()),
            other => other,
        }
    }
}

/// Metres per step at a point, measured over a longer step in the same direction, so that rounding
/// is negligible.
fn ground_length(crs: &Crs, [x, y]: [f64; 2], [dx, dy]: [f64; 2]) -> Result<f64, Unusable> {
    let length = dx.hypot(dy);
    let reach = crs.reach() / length;
    let ends = [-reach, reach].map(|by| crs.earth([x + by * dx, y + by * dy]));
    let [Some(from), Some(to)] = ends else { return Err(Unusable::Outside) };
    let squares = from.iter().zip(to).map(|(from, to)| (to - from).powi(2));
    Ok(squares.sum::<f64>().sqrt() / (2.0 * reach))
}

/// Whether these bytes are a TIFF whose first image has tags that may state its pixel size. Reads only its
/// directory.
pub fn may_say_its_size(image: &[u8]) -> bool {
    directory_tags(image).is_some_and(|tags| tags.iter().any(|tag| SIZE_TAGS.contains(tag)))
}

/// Tags of the first directory.
fn directory_tags(image: &[u8]) -> Option<Vec<u16>> {
    let little = match image.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    // Up to eight bytes as one number.
    let number = |at: usize, bytes: usize| {
        let bytes = image.get(at..at.checked_add(bytes)?)?.iter();
        let join = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if little { bytes.rev().fold(0, join) } else { bytes.fold(0, join) })
    };
    let (offset, count_bytes, entry_bytes) = match number(2, 2)? {
        42 => (number(4, 4)?, 2, ENTRY_BYTES.0),
        43 => (number(8, 8)?, 8, ENTRY_BYTES.1),
        _ => return None,
    };
    let offset = usize::try_from(offset).ok()?;
    let count = usize::try_from(number(offset, count_bytes)?).ok()?;
    let first = offset + count_bytes;
    let fitting = image.len().saturating_sub(first) / entry_bytes;
    let tag = |entry: usize| number(first + entry * entry_bytes, 2).map(|tag| tag as u16);
    (0..count.min(fitting)).map(tag).collect()
}
