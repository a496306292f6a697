//! The header and the first directory of a TIFF, classic or BigTIFF, in either byte order.
//!
//! Later directories (pages, overviews, masks) are not read, as in the reference.

use super::super::DecodeError;
use super::tag::{self, Tag};

/// Bytes per value, by field type.
const BYTE: u16 = 1;
const ASCII: u16 = 2;
const SHORT: u16 = 3;
const LONG: u16 = 4;
const RATIONAL: u16 = 5;
const SIGNED_BYTE: u16 = 6;
const UNDEFINED: u16 = 7;
const SIGNED_SHORT: u16 = 8;
const SIGNED_LONG: u16 = 9;
const SIGNED_RATIONAL: u16 = 10;
const FLOAT: u16 = 11;
const DOUBLE: u16 = 12;
const IFD: u16 = 13;
const LONG8: u16 = 16;
const SIGNED_LONG8: u16 = 17;
const IFD8: u16 = 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    /// An unsigned number of at most eight bytes.
    pub fn number(self, bytes: &[u8]) -> u64 {
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        match self {
            Self::Little => bytes.iter().rev().fold(0, add),
            Self::Big => bytes.iter().fold(0, add),
        }
    }

    pub fn is_native(self) -> bool {
        (self == Self::Little) == cfg!(target_endian = "little")
    }
}

/// The known fields of the first directory.
#[derive(Debug)]
pub struct Directory<'a> {
    bytes: &'a [u8],
    order: ByteOrder,
    /// At most one per known tag.
    fields: Vec<Field>,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    tag: Tag,
    kind: u16,
    count: u64,
    /// Start of its values.
    at: u64,
}

