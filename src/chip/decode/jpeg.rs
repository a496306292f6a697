//! Decodes JPEG to pixels, both as a file and as the chunks of a TIFF.
//!
//! The library decodes; the meaning of the components is decided here, by the rules of libjpeg, because the
//! library misinterprets three components that an Adobe segment declares as RGB.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::{DecodeErrors, UnsupportedSchemes};
use zune_jpeg::zune_core::bytestream::{ZByteIoError, ZCursor};
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{
    DecodeError, Facts, ImageLimits, Pixels, Raster, SampleFormat, StoredSample, cmyk_to_rgb, replicate,
};

const CONVERT: &str = "gdal_translate in.jpg out.png";

/// Content of the segments before the first scan.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub width: u16,
    pub height: u16,
    ids: Vec<u8>,
    jfif: bool,
    /// The colour transform that an Adobe segment declares.
    adobe: Option<u8>,
    /// Position of the Adobe segment.
    adobe_at: Option<(usize, usize)>,
    /// Start of the data of the first scan.
    scan_at: usize,
}

/// What three components that are Y, Cb and Cr are converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversion {
    ToRgb,
    AsStored,
}

/// Interleaved components of 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Components {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    pub samples: Vec<u8>,
}

/// Reads a JPEG file. Its EXIF orientation is not applied, as in the reference.
pub fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Raster, DecodeError> {
    let header = Header::read(bytes)?;
    limits.check_size(u32::from(header.width), u32::from(header.height))?;
    if !header.ends(bytes) {
        return Err(DecodeError::Truncated);
    }
    let (width, height, channels) = (header.width.into(), header.height.into(), header.ids.len());
    let rgb = match channels {
        1 => replicate(components(bytes, &header, Conversion::AsStored)?.samples),
        3 if header.is_rgb() => components(bytes, &header, Conversion::AsStored)?.samples,
        3 => components(bytes, &header, Conversion::ToRgb)?.samples,
        4 => {
            let mut ink = components(bytes, &header, Conversion::AsStored)?.samples;
            if header.adobe.is_some_and(|transform| transform != 0) {
                ycck_to_cmyk(&mut ink);
            }
            // The reference treats every file of four inks as Adobe's, where 0 is full ink.
            ink.iter_mut().for_each(|value| *value = 255 - *value);
            cmyk_to_rgb(&ink)
        }
        count => return Err(unsupported(format!("a JPEG of {count} components"))),
    };
    let stored = StoredSample { bits: 8, format: SampleFormat::Unsigned, channels: channels as u16 };
    let facts = Facts { stored, ..Facts::default() };
    Ok(Raster { width, height, pixels: Pixels::Rgb(rgb), facts })
}

