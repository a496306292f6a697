//! Precedence of the sources of the pixel size: the call, the file and the default.

use super::Modality;
use super::georeference::{Ground, Unusable};
use super::pixel_size::{AskedPixelSize, PixelSize};
use crate::reason::Warning;

/// A call and a file contradict each other if they differ by more than this fraction of the file's value.
const CONTRADICTION: f64 = 0.2;

/// Which pixel size is used for an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PixelSizeRule {
    /// These metres, regardless of the file. This is the reference's only rule, so data sets are read with
    /// it.
    Fixed(PixelSize),
    /// For each axis: the call's value, otherwise the file's, otherwise the default of the modality.
    Asked(AskedPixelSize),
}

/// A remark about the pixel size, caused by the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PixelSizeRemark {
    /// The call stated nothing, and these metres are the file's.
    FromFile { x_m: Option<f64>, y_m: Option<f64> },
    /// The call and the file differ considerably. The call's value was used.
    Contradicts { x_m: Option<(f64, f64)>, y_m: Option<(f64, f64)> },
    /// The default was used although the file is georeferenced.
    Unusable(Unusable),
}

impl PixelSizeRule {
    /// The stated pixel size of each axis, across and down.
    pub fn axes(&self) -> [Option<f64>; 2] {
        match self {
            Self::Fixed(size) => [Some(size.x_m()), Some(size.y_m())],
            Self::Asked(asked) => asked.axes(),
        }
    }

    /// The pixel size to use, and any remark about it.
    pub(super) fn settle(
        self,
        modality: Modality,
        ground: impl FnOnce() -> Ground,
    ) -> (PixelSize, Vec<PixelSizeRemark>) {
        let asked = match self {
            Self::Fixed(size) => return (size, Vec::new()),
            Self::Asked(asked) => asked,
        };
        let default = PixelSize::default_for(modality);
        let own = match ground() {
            Ground::Size(own) => own,
            Ground::Silent => return (asked.or(default), Vec::new()),
            Ground::Unusable(why) => {
                let defaulted = asked.axes().contains(&None);
                return (
                    asked.or(default),
                    defaulted.then_some(PixelSizeRemark::Unusable(why)).into_iter().collect(),
                );
            }
        };
        let [asked_x_m, asked_y_m] = asked.axes();
        let taken = |asked: Option<f64>, own: f64| asked.is_none().then_some(own);
        let from_file = (taken(asked_x_m, own.x_m()), taken(asked_y_m, own.y_m()));
        let against = |asked: Option<f64>, own: f64| {
            asked.filter(|asked| (asked / own - 1.0).abs() > CONTRADICTION).map(|asked| (asked, own))
        };
        let contradiction = (against(asked_x_m, own.x_m()), against(asked_y_m, own.y_m()));
        let mut remarks = Vec::new();
        if let (x_m @ Some(_), y_m) | (x_m, y_m @ Some(_)) = from_file {
            remarks.push(PixelSizeRemark::FromFile { x_m, y_m });
        }
        if let (x_m @ Some(_), y_m) | (x_m, y_m @ Some(_)) = contradiction {
            remarks.push(PixelSizeRemark::Contradicts { x_m, y_m });
        }
        (asked.or(own), remarks)
    }
}

impl PixelSizeRemark {
    pub fn code(&self) -> Warning {
        match self {
            Self::FromFile { .. } => Warning::PixelSizeFromFile,
            Self::Contradicts { .. } => Warning::PixelSizeContradicts,
            Self::Unusable(_) => Warning::PixelSizeUnusable,
        }
    }
}

impl std::fmt::Display for PixelSizeRemark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let axes = |x: Option<String>, y: Option<String>| {
            let x = x.map(|text| format!("pixel_size_x_m {text}"));
            let y = y.map(|text| format!("pixel_size_y_m {text}"));
            x.into_iter().chain(y).collect::<Vec<_>>().join(", ")
        };
        match *self {
            Self::FromFile { x_m, y_m } => {
                let said = axes(x_m.map(metres), y_m.map(metres));
                write!(f, "the file's georeferencing gives {said}, which was used")
            }
            Self::Contradicts { x_m, y_m } => {
                let both = |(asked, own)| format!("{} (the file: {})", metres(asked), metres(own));
                let said = axes(x_m.map(both), y_m.map(both));
                write!(f, "the request contradicts the file's georeferencing and was used: {said}")
            }
            Self::Unusable(why) => {
                write!(f, "the file is georeferenced, but {why}: the default pixel size was used")
            }
        }
    }
}