impl<'a> Directory<'a> {
    /// # Errors
    /// If a directory does not fit the file, or contains a known field twice.
    pub fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let order = if bytes.starts_with(b"II") { ByteOrder::Little } else { ByteOrder::Big };
        let mut directory = Self { bytes, order, fields: Vec::new() };
        let big = directory.number(2, 2)? == 43;
        if big && (directory.number(4, 2)?, directory.number(6, 2)?) != (8, 0) {
            return Err(DecodeError::corrupt("its offsets have not 8 bytes"));
        }
        // Bytes of the field count, of one field, and of its inline value.
        let (wide, field_bytes) = if big { (8, 20) } else { (4, 12) };
        let at = directory.number(wide, wide)?;
        if at == 0 {
            return Err(DecodeError::corrupt("it has no directory"));
        }
        let count_bytes = if big { 8 } else { 2 };
        let count = directory.number(at, count_bytes)?;
        let first = at.saturating_add(count_bytes);
        if count > bytes.len() as u64 / field_bytes {
            return Err(DecodeError::Truncated);
        }
        for index in 0..count {
            let at = first + index * field_bytes;
            let (number, kind) = (directory.number(at, 2)?, directory.number(at + 2, 2)? as u16);
            let count = directory.number(at + 4, wide)?;
            let value_at = at + 4 + wide;
            // The whole field must lie inside the file.
            let offset = directory.number(value_at, wide)?;
            let Some(tag) = tag::known(number as u16) else { continue };
            let Some(size) = value_bytes(kind) else {
                return Err(DecodeError::corrupt(format!("{tag} has the unknown type {kind}")));
            };
            if directory.find(tag).is_some() {
                return Err(DecodeError::corrupt(format!("{tag} is there twice")));
            }
            let within = count.saturating_mul(size) <= wide;
            directory.fields.push(Field { tag, kind, count, at: if within { value_at } else { offset } });
        }
        Ok(directory)
    }

    pub fn order(&self) -> ByteOrder {
        self.order
    }

    pub fn has(&self, tag: Tag) -> bool {
        self.find(tag).is_some()
    }

    /// Values of a field; empty if it is absent.
    pub fn count(&self, tag: Tag) -> u64 {
        self.find(tag).map_or(0, |field| field.count)
    }

    /// The first of the values, which are whole numbers.
    pub fn integer(&self, tag: Tag) -> Result<Option<u64>, DecodeError> {
        Ok(self.integers(tag, 1)?.first().copied())
    }

    /// At most the first `count_max` of the values, which are whole numbers; empty if the field is absent.
    pub fn integers(&self, tag: Tag, count_max: u64) -> Result<Vec<u64>, DecodeError> {
        let Some(field) = self.find(tag) else { return Ok(Vec::new()) };
        if !matches!(field.kind, BYTE | SHORT | LONG | LONG8 | IFD | IFD8) {
            return Err(DecodeError::corrupt(format!("{tag} is no whole number")));
        }
        let (size, values) = self.values(field, count_max)?;
        Ok(values.chunks_exact(size).map(|value| self.order.number(value)).collect())
    }

    /// At most the first `count_max` of the values as real numbers; empty if the field is absent.
    pub fn reals(&self, tag: Tag, count_max: u64) -> Result<Vec<f64>, DecodeError> {
        let Some(field) = self.find(tag) else { return Ok(Vec::new()) };
        let (size, values) = self.values(field, count_max)?;
        let number = |bytes: &[u8]| self.order.number(bytes);
        let real = |value: &[u8]| match field.kind {
            FLOAT => Some(f64::from(f32::from_bits(number(value) as u32))),
            DOUBLE => Some(f64::from_bits(number(value))),
            RATIONAL => Some(number(&value[..4]) as f64 / number(&value[4..]) as f64),
            SIGNED_RATIONAL => {
                Some(f64::from(number(&value[..4]) as i32) / f64::from(number(&value[4..]) as i32))
            }
            BYTE | SHORT | LONG | LONG8 => Some(number(value) as f64),
            _ => None,
        };
        let reals = values.chunks_exact(size).map(real).collect::<Option<Vec<_>>>();
        reals.ok_or_else(|| DecodeError::corrupt(format!("{tag} is no number")))
    }

    /// At most the first `count_max` bytes of a field of bytes or text; empty if the field is absent.
    pub fn raw(&self, tag: Tag, count_max: u64) -> Result<&'a [u8], DecodeError> {
        let Some(field) = self.find(tag) else { return Ok(&[]) };
        if !matches!(field.kind, BYTE | ASCII | UNDEFINED) {
            return Err(DecodeError::corrupt(format!("{tag} is no run of bytes")));
        }
        Ok(self.values(field, count_max)?.1)
    }

    fn find(&self, tag: Tag) -> Option<&Field> {
        self.fields.iter().find(|field| field.tag == tag)
    }

    fn number(&self, at: u64, size: u64) -> Result<u64, DecodeError> {
        self.slice(at, size).map(|bytes| self.order.number(bytes))
    }

    /// Size of one value in bytes, and the values.
    fn values(&self, field: &Field, count_max: u64) -> Result<(usize, &'a [u8]), DecodeError> {
        let size = value_bytes(field.kind).unwrap_or(1);
        let length = field.count.min(count_max).saturating_mul(size);
        Ok((size as usize, self.slice(field.at, length)?))
    }

    /// A part of the file.
    pub fn slice(&self, at: u64, length: u64) -> Result<&'a [u8], DecodeError> {
        let end = at.checked_add(length).filter(|end| *end <= self.bytes.len() as u64);
        let end = end.ok_or(DecodeError::Truncated)?;
        Ok(&self.bytes[at as usize..end as usize])
    }

    /// The file from `at` onward.
    pub fn rest(&self, at: u64) -> Result<&'a [u8], DecodeError> {
        self.slice(at, (self.bytes.len() as u64).saturating_sub(at))
    }
}

