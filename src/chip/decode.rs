//! From the bytes of a PNG, JPEG or TIFF to pixels, bounded before anything is allocated.
//!
//! The result is what the reference gets from its image library ("convert to RGB"): gray is replicated, alpha is
//! dropped and not blended, 16-bit gray is clipped at 255 and not scaled, 16-bit colour keeps its high byte,
//! floats are clipped to 0..255 and truncated. Only a one-channel TIFF of modality SAR keeps its values, to be
//! stretched once the chip is cut. EXIF orientation is not applied, as in the reference.
//!
//! PNG and TIFF are exact. JPEG is not defined to the bit: decoders differ by rounding.

use std::error::Error;
use std::io::{self, Cursor};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult};

use super::Modality;

/// Bytes that the decoders may use beside the pixels.
const SCRATCH_BYTES: u64 = 64 << 20;
/// The most bytes that a decoded pixel takes: four channels of 32 bits.
const PIXEL_BYTES_MAX: u64 = 16;

/// Bounds on one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Encoded bytes.
    pub bytes_max: usize,
    /// Width x height.
    pub pixels_max: u64,
}

/// A decoded image.
#[derive(Clone, Debug, PartialEq)]
pub struct Raster {
    pub width: usize,
    pub height: usize,
    pub pixels: Pixels,
}

/// Row by row.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// Interleaved bytes.
    Rgb(Vec<u8>),
    /// SAR amplitudes as they were in the file.
    Amplitude(Vec<f32>),
}

/// Why bytes are no image that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the image is empty")]
    Empty,
    #[error("the image has {bytes} bytes, the limit is {limit}")]
    TooManyBytes { bytes: usize, limit: usize },
    #[error("the image is neither PNG, JPEG nor TIFF")]
    UnknownFormat,
    #[error("the image has {width} x {height} pixels, the limit is {limit}")]
    TooManyPixels { width: u32, height: u32, limit: u64 },
    #[error("the image has no pixels: {width} x {height}")]
    NoPixels { width: u32, height: u32 },
    #[error("the image ends too early")]
    Truncated,
    #[error("the image is corrupt: {cause}")]
    Corrupt { cause: String },
    #[error("the image cannot be used: {what}")]
    Unsupported { what: String },
    #[error("a TIFF of modality SAR has one channel, this one is {found}")]
    SarChannels { found: String },
}

impl DecodeError {
    /// Stable and fit for programs and labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "IMAGE_EMPTY",
            Self::TooManyBytes { .. } => "IMAGE_TOO_LARGE",
            Self::UnknownFormat => "IMAGE_FORMAT_UNKNOWN",
            Self::TooManyPixels { .. } => "IMAGE_TOO_MANY_PIXELS",
            Self::NoPixels { .. } => "IMAGE_WITHOUT_PIXELS",
            Self::Truncated => "IMAGE_TRUNCATED",
            Self::Corrupt { .. } => "IMAGE_CORRUPT",
            Self::Unsupported { .. } => "IMAGE_UNSUPPORTED",
            Self::SarChannels { .. } => "SAR_CHANNELS",
        }
    }
}

/// Reads an image of any supported format; the format is told by its first bytes.
///
/// # Errors
/// What is wrong with the bytes. Sizes are checked in the header, before pixels are decoded.
pub fn decode(bytes: &[u8], modality: Modality, limits: &ImageLimits) -> Result<Raster, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() > limits.bytes_max {
        return Err(DecodeError::TooManyBytes { bytes: bytes.len(), limit: limits.bytes_max });
    }
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => decode_image(bytes, ImageFormat::Png, limits),
        [0xFF, 0xD8, 0xFF, ..] if !jpeg_ends(bytes) => Err(DecodeError::Truncated),
        [0xFF, 0xD8, 0xFF, ..] => decode_image(bytes, ImageFormat::Jpeg, limits),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => decode_tiff(bytes, modality, limits),
        _ => Err(DecodeError::UnknownFormat),
    }
}

fn check_size(width: u32, height: u32, limits: &ImageLimits) -> Result<(), DecodeError> {
    if width == 0 || height == 0 {
        return Err(DecodeError::NoPixels { width, height });
    }
    if u64::from(width) * u64::from(height) > limits.pixels_max {
        return Err(DecodeError::TooManyPixels { width, height, limit: limits.pixels_max });
    }
    Ok(())
}

fn decode_image(bytes: &[u8], format: ImageFormat, limits: &ImageLimits) -> Result<Raster, DecodeError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut memory = image::Limits::no_limits();
    memory.max_alloc = Some(limits.pixels_max * PIXEL_BYTES_MAX + SCRATCH_BYTES);
    reader.limits(memory);
    let decoder = reader.into_decoder().map_err(|cause| broken(&cause))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, limits)?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(|cause| broken(&cause))?;
    let rgb = match decoded {
        DynamicImage::ImageLuma8(gray) => replicate(gray.into_raw()),
        DynamicImage::ImageLumaA8(gray) => replicate(gray.into_raw().into_iter().step_by(2)),
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        DynamicImage::ImageRgba8(rgba) => without_alpha(rgba.into_raw()),
        DynamicImage::ImageLuma16(gray) => replicate(gray.into_raw().into_iter().map(clipped)),
        DynamicImage::ImageLumaA16(gray) => replicate(gray.into_raw().into_iter().step_by(2).map(high_byte)),
        DynamicImage::ImageRgb16(rgb) => rgb.into_raw().into_iter().map(high_byte).collect(),
        DynamicImage::ImageRgba16(rgba) => without_alpha(rgba.into_raw().into_iter().map(high_byte)),
        other => return Err(DecodeError::Unsupported { what: format!("{:?} pixels", other.color()) }),
    };
    Ok(Raster { width: width as usize, height: height as usize, pixels: Pixels::Rgb(rgb) })
}

