//! The TIFF fields that are read.

use std::fmt;

/// A known field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u16);

impl Tag {
    #[cfg(test)]
    pub fn number(self) -> u16 {
        self.0
    }
}

macro_rules! tags {
    ($($constant:ident = $number:literal, $name:literal;)*) => {
        impl Tag {
            $(pub const $constant: Self = Self($number);)*
        }

        impl fmt::Display for Tag {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self.0 {
                    $($number => $name,)*
                    _ => "a field",
                })
            }
        }

        /// The tag with this number, if it is known.
        pub fn known(number: u16) -> Option<Tag> {
            matches!(number, $($number)|*).then_some(Tag(number))
        }
    };
}

tags! {
    WIDTH = 256, "ImageWidth";
    HEIGHT = 257, "ImageLength";
    BITS_PER_SAMPLE = 258, "BitsPerSample";
    COMPRESSION = 259, "Compression";
    PHOTOMETRIC = 262, "PhotometricInterpretation";
    FILL_ORDER = 266, "FillOrder";
    STRIP_OFFSETS = 273, "StripOffsets";
    ORIENTATION = 274, "Orientation";
    SAMPLES_PER_PIXEL = 277, "SamplesPerPixel";
    ROWS_PER_STRIP = 278, "RowsPerStrip";
    STRIP_BYTE_COUNTS = 279, "StripByteCounts";
    PLANAR_CONFIGURATION = 284, "PlanarConfiguration";
    PREDICTOR = 317, "Predictor";
    COLOR_MAP = 320, "ColorMap";
    TILE_WIDTH = 322, "TileWidth";
    TILE_LENGTH = 323, "TileLength";
    TILE_OFFSETS = 324, "TileOffsets";
    TILE_BYTE_COUNTS = 325, "TileByteCounts";
    INK_SET = 332, "InkSet";
    EXTRA_SAMPLES = 338, "ExtraSamples";
    SAMPLE_FORMAT = 339, "SampleFormat";
    JPEG_TABLES = 347, "JPEGTables";
    YCBCR_COEFFICIENTS = 529, "YCbCrCoefficients";
    YCBCR_SUBSAMPLING = 530, "YCbCrSubSampling";
    REFERENCE_BLACK_WHITE = 532, "ReferenceBlackWhite";
    XMP = 700, "XMP";
    PIXEL_SCALE = 33550, "ModelPixelScale";
    TIEPOINTS = 33922, "ModelTiepoint";
    TRANSFORMATION = 34264, "ModelTransformation";
    GEO_KEYS = 34735, "GeoKeyDirectory";
    GEO_DOUBLES = 34736, "GeoDoubleParams";
    GEO_ASCII = 34737, "GeoAsciiParams";
    GDAL_NODATA = 42113, "GDAL_NODATA";
}
