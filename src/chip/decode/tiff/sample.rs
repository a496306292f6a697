//! TIFF files for tests, built field by field, so that each field can be made invalid.

use super::directory::ByteOrder;
use super::tag::Tag;

/// A file under construction: first its chunks, then its directory.
#[derive(Clone)]
pub struct Sample {
    pub order: ByteOrder,
    pub big: bool,
    fields: Vec<(u16, u16, u64, Vec<u8>)>,
    body: Vec<u8>,
}

impl Sample {
    pub fn new(order: ByteOrder, big: bool) -> Self {
        Self { order, big, fields: Vec::new(), body: vec![0; if big { 16 } else { 8 }] }
    }

    /// A little-endian gray picture of 8 bits in one strip with these bytes as pixels.
    pub fn gray(width: u64, height: u64, pixels: &[u8]) -> Self {
        let mut sample = Self::new(ByteOrder::Little, false);
        let at = sample.chunk(pixels);
        sample
            .set(Tag::WIDTH, &[width])
            .set(Tag::HEIGHT, &[height])
            .set(Tag::BITS_PER_SAMPLE, &[8])
            .set(Tag::PHOTOMETRIC, &[1])
            .set(Tag::STRIP_OFFSETS, &[at])
            .set(Tag::STRIP_BYTE_COUNTS, &[pixels.len() as u64]);
        sample
    }

    /// Adds stored bytes and returns their position.
    pub fn chunk(&mut self, bytes: &[u8]) -> u64 {
        let at = self.body.len() as u64;
        self.body.extend_from_slice(bytes);
        at
    }

    /// Sets a field of whole numbers, replacing an existing one.
    pub fn set(&mut self, tag: Tag, values: &[u64]) -> &mut Self {
        let (kind, bytes) = if self.big { (16, 8) } else { (4, 4) };
        let values: Vec<u8> = values.iter().flat_map(|value| self.bytes(*value, bytes)).collect();
        self.remove(tag).add(tag, kind, values.len() as u64 / bytes as u64, values)
    }

    pub fn set_raw(&mut self, tag: Tag, kind: u16, values: &[u8]) -> &mut Self {
        self.remove(tag).add(tag, kind, values.len() as u64, values.to_vec())
    }

    pub fn set_reals(&mut self, tag: Tag, values: &[f64]) -> &mut Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| self.bytes(value.to_bits(), 8)).collect();
        self.remove(tag).add(tag, 12, values.len() as u64, bytes)
    }

    pub fn remove(&mut self, tag: Tag) -> &mut Self {
        self.fields.retain(|field| field.0 != tag.number());
        self
    }

    /// Adds a field as given, even if it already exists.
    pub fn add(&mut self, tag: Tag, kind: u16, count: u64, values: Vec<u8>) -> &mut Self {
        self.fields.push((tag.number(), kind, count, values));
        self
    }

    pub fn finish(&self) -> Vec<u8> {
        let wide = if self.big { 8 } else { 4 };
        let mut file = self.body.clone();
        let at = file.len();
        let directory_bytes = if self.big { 16 + 20 * self.fields.len() } else { 6 + 12 * self.fields.len() };
        let mut beyond = Vec::new();
        file.extend(self.bytes(self.fields.len() as u64, if self.big { 8 } else { 2 }));
        for (tag, kind, count, values) in &self.fields {
            file.extend([self.bytes(u64::from(*tag), 2), self.bytes(u64::from(*kind), 2)].concat());
            file.extend(self.bytes(*count, wide));
            if values.len() <= wide {
                file.extend(values.iter().copied().chain(std::iter::repeat(0)).take(wide));
            } else {
                file.extend(self.bytes((at + directory_bytes + beyond.len()) as u64, wide));
                beyond.extend_from_slice(values);
            }
        }
        file.extend(self.bytes(0, wide));
        file.extend(beyond);
        let mark: &[u8] = if self.order == ByteOrder::Little { b"II" } else { b"MM" };
        let header = [mark, &self.bytes(if self.big { 43 } else { 42 }, 2)].concat();
        file[..4].copy_from_slice(&header);
        if self.big {
            file[4..8].copy_from_slice(&[self.bytes(8, 2), self.bytes(0, 2)].concat());
        }
        file[wide..2 * wide].copy_from_slice(&self.bytes(at as u64, wide));
        file
    }

    fn bytes(&self, value: u64, size: usize) -> Vec<u8> {
        match self.order {
            ByteOrder::Little => value.to_le_bytes()[..size].to_vec(),
            ByteOrder::Big => value.to_be_bytes()[8 - size..].to_vec(),
        }
    }
}