impl Header {
    /// Walks the segments up to the first scan. Fill bytes between segments are legal; other bytes between
    /// them are skipped, as in the reference.
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut header = Self {
            width: 0,
            height: 0,
            ids: Vec::new(),
            jfif: false,
            adobe: None,
            adobe_at: None,
            scan_at: 0,
        };
        let mut at = 2;
        loop {
            let marker_at = at;
            let marker = match bytes.get(at..at + 2).ok_or(DecodeError::Truncated)? {
                [0xFF, marker] => *marker,
                _ => 0xFF,
            };
            match marker {
                // Fill, junk and markers without a length.
                0xFF => at += 1,
                0x00 | 0x01 | 0xD0..=0xD8 => at += 2,
                0xD9 => return Err(DecodeError::corrupt("it ends before its pixels begin")),
                _ => {
                    let length = bytes.get(at + 2..at + 4).ok_or(DecodeError::Truncated)?;
                    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                    if length < 2 {
                        return Err(DecodeError::corrupt("a segment is shorter than its length"));
                    }
                    at += 2 + length;
                    let segment = bytes.get(marker_at + 4..at).ok_or(DecodeError::Truncated)?;
                    match marker {
                        0xDA if header.ids.is_empty() => {
                            return Err(DecodeError::corrupt("pixels come before their size"));
                        }
                        0xDA => return Ok(Self { scan_at: at, ..header }),
                        0xC0..=0xCF if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                            header.frame(marker, segment)?
                        }
                        0xE0 => header.jfif |= segment.starts_with(b"JFIF\0"),
                        0xEE if segment.len() >= 12 && segment.starts_with(b"Adobe") => {
                            header.adobe = Some(segment[11]);
                            header.adobe_at = Some((marker_at, at));
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn frame(&mut self, marker: u8, segment: &[u8]) -> Result<(), DecodeError> {
        let &[precision, h1, h0, w1, w0, count, ref components @ ..] = segment else {
            return Err(DecodeError::corrupt("its frame header is too short"));
        };
        match marker {
            0xC0..=0xC2 => {}
            0xC3 | 0xC7 | 0xCB | 0xCF => return Err(unsupported("a lossless JPEG".into())),
            0xC9 | 0xCA => return Err(unsupported("a JPEG with arithmetic coding".into())),
            _ => return Err(unsupported("a hierarchical JPEG".into())),
        }
        if precision != 8 {
            return Err(unsupported(format!("a JPEG of {precision} bits a sample")));
        }
        if !self.ids.is_empty() {
            return Err(DecodeError::corrupt("it has two frames"));
        }
        if count == 0 || components.len() != usize::from(count) * 3 {
            return Err(DecodeError::corrupt("its frame header has another length than its components"));
        }
        (self.width, self.height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        self.ids = components.chunks_exact(3).map(|component| component[0]).collect();
        Ok(())
    }

    pub fn channels(&self) -> usize {
        self.ids.len()
    }

    /// Whether three components are red, green and blue: decided by the JFIF marker, the Adobe
    /// marker, then the component names.
    fn is_rgb(&self) -> bool {
        match (self.jfif, self.adobe) {
            (true, _) => false,
            (false, Some(transform)) => transform == 0,
            (false, None) => self.ids == *b"RGB",
        }
    }

    /// Whether the end marker follows the scan. The decoder fills a missing remainder with gray;
    /// the reference refuses it.
    pub fn ends(&self, bytes: &[u8]) -> bool {
        bytes[self.scan_at..].windows(2).any(|pair| pair == [0xFF, 0xD9])
    }
}

/// Decodes the components, three of which may be Y, Cb and Cr.
pub fn components(bytes: &[u8], header: &Header, conversion: Conversion) -> Result<Components, DecodeError> {
    // Without an Adobe segment the library treats three components as YCbCr and four as CMYK.
    let plain = header.adobe_at.map(|(from, to)| [&bytes[..from], &bytes[to..]].concat());
    let bytes = plain.as_deref().unwrap_or(bytes);
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(broken)?;
    let found = decoder.input_colorspace().unwrap_or(ColorSpace::Unknown);
    let wanted = match (found, conversion) {
        (ColorSpace::YCbCr, Conversion::ToRgb) => ColorSpace::RGB,
        (found, _) => found,
    };
    decoder.set_options(options.jpeg_set_out_colorspace(wanted));
    let mut samples = decoder.decode().map_err(broken)?;
    let (width, height, channels) = (header.width.into(), header.height.into(), header.channels());
    if samples.len() != width * height * channels {
        return Err(DecodeError::corrupt("it decodes to another size than its header says"));
    }
    if conversion == Conversion::ToRgb && found == ColorSpace::RGB {
        // Its components are named R, G and B but hold YCbCr.
        samples.chunks_exact_mut(3).for_each(|pixel| {
            let rgb = ycc_to_rgb([pixel[0], pixel[1], pixel[2]]);
            pixel.copy_from_slice(&rgb);
        });
    }
    Ok(Components { width, height, channels, samples })
}

fn ycck_to_cmyk(ink: &mut [u8]) {
    for pixel in ink.chunks_exact_mut(4) {
        let rgb = ycc_to_rgb([pixel[0], pixel[1], pixel[2]]);
        pixel[..3].copy_from_slice(&rgb.map(|value| 255 - value));
    }
}

/// Uses libjpeg's integer arithmetic.
fn ycc_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let fixed = |factor: f64| (factor * 65536.0 + 0.5) as i32;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((fixed(1.402) * cr + HALF) >> 16);
    let green = y + ((-fixed(0.344_136_286) * cb - fixed(0.714_136_286) * cr + HALF) >> 16);
    let blue = y + ((fixed(1.772) * cb + HALF) >> 16);
    [red, green, blue].map(|value| value.clamp(0, 255) as u8)
}

fn unsupported(what: String) -> DecodeError {
    DecodeError::Unsupported { what, command: CONVERT }
}

/// Distinguishes a truncated image from a corrupt one.
fn broken(error: DecodeErrors) -> DecodeError {
    match error {
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(ZByteIoError::NotEnoughBytes(..)) => {
            DecodeError::Truncated
        }
        DecodeErrors::Unsupported(scheme) => unsupported(match scheme {
            UnsupportedSchemes::LosslessHuffman | UnsupportedSchemes::LosslessArithmetic => {
                "a lossless JPEG".into()
            }
            scheme => format!("a JPEG of the kind {scheme:?}"),
        }),
        error => DecodeError::corrupt(format!("{error:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 20, pixels_max: 1 << 20 };

    fn segment(marker: u8, bytes: &[u8]) -> Vec<u8> {
        [&[0xFF, marker], &(bytes.len() as u16 + 2).to_be_bytes()[..], bytes].concat()
    }

    fn frame(marker: u8, precision: u8, ids: &[u8]) -> Vec<u8> {
        let components = ids.iter().flat_map(|id| [*id, 0x11, 0]).collect();
        segment(marker, &[vec![precision, 0, 9, 0, 7, ids.len() as u8], components].concat())
    }

    fn jpeg(segments: &[Vec<u8>]) -> Vec<u8> {
        [&[0xFF, 0xD8][..], &segments.concat(), &segment(0xDA, &[1, 1, 0, 0, 63, 0]), &[1, 2, 0xFF, 0xD9]]
            .concat()
    }

    fn adobe(transform: u8) -> Vec<u8> {
        segment(0xEE, &[b"Adobe\0\x64\0\0\0\0", &[transform][..]].concat())
    }

    #[test]
    fn fill_and_junk_between_segments_are_passed_over() {
        let plain = Header::read(&jpeg(&[frame(0xC0, 8, &[1])])).expect("a header");
        assert_eq!((plain.width, plain.height, plain.channels()), (7, 9, 1));
        for between in [&[0xFF][..], &[0xFF, 0xFF, 0xFF], &[0xFF, 0], &[3, 2, 1], &[0xFF, 0xD0], &[0xFF, 1]] {
            let file = jpeg(&[between.to_vec(), frame(0xC0, 8, &[1])]);
            let found = Header::read(&file).expect("a header");
            assert_eq!((found.width, found.height, found.scan_at), (7, 9, plain.scan_at + between.len()));
            assert!(found.ends(&file) && !found.ends(&file[..file.len() - 1]));
        }
    }

    #[test]
    fn what_three_components_are_is_told_by_jfif_then_adobe_then_their_names() {
        let jfif = segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0");
        for (segments, is_rgb) in [
            (vec![frame(0xC0, 8, &[1, 2, 3])], false),
            (vec![frame(0xC0, 8, b"RGB")], true),
            (vec![adobe(0), frame(0xC0, 8, &[1, 2, 3])], true),
            (vec![adobe(1), frame(0xC0, 8, b"RGB")], false),
            (vec![jfif.clone(), adobe(0), frame(0xC0, 8, b"RGB")], false),
        ] {
            assert_eq!(Header::read(&jpeg(&segments)).expect("a header").is_rgb(), is_rgb);
        }
    }

    #[test]
    fn what_is_no_picture_for_us_is_told_by_name() {
        for (file, reason, words) in [
            (jpeg(&[frame(0xC3, 8, &[1])]), "IMAGE_UNSUPPORTED", "a lossless JPEG"),
            (jpeg(&[frame(0xC9, 8, &[1])]), "IMAGE_UNSUPPORTED", "arithmetic coding"),
            (jpeg(&[frame(0xC5, 8, &[1])]), "IMAGE_UNSUPPORTED", "hierarchical"),
            (jpeg(&[frame(0xC1, 12, &[1])]), "IMAGE_UNSUPPORTED", "12 bits"),
            (jpeg(&[frame(0xC0, 8, &[1, 2])]), "IMAGE_UNSUPPORTED", "2 components"),
            (jpeg(&[frame(0xC0, 8, &[1]), frame(0xC0, 8, &[1])]), "IMAGE_CORRUPT", "two frames"),
            (jpeg(&[]), "IMAGE_CORRUPT", "before their size"),
            (vec![0xFF, 0xD8, 0xFF, 0xD9], "IMAGE_CORRUPT", "before its pixels"),
            (vec![0xFF, 0xD8, 0xFF, 0xE0, 0, 1], "IMAGE_CORRUPT", "shorter than its length"),
            (vec![0xFF, 0xD8, 0xFF, 0xE0, 0, 9], "IMAGE_TRUNCATED", "too early"),
            (vec![0xFF, 0xD8, 0xFF], "IMAGE_TRUNCATED", "too early"),
        ] {
            let error = decode(&file, &LIMITS).expect_err("no picture");
            assert_eq!(error.reason().name(), reason, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn colours_are_those_of_libjpeg() {
        assert_eq!(ycc_to_rgb([0, 128, 128]), [0, 0, 0]);
        assert_eq!(ycc_to_rgb([76, 85, 255]), [254, 0, 0]);
        assert_eq!(ycc_to_rgb([29, 255, 107]), [0, 0, 254]);
        let mut ink = [76, 85, 255, 9];
        ycck_to_cmyk(&mut ink);
        assert_eq!(ink, [1, 255, 255, 9]);
    }
}
