//! Doubts about a chip that is embedded nevertheless.

use super::pixel_size_rule::PixelSizeRemark;
use crate::reason::Warning;

/// A chip that the model was not made for, whose pixels the reference leaves undefined, in which almost no
/// detail is left, or whose pixel size was not simply taken from the call.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ChipWarning {
    #[error("{pixels} SAR pixels are negative and were taken as 0")]
    NegativePixels { pixels: usize },
    #[error("{pixels} SAR pixels are not finite and were taken as 0")]
    NonFinitePixels { pixels: usize },
    #[error("every pixel is 0")]
    AllZero,
    #[error(
        "the chip is {ratio:.2} times as high as wide; ships must be upright, which makes them at least 2"
    )]
    NotUpright { ratio: f64 },
    #[error(
        "the chip is {width_m:.0} m wide and {height_m:.0} m high, far from the ships of the training data"
    )]
    UnusualSize { width_m: f64, height_m: f64 },
    #[error("a part of the oriented box lies outside the image and is black")]
    BoxLeavesImage,
    #[error("{0}")]
    PixelSize(PixelSizeRemark),
    #[error("the samples are complex and their magnitudes were taken")]
    ComplexMagnitude,
    #[error("{:.0} % of the pixels are white{}", share * 100.0, Scale(*bits))]
    Clipped { share: f64, bits: u16 },
    #[error("98 % of the pixels lie within {levels} of 256 levels{}", Scale(*bits))]
    FewLevels { levels: usize, bits: u16 },
    #[error(
        "99 % of the pixels lie below level {level} of 256, since few are much brighter than all others and decide the \
         stretch; if they are dead, hot or without data, set them to 0"
    )]
    Outshone { level: u8 },
    #[error("{:.0} % of the pixels hold no data and are black", share * 100.0)]
    NoData { share: f64 },
    #[error(
        "a corner lies at the highest value, as where a value stands for missing data; name it in the file \
         (gdal_translate -a_nodata VALUE IN OUT) or set it to 0"
    )]
    BrightCorner,
    #[error("sent as optical, but its channels are equal and speckled as those of SAR are")]
    LooksLikeSar,
    #[error("sent as SAR, but its three channels differ as those of optical images do")]
    Coloured,
    #[error("sent as SAR, but it has next to no speckle, as optical or strongly filtered images have")]
    Speckleless,
}

impl ChipWarning {
    pub fn code(&self) -> Warning {
        match self {
            Self::NegativePixels { .. } => Warning::NegativePixels,
            Self::NonFinitePixels { .. } => Warning::NonFinitePixels,
            Self::AllZero => Warning::AllZero,
            Self::NotUpright { .. } => Warning::NotUpright,
            Self::UnusualSize { .. } => Warning::UnusualSize,
            Self::BoxLeavesImage => Warning::BoxLeavesImage,
            Self::PixelSize(remark) => remark.code(),
            Self::ComplexMagnitude => Warning::ComplexMagnitude,
            Self::Clipped { .. } => Warning::Clipped,
            Self::FewLevels { .. } | Self::Outshone { .. } => Warning::FewLevels,
            Self::NoData { .. } | Self::BrightCorner => Warning::Nodata,
            Self::LooksLikeSar => Warning::LooksLikeSar,
            Self::Coloured | Self::Speckleless => Warning::LooksLikeOptical,
        }
    }
}

/// Advice for a file with more bits per sample than the model reads; empty for others.
struct Scale(u16);

impl std::fmt::Display for Scale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0..=8 => Ok(()),
            bits => {
                write!(
                    f,
                    ": the file has {bits} bits a sample, which are not scaled to 8; send 8 bits \
                           (gdal_translate -ot Byte -scale IN OUT)"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_out_is_named_only_where_there_is_one() {
        let sentence = |bits| ChipWarning::Clipped { share: 0.984, bits }.to_string();
        assert_eq!(sentence(8), "98 % of the pixels are white");
        assert_eq!(
            sentence(16),
            "98 % of the pixels are white: the file has 16 bits a sample, which are not scaled to 8; send 8 bits \
             (gdal_translate -ot Byte -scale IN OUT)"
        );
    }
}
