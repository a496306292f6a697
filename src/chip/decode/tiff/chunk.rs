//! The strips or tiles of a TIFF: the position of each in the picture and in the file,
//! bounds-checked before any is read.

use super::super::{DecodeError, ImageLimits};
use super::codec::Compression;
use super::directory::Directory;
use super::picture::{Picture, Planes, Predictor};
use super::refusal::{convert, unsupported};
use super::tag::Tag;

/// All chunks of a picture.
#[derive(Debug)]
pub struct Grid {
    width: usize,
    height: usize,
    across: usize,
    down: usize,
    planes: usize,
    picture: (usize, usize),
    tiled: bool,
    offsets: Vec<u64>,
    /// `None` where the file omits them and the geometry determines the size.
    byte_counts: Option<Vec<u64>>,
}

/// One chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    index: usize,
    /// Its upper left pixel in the picture.
    pub x: usize,
    pub y: usize,
    /// Pixels that it stores; those of a tile may extend beyond the picture.
    pub width: usize,
    pub height: usize,
    /// Rows of a chunk that is not cut off by the end of the picture.
    pub height_max: usize,
    /// Pixels of it that are inside the picture.
    pub columns: usize,
    pub rows: usize,
    /// The sample that it holds, where planes are separate.
    pub plane: usize,
}

impl Grid {
    /// # Errors
    /// If the file has no offsets for the grid, or its chunks together are larger than an image may be.
    pub fn read(
        directory: &Directory<'_>,
        picture: &Picture,
        limits: &ImageLimits,
    ) -> Result<Self, DecodeError> {
        let tiled = directory.has(Tag::TILE_WIDTH);
        let [width, height] = if tiled {
            let [width, height] = [Tag::TILE_WIDTH, Tag::TILE_LENGTH].map(|tag| directory.integer(tag));
            [width?.unwrap_or(0), height?.unwrap_or(0)]
        } else {
            let rows = directory.integer(Tag::ROWS_PER_STRIP)?.unwrap_or(u64::MAX);
            [picture.width as u64, rows.min(picture.height as u64)]
        };
        if width == 0 || height == 0 {
            return Err(DecodeError::corrupt(format!("its chunks have {width} x {height} pixels")));
        }
        let planes = if picture.planes == Planes::Apart { usize::from(picture.stored.channels) } else { 1 };
        let (across, down) =
            ((picture.width as u64).div_ceil(width), (picture.height as u64).div_ceil(height));
        let count = across.saturating_mul(down).saturating_mul(planes as u64);
        check_memory([width, height, count], tiled, picture, limits)?;
        let (offsets_tag, counts_tag) = if tiled && directory.has(Tag::TILE_OFFSETS) {
            (Tag::TILE_OFFSETS, Tag::TILE_BYTE_COUNTS)
        } else {
            // Some writers use the strip tags for tiles.
            (Tag::STRIP_OFFSETS, Tag::STRIP_BYTE_COUNTS)
        };
        let values = |tag: Tag| match directory.count(tag) {
            found if found < count => {
                Err(DecodeError::corrupt(format!("{tag} has {found} values for {count} chunks")))
            }
            _ => directory.integers(tag, count),
        };
        let offsets = values(offsets_tag)?;
        let counted = directory.has(counts_tag);
        if !counted && picture.compression != Compression::None && count > 1 {
            return Err(DecodeError::corrupt(format!("{counts_tag} is missing")));
        }
        Ok(Self {
            width: width as usize,
            height: height as usize,
            across: across as usize,
            down: down as usize,
            planes,
            picture: (picture.width, picture.height),
            tiled,
            offsets,
            byte_counts: if counted { Some(values(counts_tag)?) } else { None },
        })
    }

    pub fn count(&self) -> usize {
        self.across * self.down * self.planes
    }

    pub fn chunk(&self, index: usize) -> Chunk {
        let within = index % (self.across * self.down);
        let (x, y) = (within % self.across * self.width, within / self.across * self.height);
        let (columns, rows) = (self.width.min(self.picture.0 - x), self.height.min(self.picture.1 - y));
        // The last strip ends with the picture; tiles are whole.
        let height = if self.tiled { self.height } else { rows };
        let plane = index / (self.across * self.down);
        Chunk { index, x, y, width: self.width, height, height_max: self.height, columns, rows, plane }
    }

    /// The stored bytes of a chunk, or `None` where the file omits it; `plain_bytes` is the size of its
    /// uncompressed pixels.
    pub fn data<'a>(
        &self,
        directory: &Directory<'a>,
        chunk: &Chunk,
        plain_bytes: Option<u64>,
    ) -> Result<Option<&'a [u8]>, DecodeError> {
        let (offset, single) = (self.offsets[chunk.index], self.count() == 1);
        let byte_count = self.byte_counts.as_ref().map(|counts| counts[chunk.index]);
        if offset == 0 {
            return match byte_count {
                Some(0) => Ok(None),
                _ => Err(DecodeError::corrupt("a chunk lies where the header is")),
            };
        }
        match (byte_count, plain_bytes) {
            // As in libtiff, the geometry is trusted over a byte count that may be missing or wrong.
            (None | Some(0), Some(bytes)) => directory.slice(offset, bytes).map(Some),
            (Some(count), Some(bytes)) if single || count >= bytes => {
                directory.slice(offset, bytes).map(Some)
            }
            (None | Some(0), None) if single => directory.rest(offset).map(Some),
            (None | Some(0), None) => Err(DecodeError::corrupt("a chunk has no bytes")),
            (Some(count), _) => directory.slice(offset, count).map(Some),
        }
    }
}

/// Checks chunks against the bounds of an image. Each is limited in pixels, so that decoding it needs no more
/// memory than decoding an image. All of them together are limited in bytes, so that parts outside the
/// picture cost no more than a picture.
fn check_memory(
    [width, height, count]: [u64; 3],
    tiled: bool,
    picture: &Picture,
    limits: &ImageLimits,
) -> Result<(), DecodeError> {
    /// Tiles of usual sizes are accepted, however small the image limit is.
    const CHUNK_PIXELS: u64 = 1 << 20;
    let pixels = width.saturating_mul(height);
    let sample_bytes = match picture.stored.bits {
        // The float predictor is undone on a copy of a row.
        bits if picture.predictor == Predictor::Float => u64::from(bits / 4),
        bits @ (8 | 16 | 32 | 64 | 128) => u64::from(bits / 8),
        // Packed samples are unpacked to 32 bits.
        _ => 4,
    };
    let chunk_bytes = pixels.saturating_mul(picture.chunk_channels() as u64).saturating_mul(sample_bytes);
    if pixels <= limits.pixels_max.max(CHUNK_PIXELS)
        && chunk_bytes <= limits.memory_max() / 2
        && chunk_bytes.saturating_mul(count) <= limits.memory_max()
    {
        return Ok(());
    }
    let (kind, channels) = (if tiled { "tiles" } else { "strips" }, picture.stored.channels);
    let what = format!("a TIFF of {count} {kind} of {width} x {height} pixels of {channels} samples");
    Err(unsupported(what, convert::SMALLER_TILES))
}
