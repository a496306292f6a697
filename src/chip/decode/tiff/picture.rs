//! The checked description of a TIFF's picture from its tags; unsupported pictures are refused here
//! with specific errors.

use super::super::{DecodeError, ImageLimits, SampleFormat, StoredSample};
use super::codec::Compression;
use super::directory::{ByteOrder, Directory};
use super::layout::Orientation;
use super::refusal::{convert, unsupported};
use super::tag::Tag;
use super::ycbcr::Subsampling;
use crate::chip::Modality;

/// More samples per pixel are not accepted as a picture.
const CHANNELS_MAX: u64 = 4096;
/// Length of the text of a nodata value.
const NODATA_BYTES_MAX: u64 = 64;
/// XMP may have any length, and Lightroom writes a lot of it; the orientation is only searched
/// within this many bytes.
const XMP_BYTES_MAX: u64 = 1 << 20;

/// A picture whose every part can be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// As stored, before the orientation is applied.
    pub width: usize,
    pub height: usize,
    pub stored: StoredSample,
    pub colour: Colour,
    pub planes: Planes,
    pub compression: Compression,
    pub predictor: Predictor,
    pub order: ByteOrder,
    /// The bits of each byte are stored in reverse.
    pub bits_reversed: bool,
    pub orientation: Orientation,
    pub nodata: Option<f64>,
    /// JPEG chunks that the library converts from YCbCr to RGB.
    pub jpeg_ycbcr: bool,
}

/// The meaning of a pixel's samples; further samples (alpha and others) are dropped.
#[derive(Clone, Debug, PartialEq)]
pub enum Colour {
    Gray,
    /// Gray whose 0 is white and which the reference inverts: up to 8 bits.
    InvertedGray,
    Rgb,
    /// RGB premultiplied by its alpha, the fourth sample.
    MultipliedRgb,
    /// RGB of each palette index.
    Palette(Vec<[u8; 3]>),
    Cmyk,
    YCbCr(Subsampling),
}

impl Colour {
    /// Samples per pixel that are read.
    pub fn kept(&self) -> usize {
        match self {
            Self::Gray | Self::InvertedGray | Self::Palette(_) => 1,
            Self::Rgb | Self::YCbCr(_) => 3,
            Self::MultipliedRgb | Self::Cmyk => 4,
        }
    }

    /// Samples per pixel that are read and are not alpha.
    pub fn colours(&self) -> usize {
        if *self == Self::MultipliedRgb { 3 } else { self.kept() }
    }
}

/// The arrangement of a pixel's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planes {
    /// Side by side.
    Together,
    /// Each in separate chunks.
    Apart,
}

/// What is stored in place of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predictor {
    /// The sample.
    None,
    /// The difference from the same sample of the pixel to the left.
    Horizontal,
    /// The same for the bytes of a row of floats, the most significant ones first.
    Float,
}

impl Picture {
    /// # Errors
    /// If the picture is invalid or unsupported. The size is checked first.
    pub fn read(
        directory: &Directory<'_>,
        modality: Modality,
        limits: &ImageLimits,
    ) -> Result<Self, DecodeError> {
        let [width, height] = [Tag::WIDTH, Tag::HEIGHT].map(|tag| {
            let value = directory.integer(tag)?.ok_or_else(|| missing(tag))?;
            u32::try_from(value).map_err(|_| DecodeError::corrupt(format!("{tag} is {value}")))
        });
        let (width, height) = (width?, height?);
        limits.check_size(width, height)?;
        let compression = Compression::read(directory)?;
        let stored = stored(directory)?;
        let colour = colour(directory, stored)?;
        let planes = planes(directory, stored)?;
        match modality {
            Modality::Sar => check_sar(&colour, stored)?,
            Modality::Optical => check_optical(directory, &colour, stored)?,
        }
        let jpeg_ycbcr = matches!(colour, Colour::YCbCr(_))
            && (compression, planes) == (Compression::Jpeg, Planes::Together);
        let picture = Self {
            width: width as usize,
            height: height as usize,
            stored,
            colour,
            planes,
            predictor: predictor(directory, compression)?,
            compression,
            order: directory.order(),
            bits_reversed: match directory.integer(Tag::FILL_ORDER)?.unwrap_or(1) {
                1 => false,
                2 => true,
                other => return Err(DecodeError::corrupt(format!("FillOrder is {other}"))),
            },
            orientation: orientation(directory)?,
            nodata: nodata(directory)?,
            jpeg_ycbcr,
        };
        picture.check_combination()?;
        let colour = if jpeg_ycbcr { Colour::Rgb } else { picture.colour };
        Ok(Self { colour, ..picture })
    }

