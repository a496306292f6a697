//! Compressions: one function each that decompresses a chunk to the number of bytes that its
//! geometry requires.
//!
//! Trailing bytes are ignored, as in libtiff: encoders omit end marks or add padding.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;

use flate2::{Decompress, FlushDecompress};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use weezl::{BitOrder, LzwStatus, decode};

use super::super::DecodeError;
use super::directory::Directory;
use super::refusal::{convert, unsupported};
use super::tag::Tag;

/// Supported compressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
    Zstd,
    WebP,
}

impl Compression {
    /// # Errors
    /// An unsupported compression, by its name.
    pub fn read(directory: &Directory<'_>) -> Result<Self, DecodeError> {
        let name = match directory.integer(Tag::COMPRESSION)?.unwrap_or(1) {
            1 => return Ok(Self::None),
            5 => return Ok(Self::Lzw),
            7 => return Ok(Self::Jpeg),
            8 | 32946 => return Ok(Self::Deflate),
            32773 => return Ok(Self::PackBits),
            34926 | 50000 => return Ok(Self::Zstd),
            34927 | 50001 => return Ok(Self::WebP),
            2 => "CCITT Huffman",
            3 => "CCITT Group 3 fax",
            4 => "CCITT Group 4 fax",
            6 => "old-style JPEG",
            32766 => "NeXT",
            32771 => "CCITT Huffman in words",
            32809 => "ThunderScan",
            32908 => "PixarFilm",
            32909 => "PixarLog",
            33003 | 33004 | 33005 | 34712 => "JPEG 2000",
            33007 | 34892 => "lossy JPEG of raw camera data",
            34661 => "JBIG",
            34676 | 34677 => "SGI LogLuv",
            22610 | 34934 => "JPEG XR",
            34887 => "LERC",
            34925 => "LZMA",
            34933 => "PNG",
            50002 | 52546 => "JPEG XL",
            other => {
                let what = format!("a TIFF of the compression {other}");
                return Err(unsupported(what, convert::COMPRESSION));
            }
        };
        Err(unsupported(format!("a TIFF with {name} compression"), convert::COMPRESSION))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Lzw => "LZW",
            Self::Jpeg => "JPEG",
            Self::Deflate => "deflate",
            Self::PackBits => "PackBits",
            Self::Zstd => "Zstandard",
            Self::WebP => "WebP",
        })
    }
}

/// A compression of plain bytes, with the state that its library keeps between chunks.
pub enum Codec {
    None,
    Lzw(decode::Decoder),
    Deflate(Decompress),
    PackBits,
    Zstd(Box<FrameDecoder>),
}

impl Codec {
    /// `None` for compressions of pictures rather than bytes.
    pub fn new(compression: Compression) -> Option<Self> {
        match compression {
            Compression::None => Some(Self::None),
            Compression::Lzw => {
                let configuration = decode::Configuration::with_tiff_size_switch(BitOrder::Msb, 8);
                Some(Self::Lzw(configuration.with_yield_on_full_buffer(true).build()))
            }
            Compression::Deflate => Some(Self::Deflate(Decompress::new(true))),
            Compression::PackBits => Some(Self::PackBits),
            Compression::Zstd => Some(Self::Zstd(Box::default())),
            Compression::Jpeg | Compression::WebP => None,
        }
    }

    /// Fills `out`.
    ///
    /// # Errors
    /// If the data are corrupt or shorter than `out`.
    pub fn expand(&mut self, data: &[u8], out: &mut [u8]) -> Result<(), DecodeError> {
        let needed = out.len();
        let filled = match self {
            Self::None => {
                let filled = needed.min(data.len());
                out[..filled].copy_from_slice(&data[..filled]);
                filled
            }
            Self::Lzw(decoder) => lzw(decoder, data, out)?,
            Self::Deflate(decoder) => deflate(decoder, data, out)?,
            Self::PackBits => pack_bits(data, out),
            Self::Zstd(decoder) => zstd(decoder, data, out)?,
        };
        if filled < needed {
            let cause = format!("a chunk holds {filled} bytes in place of {needed}");
            return Err(DecodeError::corrupt(cause));
        }
        Ok(())
    }
}