fn decode_tiff(bytes: &[u8], modality: Modality, limits: &ImageLimits) -> Result<Raster, DecodeError> {
    let mut memory = tiff::decoder::Limits::default();
    let memory_max =
        usize::try_from(limits.pixels_max * PIXEL_BYTES_MAX + SCRATCH_BYTES).unwrap_or(usize::MAX);
    memory.decoding_buffer_size = memory_max;
    memory.intermediate_buffer_size = memory_max;
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(|cause| broken(&cause))?.with_limits(memory);
    let (width, height) = decoder.dimensions().map_err(|cause| broken(&cause))?;
    check_size(width, height, limits)?;
    let color = decoder.colortype().map_err(|cause| broken(&cause))?;
    let one_channel = matches!(color, ColorType::Gray(_));
    if modality == Modality::Sar && !one_channel {
        return Err(DecodeError::SarChannels { found: format!("{color:?}") });
    }
    let samples = decoder.read_image().map_err(|cause| broken(&cause))?;
    let channels = usize::from(color.num_samples());
    let (width, height) = (width as usize, height as usize);
    let pixels = if modality == Modality::Sar {
        Pixels::Amplitude(amplitudes(samples, color)?)
    } else {
        Pixels::Rgb(rgb(samples, color)?)
    };
    let found = match &pixels {
        Pixels::Rgb(bytes) => bytes.len() / 3,
        Pixels::Amplitude(values) => values.len(),
    };
    if found != width * height {
        let what = format!("{channels} channels in separate planes");
        return Err(DecodeError::Unsupported { what });
    }
    Ok(Raster { width, height, pixels })
}

fn amplitudes(samples: DecodingResult, color: ColorType) -> Result<Vec<f32>, DecodeError> {
    match (samples, color) {
        (DecodingResult::U8(values), ColorType::Gray(8)) => Ok(values.into_iter().map(f32::from).collect()),
        (DecodingResult::U16(values), _) => Ok(values.into_iter().map(f32::from).collect()),
        (DecodingResult::F32(values), _) => Ok(values),
        (_, color) => Err(DecodeError::Unsupported { what: format!("{color:?} samples in a SAR TIFF") }),
    }
}

fn rgb(samples: DecodingResult, color: ColorType) -> Result<Vec<u8>, DecodeError> {
    match (samples, color) {
        (DecodingResult::U8(values), ColorType::Gray(8)) => Ok(replicate(values)),
        (DecodingResult::U8(values), ColorType::GrayA(8)) => Ok(replicate(values.into_iter().step_by(2))),
        (DecodingResult::U8(values), ColorType::RGB(8)) => Ok(values),
        (DecodingResult::U8(values), ColorType::RGBA(8)) => Ok(without_alpha(values)),
        (DecodingResult::U16(values), ColorType::Gray(16)) => Ok(replicate(values.into_iter().map(clipped))),
        (DecodingResult::U16(values), ColorType::RGB(16)) => Ok(values.into_iter().map(high_byte).collect()),
        (DecodingResult::U16(values), ColorType::RGBA(16)) => {
            Ok(without_alpha(values.into_iter().map(high_byte)))
        }
        // A cast from float saturates, truncates, and makes NaN 0.
        (DecodingResult::F32(values), ColorType::Gray(32)) => {
            Ok(replicate(values.into_iter().map(|v| v as u8)))
        }
        (_, color) => Err(DecodeError::Unsupported { what: format!("{color:?} samples in a TIFF") }),
    }
}

fn replicate(gray: impl IntoIterator<Item = u8>) -> Vec<u8> {
    gray.into_iter().flat_map(|value| [value; 3]).collect()
}

fn without_alpha(rgba: impl IntoIterator<Item = u8>) -> Vec<u8> {
    rgba.into_iter().enumerate().filter(|(index, _)| index % 4 != 3).map(|(_, value)| value).collect()
}

fn clipped(value: u16) -> u8 {
    value.min(255) as u8
}

fn high_byte(value: u16) -> u8 {
    (value >> 8) as u8
}

/// Whether the end marker follows the scan. The decoder fills a missing rest with gray; the reference refuses.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some([0xFF, marker, high, low]) = bytes.get(at..at + 4) {
        at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
        if *marker == 0xDA {
            return bytes.get(at..).is_some_and(|scan| scan.windows(2).any(|pair| pair == [0xFF, 0xD9]));
        }
    }
    false
}

/// Tells an image that ends too early from one that is wrong.
fn broken(error: &(dyn Error + 'static)) -> DecodeError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::UnexpectedEof
        {
            return DecodeError::Truncated;
        }
        // The PNG decoder gives this as a text only.
        if error.source().is_none() && error.to_string() == "unexpected end of file" {
            return DecodeError::Truncated;
        }
        cause = error.source();
    }
    DecodeError::Corrupt { cause: error.to_string() }
}
