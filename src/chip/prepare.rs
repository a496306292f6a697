//! The complete path from an encoded image to a chip, and the resulting doubts.

use super::decode::{self, DecodeError, Facts, ImageLimits, Pixels, Raster};
use super::doubts::{Framing, Picture, doubts};
use super::georeference::Ground;
use super::oriented_box::{BoxError, Cut, OrientedBox};
use super::pixel_size::{AskedPixelSize, PixelSize};
use super::pixel_size_rule::PixelSizeRule;
use super::resize::{Resampling, resize};
use super::size_token::size_token;
use super::warning::ChipWarning;
use super::{Chip, ChipForm, ChipSize, Modality, SarStretch};
use crate::reason::Reason;

/// Minimum ratio of length to width of upright ships in the training data. The lowest ratio of 165 real chips
/// is 3.1, so 2 leaves a margin and still detects a ship that lies across.
const HEIGHT_OVER_WIDTH_MIN: f64 = 2.0;
/// Extent of training chips in metres, with a margin: 165 real chips are 14 to 76 m wide and 50 to 385 m
/// high.
const WIDTH_RANGE_M: (f64, f64) = (7.0, 115.0);
const HEIGHT_RANGE_M: (f64, f64) = (25.0, 580.0);

/// How to interpret an image. Nothing is guessed from the image or its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    pub modality: Modality,
    pub pixel_size: PixelSizeRule,
    /// The position of the ship; without it, the whole image is used.
    pub oriented_box: Option<OrientedBox>,
}

impl View {
    /// The whole image as the reference reads it: its pixels have the default size of its modality, whatever
    /// the file states.
    pub fn reference(modality: Modality) -> Self {
        let pixel_size = PixelSizeRule::Fixed(PixelSize::default_for(modality));
        Self { modality, pixel_size, oriented_box: None }
    }

    /// The whole image, for which a caller states only the modality.
    pub fn plain(modality: Modality) -> Self {
        Self { modality, pixel_size: PixelSizeRule::Asked(AskedPixelSize::default()), oriented_box: None }
    }
}

/// A chip and the doubts about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    pub chip: Chip,
    pub warnings: Vec<ChipWarning>,
}

/// Why no chip could be made from an image.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Box(#[from] BoxError),
}

impl PrepareError {
    /// Stable; suitable for programs and metric labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Decode(cause) => cause.reason(),
            Self::Box(_) => Reason::OrientedBoxInvalid,
        }
    }

    /// The invalid field of the chip.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Decode(_) => "image",
            Self::Box(_) => "oriented_box",
        }
    }
}

/// Decodes, cuts, stretches (SAR), resizes with the inference filter, computes the size token, and
/// collects doubts.
///
/// A SAR chip is stretched by the amplitudes of the cut, as if it had been cut by hand.
///
/// # Errors
/// If the image or its box is invalid.
pub fn prepare(
    image: &[u8],
    view: &View,
    form: ChipForm,
    limits: &ImageLimits,
) -> Result<Prepared, PrepareError> {
    let mut decoded = DecodedView::new(image, view, form.sar_stretch, limits)?;
    let doubts = doubts(&decoded.picture(view.modality));
    decoded.warnings.extend(doubts);
    decoded.warnings.extend(doubtful_shape(decoded.extent_m()));
    let chip = decoded.chip(view.modality, form.size, Resampling::Bilinear);
    Ok(Prepared { chip, warnings: decoded.warnings })
}

/// The chip of [`prepare`], resized with another filter and without collecting doubts: the reference trains
/// on bicubic chips, and doubts about training chips are not reported.
///
/// # Errors
/// See [`prepare`].
pub fn prepare_resampled(
    image: &[u8],
    view: &View,
    form: ChipForm,
    limits: &ImageLimits,
    resampling: Resampling,
) -> Result<Chip, PrepareError> {
    let decoded = DecodedView::new(image, view, form.sar_stretch, limits)?;
    Ok(decoded.chip(view.modality, form.size, resampling))
}

/// The 8-bit picture of a view on an image, in its original size.
pub(super) struct DecodedView {
    rgb: Vec<u8>,
    width: usize,
    height: usize,
    pixel_size: PixelSize,
    framing: Framing,
    facts: Facts,
    warnings: Vec<ChipWarning>,
}