/// Rounded to a tenth of a millimetre.
fn metres(value: f64) -> String {
    format!("{}", (value * 1e4).round() / 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(x_m: f64, y_m: f64) -> PixelSize {
        PixelSize::new(x_m, y_m).expect("a size")
    }

    #[test]
    fn only_positive_finite_pixel_sizes_exist() {
        for value in [0.0, -0.75, f64::NAN, f64::INFINITY, 100.1] {
            assert_eq!(PixelSize::new(value, 1.0).expect_err("bad").field(), "pixel_size_x_m");
            assert_eq!(AskedPixelSize::new(None, Some(value)).expect_err("bad").field(), "pixel_size_y_m");
        }
        assert!(PixelSize::new(0.1, 100.0).is_ok());
        assert!(AskedPixelSize::new(None, None).is_ok());
    }

    #[test]
    fn each_axis_is_the_calls_or_the_files_or_the_default() {
        let file = Ground::Size(size(0.5, 0.6));
        let unusable = Ground::Unusable(Unusable::NoSystem);
        for (x_m, y_m, ground, expected, codes) in [
            (None, None, Ground::Silent, (1.0, 1.0), &[][..]),
            (Some(2.0), None, Ground::Silent, (2.0, 1.0), &[]),
            (None, None, file, (0.5, 0.6), &["PIXEL_SIZE_FROM_FILE"]),
            (Some(0.45), None, file, (0.45, 0.6), &["PIXEL_SIZE_FROM_FILE"]),
            (Some(0.55), Some(0.55), file, (0.55, 0.55), &[]),
            (Some(0.5), Some(0.73), file, (0.5, 0.73), &["PIXEL_SIZE_CONTRADICTS"]),
            (Some(0.39), None, file, (0.39, 0.6), &["PIXEL_SIZE_FROM_FILE", "PIXEL_SIZE_CONTRADICTS"]),
            (None, Some(2.0), unusable, (1.0, 2.0), &["PIXEL_SIZE_UNUSABLE"]),
            (Some(2.0), Some(2.0), unusable, (2.0, 2.0), &[]),
        ] {
            let rule = PixelSizeRule::Asked(AskedPixelSize::new(x_m, y_m).expect("sizes"));
            let (found, remarks) = rule.settle(Modality::Sar, || ground);
            assert_eq!(found, size(expected.0, expected.1), "{x_m:?} {y_m:?} {ground:?}");
            let found: Vec<_> = remarks.iter().map(|remark| remark.code().name()).collect();
            assert_eq!(found, codes, "{x_m:?} {y_m:?} {ground:?}");
        }
    }

    #[test]
    fn the_references_rule_does_not_look_at_the_file() {
        let fixed = PixelSizeRule::Fixed(size(0.75, 0.75));
        let (found, remarks) = fixed.settle(Modality::Optical, || panic!("the file is not asked"));
        assert_eq!((found, remarks), (size(0.75, 0.75), vec![]));
    }

    #[test]
    fn a_remark_names_both_values_and_which_was_used() {
        for (remark, expected) in [
            (
                PixelSizeRemark::FromFile { x_m: Some(0.5), y_m: Some(0.123_456) },
                "the file's georeferencing gives pixel_size_x_m 0.5, pixel_size_y_m 0.1235, which was used",
            ),
            (
                PixelSizeRemark::Contradicts { x_m: None, y_m: Some((1.25, 0.5)) },
                "the request contradicts the file's georeferencing and was used: pixel_size_y_m 1.25 (the file: 0.5)",
            ),
            (
                PixelSizeRemark::Unusable(Unusable::Projection(Some(2193))),
                "the file is georeferenced, but the scale of its projection (EPSG:2193) is not known: the default \
                 pixel size was used",
            ),
        ] {
            assert_eq!(remark.to_string(), expected);
        }
    }
}