fn value_bytes(kind: u16) -> Option<u64> {
    match kind {
        BYTE | ASCII | SIGNED_BYTE | UNDEFINED => Some(1),
        SHORT | SIGNED_SHORT => Some(2),
        LONG | SIGNED_LONG | FLOAT | IFD => Some(4),
        RATIONAL | SIGNED_RATIONAL | DOUBLE | LONG8 | SIGNED_LONG8 | IFD8 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;

    fn message(file: &[u8]) -> String {
        Directory::read(file).expect_err("no directory").to_string()
    }

    #[test]
    fn fields_are_read_in_either_order_and_size() {
        for (order, big) in [
            (ByteOrder::Little, false),
            (ByteOrder::Big, false),
            (ByteOrder::Little, true),
            (ByteOrder::Big, true),
        ] {
            let mut sample = Sample::new(order, big);
            sample.set(Tag::WIDTH, &[70_000]).set(Tag::STRIP_OFFSETS, &[1, 2, 3_000_000_000]);
            sample.set_reals(Tag::PIXEL_SCALE, &[0.5, -1e9]).set_raw(Tag::GDAL_NODATA, ASCII, b"-9999\0");
            let file = sample.finish();
            let directory = Directory::read(&file).expect("a directory");
            assert_eq!(directory.integer(Tag::WIDTH), Ok(Some(70_000)));
            assert_eq!(directory.integers(Tag::STRIP_OFFSETS, 9), Ok(vec![1, 2, 3_000_000_000]));
            assert_eq!(directory.integers(Tag::STRIP_OFFSETS, 2), Ok(vec![1, 2]));
            assert_eq!(directory.reals(Tag::PIXEL_SCALE, 9), Ok(vec![0.5, -1e9]));
            assert_eq!(directory.raw(Tag::GDAL_NODATA, 64), Ok(&b"-9999\0"[..]));
            assert_eq!((directory.integer(Tag::HEIGHT), directory.count(Tag::HEIGHT)), (Ok(None), 0));
            for end in 0..file.len() {
                // Data outside the file are detected only when they are accessed.
                let whole = Directory::read(&file[..end]).and_then(|directory| {
                    directory.integers(Tag::STRIP_OFFSETS, 9)?;
                    directory.reals(Tag::PIXEL_SCALE, 9)?;
                    directory.raw(Tag::GDAL_NODATA, 64)
                });
                assert_eq!(whole, Err(DecodeError::Truncated), "{end}");
            }
        }
    }

    #[test]
    fn rationals_and_singles_are_numbers() {
        let mut sample = Sample::new(ByteOrder::Big, false);
        sample.add(Tag::YCBCR_COEFFICIENTS, RATIONAL, 1, vec![0, 0, 0, 3, 0, 0, 0, 4]);
        sample.add(Tag::PIXEL_SCALE, FLOAT, 1, 1.5f32.to_be_bytes().to_vec());
        sample.add(Tag::TIEPOINTS, SIGNED_RATIONAL, 1, [(-3i32).to_be_bytes(), 4i32.to_be_bytes()].concat());
        let file = sample.finish();
        let directory = Directory::read(&file).expect("a directory");
        let real = |tag| directory.reals(tag, 1).expect("a number")[0];
        assert_eq!([Tag::YCBCR_COEFFICIENTS, Tag::PIXEL_SCALE, Tag::TIEPOINTS].map(real), [0.75, 1.5, -0.75]);
        assert!(directory.integer(Tag::PIXEL_SCALE).is_err() && directory.raw(Tag::PIXEL_SCALE, 9).is_err());
    }

    #[test]
    fn a_directory_of_fields_that_contradict_each_other_is_refused() {
        let mut twice = Sample::new(ByteOrder::Little, false);
        twice.set(Tag::WIDTH, &[1]).add(Tag::WIDTH, LONG, 1, vec![2, 0, 0, 0]);
        assert_eq!(message(&twice.finish()), "the image is corrupt: ImageWidth is there twice");
        let mut unknown = Sample::new(ByteOrder::Little, false);
        unknown.add(Tag::WIDTH, 99, 1, vec![1, 0, 0, 0]);
        assert_eq!(message(&unknown.finish()), "the image is corrupt: ImageWidth has the unknown type 99");
        assert_eq!(message(b"II*\0\0\0\0\0"), "the image is corrupt: it has no directory");
        assert_eq!(message(b"II+\0\x04\0\0\0"), "the image is corrupt: its offsets have not 8 bytes");
        assert_eq!(message(b"II*\0\x08\0\0\0\xff\xff"), "the image ends too early");
        let big = b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(message(big), "the image ends too early");
    }

    #[test]
    fn a_count_beyond_the_file_allocates_nothing() {
        let mut sample = Sample::new(ByteOrder::Little, true);
        sample.add(Tag::STRIP_OFFSETS, LONG8, u64::MAX / 2, vec![0; 8]);
        let file = sample.finish();
        let directory = Directory::read(&file).expect("a directory");
        assert_eq!(directory.integers(Tag::STRIP_OFFSETS, u64::MAX), Err(DecodeError::Truncated));
    }
}