impl DecodedView {
    pub(super) fn new(
        image: &[u8],
        view: &View,
        sar_stretch: SarStretch,
        limits: &ImageLimits,
    ) -> Result<Self, PrepareError> {
        let mut raster = decode::decode(image, view.modality, limits)?;
        let (mut pixel_size, remarks) = view.pixel_size.settle(view.modality, || ground(&raster));
        let mut warnings: Vec<_> = remarks.into_iter().map(ChipWarning::PixelSize).collect();
        let mut framing = Framing::Whole;
        if let Some(oriented_box) = &view.oriented_box {
            let cut: Cut = oriented_box.cut(&raster, pixel_size, limits.pixels_max)?;
            (raster, pixel_size, framing) = (cut.raster, cut.pixel_size, cut.framing);
            warnings.extend(cut.leaves_image.then_some(ChipWarning::BoxLeavesImage));
        }
        let Raster { width, height, pixels, facts } = raster;
        let rgb = match pixels {
            Pixels::Rgb(bytes) => bytes,
            Pixels::Amplitude(values) => sar_stretch.bytes(values, &mut warnings),
        };
        Ok(Self { rgb, width, height, pixel_size, framing, facts, warnings })
    }

    fn picture(&self, modality: Modality) -> Picture<'_> {
        let Self { rgb, width, framing, facts, .. } = self;
        Picture { rgb, width: *width, modality, framing: *framing, facts }
    }

    /// Rows and columns.
    pub(super) fn size(&self) -> ChipSize {
        ChipSize { height: self.height, width: self.width }
    }

    /// Row by row, interleaved.
    pub(super) fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Width and height.
    fn extent_m(&self) -> (f64, f64) {
        (self.width as f64 * self.pixel_size.x_m(), self.height as f64 * self.pixel_size.y_m())
    }

    fn chip(&self, modality: Modality, size: ChipSize, resampling: Resampling) -> Chip {
        let pixels = resize(&self.rgb, self.size(), size, resampling);
        let (width_m, height_m) = self.extent_m();
        let size_token = size_token(width_m, height_m).map(|number| number as f32);
        Chip::new(pixels, size, modality, size_token)
    }
}

/// The file's pixel size, transposed together with the image.
fn ground(raster: &Raster) -> Ground {
    let (tags, (width, height)) = (&raster.facts.geo_tags, (raster.width, raster.height));
    if raster.facts.transposed { tags.ground(height, width).turned() } else { tags.ground(width, height) }
}