fn lzw(decoder: &mut decode::Decoder, mut data: &[u8], out: &mut [u8]) -> Result<usize, DecodeError> {
    if matches!(data, [0, second, ..] if second & 1 == 1) {
        // Codes that begin at the low bit, as libtiff wrote before 1990.
        return Err(unsupported("a TIFF with old-style LZW compression", convert::COMPRESSION));
    }
    decoder.reset();
    let mut filled = 0;
    while filled < out.len() {
        let step = decoder.decode_bytes(data, &mut out[filled..]);
        data = &data[step.consumed_in..];
        filled += step.consumed_out;
        match step.status {
            Ok(LzwStatus::Ok) if step.consumed_in + step.consumed_out > 0 => {}
            Ok(_) => break,
            Err(cause) if filled < out.len() => return Err(DecodeError::corrupt(cause.to_string())),
            Err(_) => break,
        }
    }
    Ok(filled)
}

fn deflate(decoder: &mut Decompress, data: &[u8], out: &mut [u8]) -> Result<usize, DecodeError> {
    decoder.reset(true);
    let result = decoder.decompress(data, out, FlushDecompress::Finish);
    let filled = decoder.total_out() as usize;
    match result {
        Err(cause) if filled < out.len() => Err(DecodeError::corrupt(format!("deflate: {cause}"))),
        _ => Ok(filled),
    }
}

/// A byte n below 128 is followed by n + 1 literal bytes. A byte n above 128 is followed by one
/// byte that is repeated 257 - n times. 128 is a no-op.
fn pack_bits(mut data: &[u8], out: &mut [u8]) -> usize {
    let mut filled = 0;
    while let [n, rest @ ..] = data
        && filled < out.len()
    {
        let room = out.len() - filled;
        match (*n, rest) {
            (128, _) => data = rest,
            (0..=127, _) => {
                let length = usize::from(*n) + 1;
                let copied = length.min(rest.len()).min(room);
                out[filled..filled + copied].copy_from_slice(&rest[..copied]);
                filled += copied;
                data = rest.get(length..).unwrap_or_default();
            }
            (_, [value, rest @ ..]) => {
                let length = (257 - usize::from(*n)).min(room);
                out[filled..filled + length].fill(*value);
                filled += length;
                data = rest;
            }
            (_, []) => break,
        }
    }
    filled
}

fn zstd(decoder: &mut FrameDecoder, data: &[u8], out: &mut [u8]) -> Result<usize, DecodeError> {
    /// Bytes decoded at once between two checks whether the chunk is full.
    const STEP_BYTES: usize = 1 << 20;
    let wrong = |cause: &dyn fmt::Display| DecodeError::corrupt(format!("Zstandard: {cause}"));
    let data = within_window(data, out.len());
    let mut data = &*data;
    decoder.init(&mut data).map_err(|cause| wrong(&cause))?;
    let mut filled = 0;
    while filled < out.len() {
        if !decoder.is_finished() {
            let step = BlockDecodingStrategy::UptoBytes(STEP_BYTES);
            decoder.decode_blocks(&mut data, step).map_err(|cause| wrong(&cause))?;
        }
        let read = decoder.read(&mut out[filled..]).map_err(|cause| wrong(&cause))?;
        filled += read;
        if read == 0 && decoder.is_finished() {
            break;
        }
    }
    Ok(filled)
}

