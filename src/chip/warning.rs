//! What may be doubtful about a chip that is embedded all the same. `docs/warnings.md` says what to do about each.

use super::pixel_size_rule::PixelSizeRemark;

/// A chip that the model was not made for, whose pixels the reference leaves undefined, of whose picture nearly nothing
/// is left, or whose pixel size is not simply the call's.
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
    /// Stable and fit for programs and labels.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NegativePixels { .. } => "NEGATIVE_PIXELS",
            Self::NonFinitePixels { .. } => "NON_FINITE_PIXELS",
            Self::AllZero => "ALL_ZERO",
            Self::NotUpright { .. } => "NOT_UPRIGHT",
            Self::UnusualSize { .. } => "UNUSUAL_SIZE",
            Self::BoxLeavesImage => "BOX_LEAVES_IMAGE",
            Self::PixelSize(remark) => remark.code(),
            Self::ComplexMagnitude => "COMPLEX_MAGNITUDE",
            Self::Clipped { .. } => "CLIPPED",
            Self::FewLevels { .. } | Self::Outshone { .. } => "FEW_LEVELS",
            Self::NoData { .. } | Self::BrightCorner => "NODATA",
            Self::LooksLikeSar => "LOOKS_LIKE_SAR",
            Self::Coloured | Self::Speckleless => "LOOKS_LIKE_OPTICAL",
        }
    }
}

/// The way out for a file with more bits a sample than the model reads; nothing to say for others.
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
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::super::georeference::Unusable;
    use super::*;

    /// One of each kind; a new one is added to the match as well.
    fn examples() -> Vec<ChipWarning> {
        let examples = vec![
            ChipWarning::NegativePixels { pixels: 1 },
            ChipWarning::NonFinitePixels { pixels: 1 },
            ChipWarning::AllZero,
            ChipWarning::NotUpright { ratio: 1.0 },
            ChipWarning::UnusualSize { width_m: 1.0, height_m: 1.0 },
            ChipWarning::BoxLeavesImage,
            ChipWarning::PixelSize(PixelSizeRemark::FromFile { x_m: Some(1.0), y_m: None }),
            ChipWarning::PixelSize(PixelSizeRemark::Contradicts { x_m: Some((1.0, 2.0)), y_m: None }),
            ChipWarning::PixelSize(PixelSizeRemark::Unusable(Unusable::NoSystem)),
            ChipWarning::ComplexMagnitude,
            ChipWarning::Clipped { share: 0.5, bits: 16 },
            ChipWarning::FewLevels { levels: 8, bits: 16 },
            ChipWarning::Outshone { level: 9 },
            ChipWarning::NoData { share: 0.5 },
            ChipWarning::BrightCorner,
            ChipWarning::LooksLikeSar,
            ChipWarning::Coloured,
            ChipWarning::Speckleless,
        ];
        let kinds: BTreeSet<usize> = examples.iter().map(kind).collect();
        assert_eq!(kinds, (0..examples.len()).collect());
        examples
    }

    fn kind(warning: &ChipWarning) -> usize {
        match warning {
            ChipWarning::NegativePixels { .. } => 0,
            ChipWarning::NonFinitePixels { .. } => 1,
            ChipWarning::AllZero => 2,
            ChipWarning::NotUpright { .. } => 3,
            ChipWarning::UnusualSize { .. } => 4,
            ChipWarning::BoxLeavesImage => 5,
            ChipWarning::PixelSize(PixelSizeRemark::FromFile { .. }) => 6,
            ChipWarning::PixelSize(PixelSizeRemark::Contradicts { .. }) => 7,
            ChipWarning::PixelSize(PixelSizeRemark::Unusable(_)) => 8,
            ChipWarning::ComplexMagnitude => 9,
            ChipWarning::Clipped { .. } => 10,
            ChipWarning::FewLevels { .. } => 11,
            ChipWarning::Outshone { .. } => 12,
            ChipWarning::NoData { .. } => 13,
            ChipWarning::BrightCorner => 14,
            ChipWarning::LooksLikeSar => 15,
            ChipWarning::Coloured => 16,
            ChipWarning::Speckleless => 17,
        }
    }

    #[test]
    fn the_document_lists_every_code_and_no_other() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/warnings.md");
        let document = std::fs::read_to_string(path).expect("the document is there");
        let listed: BTreeSet<&str> =
            document.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        let known: BTreeSet<&str> = examples().iter().map(ChipWarning::code).collect();
        assert_eq!(listed, known);
    }

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