fn doubtful_shape((width_m, height_m): (f64, f64)) -> impl Iterator<Item = ChipWarning> {
    let ratio = height_m / width_m;
    let within = |metres: f64, (low, high): (f64, f64)| (low..=high).contains(&metres);
    let usual = within(width_m, WIDTH_RANGE_M) && within(height_m, HEIGHT_RANGE_M);
    let lying = (ratio < HEIGHT_OVER_WIDTH_MIN).then_some(ChipWarning::NotUpright { ratio });
    let unusual = (!usual).then_some(ChipWarning::UnusualSize { width_m, height_m });
    lying.into_iter().chain(unusual)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tiff::encoder::TiffEncoder;
    use tiff::encoder::colortype::RGB8;
    use tiff::tags::Tag;

    use super::super::decode::Facts;
    use super::super::georeference::GeoTags;
    use super::*;

    const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 20, pixels_max: 1 << 20 };
    const FORM: ChipForm = ChipForm::reference(ChipSize { height: 16, width: 8 });

    /// 40 x 160 pixels with these tags: a step and a point in the coordinates of an EPSG code.
    fn georeferenced(kind: u16, code: u16, step: [f64; 2], place: [f64; 2]) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let mut file = TiffEncoder::new(&mut bytes).expect("a TIFF");
        let mut image = file.new_image::<RGB8>(40, 160).expect("an image");
        let tiepoint = [0.0, 0.0, 0.0, place[0], place[1], 0.0];
        let system = if kind == 2 { 2048 } else { 3072 };
        let keys = [1, 1, 0, 2, 1024, 0, 1, kind, system, 0, 1, code];
        let directory = image.encoder();
        directory.write_tag(Tag::ModelPixelScaleTag, &[step[0], step[1], 0.0][..]).expect("a tag");
        directory.write_tag(Tag::ModelTiepointTag, &tiepoint[..]).expect("a tag");
        directory.write_tag(Tag::GeoKeyDirectoryTag, &keys[..]).expect("a tag");
        let pixels: Vec<u8> =
            (0..40 * 160_u32).flat_map(|i| [(i / 40 + 20) as u8, (i % 40) as u8, 90]).collect();
        image.write_data(&pixels).expect("pixels");
        bytes.into_inner()
    }

    /// Half a metre on the ground in Web Mercator at 60 degrees north.
    fn web_mercator() -> Vec<u8> {
        georeferenced(1, 3857, [0.997_5, 0.999_2], [2_782_987.3, 8_399_737.9])
    }

    fn asked(x_m: Option<f64>, y_m: Option<f64>) -> View {
        let asked = AskedPixelSize::new(x_m, y_m).expect("a size");
        View { pixel_size: PixelSizeRule::Asked(asked), ..View::plain(Modality::Optical) }
    }

    #[test]
    fn a_files_own_pixel_size_holds_where_nothing_was_asked() {
        let file = web_mercator();
        for (view, extent, codes) in [
            (asked(None, None), [20.0, 80.0], &["PIXEL_SIZE_FROM_FILE"][..]),
            (asked(Some(0.55), None), [22.0, 80.0], &["PIXEL_SIZE_FROM_FILE"]),
            (asked(None, Some(1.0)), [20.0, 160.0], &["PIXEL_SIZE_FROM_FILE", "PIXEL_SIZE_CONTRADICTS"]),
            (asked(Some(0.5), Some(0.5)), [20.0, 80.0], &[]),
            (View::reference(Modality::Optical), [30.0, 120.0], &[]),
        ] {
            let prepared = prepare(&file, &view, FORM, &LIMITS).expect("a chip");
            let found = prepared.chip.extent_m();
            assert!(
                found.iter().zip(extent).all(|(found, extent)| (found - extent).abs() < 0.05),
                "{found:?}"
            );
            let found: Vec<_> = prepared.warnings.iter().map(|warning| warning.code().name()).collect();
            assert_eq!(found, codes, "{view:?}");
            let resampled = prepare_resampled(&file, &view, FORM, &LIMITS, Resampling::Bilinear);
            assert_eq!(resampled.expect("a chip"), prepared.chip);
        }
    }

    #[test]
    fn a_box_in_a_file_of_oblong_pixels_is_cut_at_any_angle() {
        // Pixels of 0.28 m x 0.56 m.
        let file = georeferenced(2, 4326, [5e-6, 5e-6], [25.0, 60.0]);
        for (angle, extent) in [(0.0, [2.79, 44.6]), (90.0, [44.6 / 8.0, 22.3]), (37.0, [3.269, 38.04])] {
            let oriented_box = OrientedBox::new(20.0, 80.0, 80.0, 10.0, angle).expect("a box");
            let view = View { oriented_box: Some(oriented_box), ..View::plain(Modality::Optical) };
            let found = prepare(&file, &view, FORM, &LIMITS).expect("a chip").chip.extent_m();
            assert!(
                found.iter().zip(extent).all(|(found, extent)| (found / extent - 1.0).abs() < 2e-3),
                "{angle}: {found:?}"
            );
        }
    }

    #[test]
    fn rows_that_were_columns_in_the_file_keep_their_size() {
        let geo_tags = GeoTags {
            pixel_scale: vec![5e-6, 5e-6, 0.0],
            tiepoints: vec![0.0, 0.0, 0.0, 25.0, 60.0, 0.0],
            geo_keys: vec![1, 1, 0, 1, 1024, 0, 1, 2],
            ..GeoTags::default()
        };
        let facts = |transposed| Facts { transposed, geo_tags: geo_tags.clone(), ..Facts::default() };
        let raster = |transposed| Raster {
            width: 2,
            height: 2,
            pixels: Pixels::Rgb(vec![0; 12]),
            facts: facts(transposed),
        };
        let Ground::Size(upright) = ground(&raster(false)) else { panic!("a size") };
        assert!(upright.y_m() > 1.9 * upright.x_m());
        assert_eq!(ground(&raster(true)), Ground::Size(upright.turned()));
    }
}
