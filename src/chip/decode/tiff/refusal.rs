//! Refusals of valid but unsupported TIFFs: what the file is, and a command that converts it to a
//! supported one.

use super::super::DecodeError;

/// Commands of GDAL and libtiff.
pub mod convert {
    pub const COMPRESSION: &str = "gdal_translate -co COMPRESS=DEFLATE in.tif out.tif";
    pub const TO_BYTES: &str = "gdal_translate -ot Byte -scale in.tif out.tif";
    pub const TO_UINT16: &str = "gdal_translate -ot UInt16 -co COMPRESS=DEFLATE in.tif out.tif";
    pub const TO_INT16: &str = "gdal_translate -ot Int16 -co COMPRESS=DEFLATE in.tif out.tif";
    pub const TO_FLOAT32: &str = "gdal_translate -ot Float32 -co COMPRESS=DEFLATE in.tif out.tif";
    pub const FIRST_BAND: &str = "gdal_translate -b 1 in.tif out.tif";
    pub const BANDS_TO_RGB: &str = "gdal_translate -b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB in.tif out.tif";
    pub const EXPAND_PALETTE: &str = "gdal_translate -expand rgb in.tif out.tif";
    pub const EXPAND_TO_GRAY: &str = "gdal_translate -expand gray in.tif out.tif";
    pub const TO_RGB: &str = "tiff2rgba in.tif out.tif";
    pub const MAGNITUDE: &str = "gdal_calc.py -A in.tif --calc=\"abs(A)\" --type=Float32 --outfile=out.tif";
    pub const SMALLER_TILES: &str = "gdal_translate -co TILED=NO -co COMPRESS=DEFLATE in.tif out.tif";
}

pub fn unsupported(what: impl Into<String>, command: &'static str) -> DecodeError {
    DecodeError::Unsupported { what: what.into(), command }
}
