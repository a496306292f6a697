//! Decodes TIFF to pixels chunk by chunk; each stage has its own checks.
//!
//! directory (tags) -> picture (their meaning) -> grid (where chunks lie) -> codec, predictor, samples (what
//! a chunk holds) -> canvas (the picture) -> layout (upright).

mod canvas;
mod chunk;
mod codec;
mod directory;
mod ground;
mod layout;
mod picture;
mod pictured;
mod predictor;
mod refusal;
#[cfg(test)]
mod sample;
mod samples;
mod tag;
#[cfg(test)]
mod tests;
mod ycbcr;

use self::canvas::{Canvas, Painting, Row};
use self::chunk::{Chunk, Grid};
use self::codec::Codec;
use self::directory::Directory;
use self::picture::{Colour, Picture, Predictor};
use self::pictured::PictureCodec;
use self::predictor::RowShape;
use super::{DecodeError, Facts, ImageLimits, Pixels, Raster};
use crate::chip::Modality;

/// Reads the first picture of a TIFF.
pub fn decode(bytes: &[u8], modality: Modality, limits: &ImageLimits) -> Result<Raster, DecodeError> {
    let directory = Directory::read(bytes)?;
    let picture = Picture::read(&directory, modality, limits)?;
    let grid = Grid::read(&directory, &picture, limits)?;
    let mut canvas = Canvas::new(&picture, modality);
    match Codec::new(picture.compression) {
        Some(codec) => paint_bytes(&directory, &picture, &grid, codec, &mut canvas)?,
        None => paint_pictures(&directory, &picture, &grid, &mut canvas)?,
    }
    let Painting { pixels, nodata_pixels, clipped_samples } = canvas.finish();
    let (upright, width, height) = (picture.orientation, picture.width, picture.height);
    let pixels = match pixels {
        Pixels::Rgb(bytes) => Pixels::Rgb(upright.apply(bytes, width, height, 3)),
        Pixels::Amplitude(values) => Pixels::Amplitude(upright.apply(values, width, height, 1)),
    };
    let facts = Facts {
        stored: picture.stored,
        complex: picture.stored.format.is_complex(),
        nodata_pixels,
        clipped_samples,
        transposed: upright.transposes(),
        geo_tags: ground::read(&directory)?,
    };
    let (width, height) = upright.size(width, height);
    Ok(Raster { width, height, pixels, facts })
}

/// Chunks whose bytes are compressed.
fn paint_bytes(
    directory: &Directory<'_>,
    picture: &Picture,
    grid: &Grid,
    mut codec: Codec,
    canvas: &mut Canvas,
) -> Result<(), DecodeError> {
    let painter = Canvas::painter(picture.stored);
    let (mut buffer, mut reversed, mut unpacked) = (Vec::new(), Vec::new(), Vec::new());
    let packed = !matches!(picture.stored.bits, 8 | 16 | 32 | 64 | 128);
    for chunk in (0..grid.count()).map(|index| grid.chunk(index)) {
        if chunk.plane >= picture.colour.kept() {
            break;
        }
        let chunk_bytes = chunk_bytes(picture, &chunk);
        let plain = matches!(codec, Codec::None).then_some(chunk_bytes as u64);
        let Some(mut data) = grid.data(directory, &chunk, plain)? else {
            canvas.leave_out(&chunk, picture.chunk_channels());
            continue;
        };
        if picture.bits_reversed {
            reversed.clear();
            reversed.extend(data.iter().map(|byte| byte.reverse_bits()));
            data = &reversed;
        }
        buffer.resize(chunk_bytes, 0);
        codec.expand(data, &mut buffer)?;
        let expanded;
        let (bytes, row_bytes): (&[u8], usize) = match &picture.colour {
            Colour::YCbCr(sampling) if !sampling.is_full() => {
                expanded = sampling.expand(&buffer, chunk.width, chunk.height);
                (&expanded, chunk.width * 3)
            }
            _ => {
                let row_bytes = picture.row_bytes(chunk.width);
                to_native(picture, &mut buffer, row_bytes);
                (&buffer, row_bytes)
            }
        };
        for (row, mut bytes) in bytes.chunks_exact(row_bytes).take(chunk.rows).enumerate() {
            if packed {
                samples::unpack(bytes, picture.stored.bits, &mut unpacked);
                bytes = &unpacked;
            }
            let (x, y) = (chunk.x, chunk.y + row);
            let (columns, channels, first) = (chunk.columns, picture.chunk_channels(), chunk.plane);
            painter(canvas, &Row { bytes, x, y, columns, channels, first });
        }
    }
    Ok(())
}

fn chunk_bytes(picture: &Picture, chunk: &Chunk) -> usize {
    match &picture.colour {
        Colour::YCbCr(sampling) if !sampling.is_full() => sampling.chunk_bytes(chunk.width, chunk.height),
        _ => picture.row_bytes(chunk.width) * chunk.height,
    }
}

/// Undoes byte order and predictor.
fn to_native(picture: &Picture, buffer: &mut [u8], row_bytes: usize) {
    let stored = picture.stored;
    let bytes = usize::from(stored.bits / 8);
    let number_bytes = match picture.predictor {
        // This predictor defines its own byte order.
        Predictor::Float => 1,
        // libtiff treats a complex sample as one number when it computes differences.
        Predictor::Horizontal => bytes,
        Predictor::None if stored.format.is_complex() => bytes / 2,
        Predictor::None => bytes,
    };
    match stored.bits {
        // Unpacked from the high bit on, as if the file were big-endian.
        24 if picture.order == directory::ByteOrder::Little => swap(buffer, 3),
        8 | 16 | 32 | 64 | 128 if !picture.order.is_native() => swap(buffer, number_bytes),
        _ => {}
    }
    let shape = RowShape { channels: picture.chunk_channels(), bytes };
    predictor::undo(picture.predictor, buffer, row_bytes, shape);
}

fn swap(buffer: &mut [u8], number_bytes: usize) {
    if number_bytes > 1 {
        buffer.chunks_exact_mut(number_bytes).for_each(<[u8]>::reverse);
    }
}

/// Chunks that are images in their own format.
fn paint_pictures(
    directory: &Directory<'_>,
    picture: &Picture,
    grid: &Grid,
    canvas: &mut Canvas,
) -> Result<(), DecodeError> {
    let codec = PictureCodec::new(directory, picture)?;
    for chunk in (0..grid.count()).map(|index| grid.chunk(index)) {
        if chunk.plane >= picture.colour.kept() {
            break;
        }
        let Some(data) = grid.data(directory, &chunk, None)? else {
            canvas.leave_out(&chunk, picture.chunk_channels());
            continue;
        };
        let (samples, channels) = codec.expand(data, &chunk)?;
        for (row, bytes) in samples.chunks_exact(chunk.width * channels).take(chunk.rows).enumerate() {
            let (x, y, columns, first) = (chunk.x, chunk.y + row, chunk.columns, chunk.plane);
            Canvas::painter(picture.stored)(canvas, &Row { bytes, x, y, columns, channels, first });
        }
    }
    Ok(())
}
