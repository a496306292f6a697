//! Where the pixels of a TIFF lie on the ground, as its tags say.

/// Tags that tie pixels to the ground, as stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GeoTags {
    pub pixel_scale: Vec<f64>,
    pub tiepoints: Vec<f64>,
    pub transformation: Vec<f64>,
    pub geo_keys: Vec<u16>,
    pub geo_doubles: Vec<f64>,
    pub geo_ascii: String,
}