/// The frame with the smallest window that its content needs. The library allocates the whole window, and
/// levels above 19 announce one of 128 MiB for even the smallest chip.
fn within_window(data: &[u8], content: usize) -> Cow<'_, [u8]> {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    // A window is 2^(10 + high five bits), ignoring the eighths that the low three bits add.
    let exponent = content.max(128 << 10).next_power_of_two().trailing_zeros();
    match data {
        [0x28, 0xB5, 0x2F, 0xFD, descriptor, window, ..]
            if descriptor & SINGLE_SEGMENT == 0 && u32::from(window >> 3) + 10 > exponent =>
        {
            let mut data = data.to_vec();
            data[5] = ((exponent - 10) << 3) as u8;
            data.into()
        }
        _ => data.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::ZlibEncoder;
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use weezl::encode;

    use super::*;

    fn expanded(codec: &mut Codec, data: &[u8], length: usize) -> Result<Vec<u8>, String> {
        let mut out = vec![0; length];
        codec.expand(data, &mut out).map(|()| out).map_err(|error| error.to_string())
    }

    fn codec(compression: Compression) -> Codec {
        Codec::new(compression).expect("a compression of bytes")
    }

    fn pack(bytes: &[u8]) -> Vec<u8> {
        bytes
            .chunk_by(|a, b| a == b)
            .flat_map(|run| run.chunks(128))
            .flat_map(|run| if run.len() == 1 { [0, run[0]] } else { [(257 - run.len()) as u8, run[0]] })
            .collect()
    }

    fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Lzw => {
                encode::Encoder::with_tiff_size_switch(BitOrder::Msb, 8).encode(bytes).unwrap()
            }
            Compression::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Compression::PackBits => pack(bytes),
            Compression::Zstd => compress_to_vec(bytes, CompressionLevel::Fastest),
            _ => bytes.to_vec(),
        }
    }

    const BYTES: [Compression; 5] =
        [Compression::None, Compression::Lzw, Compression::Deflate, Compression::PackBits, Compression::Zstd];

    proptest! {
        #[test]
        fn chunk_after_chunk_comes_out_as_it_went_in(
            chunks in prop::collection::vec(
                prop::collection::vec(prop_oneof![Just(7u8), any::<u8>()], 1..700), 1..4
            ),
            cut in any::<prop::sample::Index>()
        ) {
            for compression in BYTES {
                let mut codec = codec(compression);
                for chunk in &chunks {
                    let data = compressed(compression, chunk);
                    prop_assert_eq!(expanded(&mut codec, &data, chunk.len()), Ok(chunk.clone()));
                    // Bytes after the needed ones are ignored.
                    let padded = [&data, &[0; 9][..]].concat();
                    let part = cut.index(chunk.len()) + 1;
                    let found = expanded(&mut codec, &padded, part);
                    prop_assert_eq!(found, Ok(chunk[..part].to_vec()));
                    let short = expanded(&mut codec, &data, chunk.len() + 1);
                    prop_assert!(short.is_err_and(|error| error.contains("corrupt")), "{}", compression);
                    let _ = expanded(&mut codec, &data[..cut.index(data.len())], chunk.len());
                }
            }
        }
    }

    #[test]
    fn lzw_that_ends_without_its_mark_is_whole() {
        let pixels: Vec<u8> = (0..3000u32).map(|i| ((i * i) >> 7) as u8).collect();
        let data = compressed(Compression::Lzw, &pixels);
        let unmarked = &data[..data.len() - 1];
        assert_eq!(expanded(&mut codec(Compression::Lzw), unmarked, pixels.len()), Ok(pixels));
    }

    #[test]
    fn old_lzw_is_refused_by_name() {
        let error = expanded(&mut codec(Compression::Lzw), &[0, 1, 2, 3], 4).expect_err("bits in reverse");
        assert!(error.contains("old-style LZW") && error.contains("gdal_translate"), "{error}");
    }

    #[test]
    fn pack_bits_are_those_of_the_specification() {
        let packed =
            [0xFE, 0xAA, 0x02, 0x80, 0x00, 0x2A, 0xFD, 0xAA, 0x80, 0x03, 0x80, 0x00, 0x2A, 0x22, 0xF7, 0xAA];
        let mut bytes = vec![0xAA; 3];
        bytes.extend([0x80, 0, 0x2A, 0xAA, 0xAA, 0xAA, 0xAA, 0x80, 0, 0x2A, 0x22]);
        bytes.extend([0xAA; 10]);
        assert_eq!(expanded(&mut codec(Compression::PackBits), &packed, 24), Ok(bytes));
    }

    #[test]
    fn a_window_is_no_larger_than_its_content() {
        // A frame of one raw block that announces a window of 128 MiB.
        let frame = [&[0x28, 0xB5, 0x2F, 0xFD, 0, 17 << 3, 0x21, 0, 0][..], b"ship"].concat();
        assert_eq!(within_window(&frame, 4)[5], 7 << 3);
        assert_eq!(within_window(&frame, 1 << 20)[5], 10 << 3);
        assert_eq!(within_window(&frame, 1 << 28)[5], 17 << 3);
        assert_eq!(expanded(&mut codec(Compression::Zstd), &frame, 4), Ok(b"ship".to_vec()));
        // A frame with its content in a single segment has no window.
        let frame = [&[0x28, 0xB5, 0x2F, 0xFD, 0x20, 4, 0x21, 0, 0][..], b"ship"].concat();
        assert_eq!(*within_window(&frame, 4), frame);
        assert_eq!(expanded(&mut codec(Compression::Zstd), &frame, 4), Ok(b"ship".to_vec()));
    }
}