    /// Combinations that are refused although each part is allowed.
    fn check_combination(&self) -> Result<(), DecodeError> {
        let StoredSample { bits, format, channels } = self.stored;
        match self.predictor {
            Predictor::None => {}
            Predictor::Horizontal if matches!(bits, 8 | 16 | 32 | 64) => {}
            Predictor::Float if format == SampleFormat::Float => {}
            _ => {
                let name = if self.predictor == Predictor::Float { "floating point" } else { "horizontal" };
                let what = format!("a {name} predictor over {} samples", self.stored);
                return Err(unsupported(what, convert::COMPRESSION));
            }
        }
        if let Colour::YCbCr(sampling) = &self.colour {
            let whole = self.compression == Compression::Jpeg || sampling.is_full();
            if channels > 3 || (self.planes == Planes::Apart && !sampling.is_full()) {
                return Err(unsupported("YCbCr with alpha or in separate planes", convert::TO_RGB));
            }
            if !whole && self.predictor != Predictor::None {
                return Err(unsupported("a predictor over halved chroma", convert::TO_RGB));
            }
        }
        let bytes = bits == 8 && format == SampleFormat::Unsigned;
        let rgb = self.colour == Colour::Rgb && self.planes == Planes::Together;
        match self.compression {
            Compression::Jpeg if !bytes => {
                let what = format!("JPEG compression of {} samples", self.stored);
                Err(unsupported(what, convert::COMPRESSION))
            }
            Compression::WebP if !(bytes && rgb && matches!(channels, 3 | 4)) => {
                Err(unsupported("WebP compression of other samples than RGB of 8 bits", convert::COMPRESSION))
            }
            _ => Ok(()),
        }
    }

    /// Samples per pixel in one chunk.
    pub fn chunk_channels(&self) -> usize {
        match self.planes {
            Planes::Together => usize::from(self.stored.channels),
            Planes::Apart => 1,
        }
    }

    /// Bytes per row of a chunk with this many columns; rows begin on whole bytes.
    pub fn row_bytes(&self, columns: usize) -> usize {
        (columns * self.chunk_channels() * usize::from(self.stored.bits)).div_ceil(8)
    }
}

fn missing(tag: Tag) -> DecodeError {
    DecodeError::corrupt(format!("{tag} is missing"))
}

/// The type of the samples, which all share.
fn stored(directory: &Directory<'_>) -> Result<StoredSample, DecodeError> {
    let channels = directory.integer(Tag::SAMPLES_PER_PIXEL)?.unwrap_or(1);
    if channels == 0 {
        return Err(DecodeError::corrupt("SamplesPerPixel is 0"));
    }
    if channels > CHANNELS_MAX {
        return Err(unsupported(format!("a TIFF of {channels} samples a pixel"), convert::BANDS_TO_RGB));
    }
    // Fewer values than samples: the remaining ones are the same.
    let alike = |tag: Tag, default: u64| {
        let values = directory.integers(tag, channels)?;
        let first = values.first().copied().unwrap_or(default);
        match values.iter().find(|value| **value != first) {
            Some(_) => {
                let list: Vec<_> = values.iter().take(8).map(u64::to_string).collect();
                let what = format!("a TIFF whose samples differ in {tag} ({})", list.join(", "));
                Err(unsupported(what, convert::TO_UINT16))
            }
            None => Ok(first),
        }
    };
    let bits = alike(Tag::BITS_PER_SAMPLE, 1)?;
    let format = match alike(Tag::SAMPLE_FORMAT, 1)? {
        // 4 is "undefined", which readers treat as whole numbers.
        1 | 4 => SampleFormat::Unsigned,
        2 => SampleFormat::Signed,
        3 => SampleFormat::Float,
        5 => SampleFormat::ComplexSigned,
        6 => SampleFormat::ComplexFloat,
        other => return Err(DecodeError::corrupt(format!("SampleFormat is {other}"))),
    };
    let bits = u16::try_from(bits).map_err(|_| DecodeError::corrupt(format!("BitsPerSample is {bits}")))?;
    let stored = StoredSample { bits, format, channels: channels as u16 };
    let known = match format {
        SampleFormat::Unsigned => matches!(bits, 1..=32 | 64),
        SampleFormat::Signed => matches!(bits, 8 | 16 | 32 | 64),
        SampleFormat::Float => matches!(bits, 16 | 32 | 64),
        SampleFormat::ComplexSigned => matches!(bits, 16 | 32 | 64),
        SampleFormat::ComplexFloat => matches!(bits, 32 | 64 | 128),
    };
    if known {
        return Ok(stored);
    }
    let command = match format {
        SampleFormat::Unsigned => convert::TO_UINT16,
        SampleFormat::Signed => convert::TO_INT16,
        SampleFormat::Float => convert::TO_FLOAT32,
        SampleFormat::ComplexSigned | SampleFormat::ComplexFloat => convert::MAGNITUDE,
    };
    Err(unsupported(format!("a TIFF of {stored} samples"), command))
}

