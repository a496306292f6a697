//! Chunks that are images in their own format: JPEG with its tables in a tag, and WebP.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::super::DecodeError;
use super::super::jpeg::{self, Conversion};
use super::chunk::Chunk;
use super::codec::Compression;
use super::directory::Directory;
use super::picture::Picture;
use super::tag::Tag;

/// More than Huffman and quantisation tables of four components need.
const TABLES_BYTES_MAX: u64 = 1 << 16;
/// What the WebP decoder may allocate in addition to the picture.
const WEBP_BYTES_MAX: usize = 64 << 20;

pub struct PictureCodec<'a> {
    compression: Compression,
    /// The bytes to insert between the start marker of a JPEG and its remainder.
    tables: &'a [u8],
    conversion: Conversion,
    channels: usize,
}

impl<'a> PictureCodec<'a> {
    pub fn new(directory: &Directory<'a>, picture: &Picture) -> Result<Self, DecodeError> {
        let tables = directory.raw(Tag::JPEG_TABLES, TABLES_BYTES_MAX)?;
        let tables = tables.strip_prefix(&[0xFF, 0xD8]).unwrap_or(tables);
        Ok(Self {
            compression: picture.compression,
            tables: tables.strip_suffix(&[0xFF, 0xD9]).unwrap_or(tables),
            conversion: if picture.jpeg_ycbcr { Conversion::ToRgb } else { Conversion::AsStored },
            channels: picture.chunk_channels(),
        })
    }

    /// Interleaved bytes of at least the rows of the chunk, and samples per pixel.
    pub fn expand(&self, data: &[u8], chunk: &Chunk) -> Result<(Vec<u8>, usize), DecodeError> {
        if self.compression == Compression::WebP { self.webp(data, chunk) } else { self.jpeg(data, chunk) }
    }

    fn jpeg(&self, data: &[u8], chunk: &Chunk) -> Result<(Vec<u8>, usize), DecodeError> {
        let Some(rest) = data.strip_prefix(&[0xFF, 0xD8]) else {
            return Err(DecodeError::corrupt("a chunk is no JPEG"));
        };
        let joined = [&[0xFF, 0xD8], self.tables, rest].concat();
        let header = jpeg::Header::read(&joined)?;
        check_size((header.width.into(), header.height.into()), chunk)?;
        if header.channels() != self.channels {
            let cause = format!("a JPEG of {} components in place of {}", header.channels(), self.channels);
            return Err(DecodeError::corrupt(cause));
        }
        if !header.ends(&joined) {
            return Err(DecodeError::corrupt("a JPEG in it ends too early"));
        }
        let components = jpeg::components(&joined, &header, self.conversion)?;
        Ok((components.samples, self.channels))
    }

    fn webp(&self, data: &[u8], chunk: &Chunk) -> Result<(Vec<u8>, usize), DecodeError> {
        let broken = |cause| DecodeError::corrupt(format!("WebP: {cause}"));
        let mut decoder = WebPDecoder::new(Cursor::new(data)).map_err(broken)?;
        decoder.set_memory_limit(WEBP_BYTES_MAX);
        let (width, height) = decoder.dimensions();
        check_size((width as usize, height as usize), chunk)?;
        let channels = if decoder.has_alpha() { 4 } else { 3 };
        let mut samples = vec![0; width as usize * height as usize * channels];
        decoder.read_image(&mut samples).map_err(broken)?;
        Ok((samples, channels))
    }
}

/// In a last strip, the picture may extend below the image; libtiff allows it.
fn check_size(found: (usize, usize), chunk: &Chunk) -> Result<(), DecodeError> {
    if found.0 == chunk.width && (chunk.height..=chunk.height_max).contains(&found.1) {
        return Ok(());
    }
    let (width, height) = (chunk.width, chunk.height);
    let cause = format!("a chunk of {} x {} pixels in place of {width} x {height}", found.0, found.1);
    Err(DecodeError::corrupt(cause))
}