fn planes(directory: &Directory<'_>, stored: StoredSample) -> Result<Planes, DecodeError> {
    match directory.integer(Tag::PLANAR_CONFIGURATION)?.unwrap_or(1) {
        2 if stored.channels > 1 => Ok(Planes::Apart),
        1 | 2 => Ok(Planes::Together),
        other => Err(DecodeError::corrupt(format!("PlanarConfiguration is {other}"))),
    }
}

fn colour(directory: &Directory<'_>, stored: StoredSample) -> Result<Colour, DecodeError> {
    // A required field; the reference assumes 0 without it.
    let photometric = directory.integer(Tag::PHOTOMETRIC)?.unwrap_or(0);
    let channels = usize::from(stored.channels);
    let colour = match photometric {
        0 if stored.bits <= 8 && stored.format == SampleFormat::Unsigned => Colour::InvertedGray,
        0 | 1 => Colour::Gray,
        2 if channels > 3 && directory.integer(Tag::EXTRA_SAMPLES)? == Some(1) => Colour::MultipliedRgb,
        2 => Colour::Rgb,
        3 => Colour::Palette(palette(directory, stored)?),
        5 if directory.integer(Tag::INK_SET)?.unwrap_or(1) == 1 => Colour::Cmyk,
        5 => return Err(unsupported("a TIFF of inks other than CMYK", convert::TO_RGB)),
        6 if channels == 1 => Colour::Gray,
        6 => Colour::YCbCr(Subsampling::read(directory)?),
        4 => return Err(unsupported("a TIFF of a transparency mask", convert::TO_RGB)),
        8..=10 => return Err(unsupported("a TIFF of CIE Lab colours", convert::TO_RGB)),
        32844 => return Err(unsupported("a TIFF of CIE Log L luminances", convert::TO_RGB)),
        32845 => return Err(unsupported("a TIFF of CIE Log Luv colours", convert::TO_RGB)),
        32803 | 34892 => return Err(unsupported("a TIFF of raw camera data", convert::TO_RGB)),
        other => {
            let what = format!("a TIFF of the photometric interpretation {other}");
            return Err(unsupported(what, convert::TO_RGB));
        }
    };
    if channels < colour.kept() {
        let what = format!("{channels} samples a pixel are too few for its colours");
        return Err(DecodeError::corrupt(what));
    }
    Ok(colour)
}

/// The reference keeps the high byte of a colour of 16 bits.
fn palette(directory: &Directory<'_>, stored: StoredSample) -> Result<Vec<[u8; 3]>, DecodeError> {
    if stored.bits > 8 || stored.format != SampleFormat::Unsigned {
        let what = format!("a TIFF with a palette for {stored} samples");
        return Err(unsupported(what, convert::EXPAND_PALETTE));
    }
    let colours = 1 << stored.bits;
    let map = directory.integers(Tag::COLOR_MAP, 3 * colours as u64)?;
    if map.len() < 3 * colours {
        let what = format!("ColorMap has {} values in place of {}", map.len(), 3 * colours);
        return Err(DecodeError::corrupt(what));
    }
    let high = |value: u64| (value >> 8) as u8;
    Ok((0..colours).map(|i| [0, 1, 2].map(|c| high(map[c * colours + i]))).collect())
}

/// Amplitudes have one channel: the samples, or the gray values of their palette entries.
fn check_sar(colour: &Colour, stored: StoredSample) -> Result<(), DecodeError> {
    if stored.channels > 1 {
        let found = format!("{} ({stored})", stored.channels);
        return Err(DecodeError::SarChannels { found, command: convert::FIRST_BAND });
    }
    match colour {
        Colour::Palette(colours) if colours.iter().any(|[r, g, b]| r != g || g != b) => {
            let found = "a palette of colours".into();
            Err(DecodeError::SarChannels { found, command: convert::EXPAND_TO_GRAY })
        }
        _ => Ok(()),
    }
}

/// Pictures for which the reference has no rule, and a rule of our own would be a guess.
fn check_optical(
    directory: &Directory<'_>,
    colour: &Colour,
    stored: StoredSample,
) -> Result<(), DecodeError> {
    let StoredSample { bits, format, channels } = stored;
    if format.is_complex() {
        let what = format!("{stored} samples in an optical image");
        return Err(unsupported(what, convert::MAGNITUDE));
    }
    let unsigned = format == SampleFormat::Unsigned;
    match colour {
        // Samples after gray are dropped if the file declares them as alpha; otherwise it is
        // unclear which samples are the picture.
        Colour::Gray | Colour::InvertedGray if channels > 1 => {
            let alpha = matches!(directory.integer(Tag::EXTRA_SAMPLES)?, Some(1 | 2)) && channels == 2;
            if alpha {
                return Ok(());
            }
            let what =
                format!("a TIFF of {channels} channels, of which none is said to be red, green or blue");
            Err(unsupported(what, if channels == 2 { convert::FIRST_BAND } else { convert::BANDS_TO_RGB }))
        }
        Colour::Gray | Colour::InvertedGray | Colour::Palette(_) => Ok(()),
        Colour::Rgb if unsigned || format == SampleFormat::Float => Ok(()),
        Colour::MultipliedRgb | Colour::Cmyk if unsigned && matches!(bits, 8 | 16) => Ok(()),
        Colour::YCbCr(_) if unsigned && bits == 8 => Ok(()),
        Colour::Rgb => Err(unsupported(format!("RGB of {stored} samples"), convert::TO_BYTES)),
        Colour::MultipliedRgb => {
            let what = format!("RGB multiplied by its alpha, of {stored} samples");
            Err(unsupported(what, convert::TO_BYTES))
        }
        Colour::Cmyk => Err(unsupported(format!("CMYK of {stored} samples"), convert::TO_RGB)),
        Colour::YCbCr(_) => Err(unsupported(format!("YCbCr of {stored} samples"), convert::TO_RGB)),
    }
}

/// libtiff supports predictors for these compressions only, and ignores the tag for others.
fn predictor(directory: &Directory<'_>, compression: Compression) -> Result<Predictor, DecodeError> {
    if !matches!(compression, Compression::Lzw | Compression::Deflate | Compression::Zstd) {
        return Ok(Predictor::None);
    }
    match directory.integer(Tag::PREDICTOR)?.unwrap_or(1) {
        1 => Ok(Predictor::None),
        2 => Ok(Predictor::Horizontal),
        3 => Ok(Predictor::Float),
        other => Err(unsupported(format!("a TIFF with the predictor {other}"), convert::COMPRESSION)),
    }
}

/// As in the reference: from the tag, otherwise from XMP.
fn orientation(directory: &Directory<'_>) -> Result<Orientation, DecodeError> {
    if let Some(number) = directory.integer(Tag::ORIENTATION)? {
        return Ok(Orientation::from_number(number));
    }
    let name = b"tiff:Orientation";
    let xmp = directory.raw(Tag::XMP, XMP_BYTES_MAX)?;
    let numbers = xmp.windows(name.len() + 3).filter(|text| text.starts_with(name));
    let mut digits = numbers.filter_map(|text| match &text[name.len()..] {
        [b'=', b'"', digit] | [b'>', digit, _] => digit.is_ascii_digit().then(|| u64::from(digit - b'0')),
        _ => None,
    });
    Ok(digits.next().map_or(Orientation::default(), Orientation::from_number))
}

/// As GDAL writes it: a number as text. Anything that is not a number is ignored.
fn nodata(directory: &Directory<'_>) -> Result<Option<f64>, DecodeError> {
    let text = String::from_utf8_lossy(directory.raw(Tag::GDAL_NODATA, NODATA_BYTES_MAX)?);
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    if text.contains("#QNAN") || text.contains("#IND") {
        return Ok(Some(f64::NAN));
    }
    Ok(text.parse().ok())
}
