//! An image as a modality sees it, whole or cut: a chip has the size that was asked for, and an image that is taken has
//! as many pixels as its header says and as the limits allow.
//!
//! The last bytes of an input, which every format tolerates, choose among these and place the box.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shipreid::chip::{
    ChipForm, ChipSize, ImageLimits, Modality, OrientedBox, PixelSize, PixelSizeRule, PrepareError, Prepared,
    View, prepare,
};
use shipreid_fuzz::{Bound, watched};

const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 20, pixels_max: 1 << 18 };
const SIZE: ChipSize = ChipSize { height: 64, width: 32 };
const FORM: ChipForm = ChipForm::reference(SIZE);

/// What the decoders may use beside the pixels, and four times a pixel's 16 bytes.
const BOUND: Bound = Bound { bytes: (64 << 20) + (64 << 18), per_input_byte: 16 };

/// An error names what is wrong; whatever it repeats of the image is bounded.
const MESSAGE_BYTES_MAX: usize = 1024;

fuzz_target!(|data: &[u8]| {
    let choice = data.last().copied().unwrap_or_default();
    let modality = if choice & 1 == 0 { Modality::Optical } else { Modality::Sar };
    if choice & 2 == 0 {
        whole(data, modality);
    } else {
        // As the file says of itself how large its pixels are.
        prepared(data, &View { oriented_box: oriented_box(data), ..View::plain(modality) });
    }
});

fn whole(data: &[u8], modality: Modality) {
    let pixel_size = PixelSize::new(1.0, 1.0).expect("a metre is a pixel size");
    let view = View { modality, pixel_size: PixelSizeRule::Fixed(pixel_size), oriented_box: None };
    let Some(Prepared { chip, .. }) = prepared(data, &view) else { return };
    let [width, height] = chip.extent_m();
    assert!(width >= 0.9 && height >= 0.9 && width * height <= LIMITS.pixels_max as f64 * 1.001);
    if let Some([header_width, header_height]) = png_sides(data) {
        let is_near =
            |metres: f64, pixels: u32| (metres - f64::from(pixels)).abs() <= 1e-3 * f64::from(pixels);
        assert!(is_near(width, header_width) && is_near(height, header_height), "{width} x {height}");
    }
}

fn prepared(data: &[u8], view: &View) -> Option<Prepared> {
    match watched(BOUND, data.len(), || prepare(data, view, FORM, &LIMITS)) {
        Ok(prepared) => {
            assert_eq!((prepared.chip.size(), prepared.chip.modality()), (SIZE, view.modality));
            assert_eq!(prepared.chip.pixels().len(), SIZE.height * SIZE.width * 3);
            assert!(prepared.chip.size_token().iter().all(|number| number.is_finite()));
            prepared.warnings.iter().for_each(|warning| check_message(&warning.to_string()));
            Some(prepared)
        }
        Err(refused) => {
            check_message(&refused.to_string());
            let is_about_the_box = matches!(refused, PrepareError::Box(_));
            assert!(!is_about_the_box || view.oriented_box.is_some());
            None
        }
    }
}

fn check_message(message: &str) {
    assert!(message.len() <= MESSAGE_BYTES_MAX && !message.contains(char::is_control), "{message}");
}

fn png_sides(data: &[u8]) -> Option<[u32; 2]> {
    let header = data.strip_prefix(b"\x89PNG\r\n\x1a\n")?.get(4..16)?.strip_prefix(b"IHDR")?;
    let (sides, _) = header.as_chunks::<4>();
    Some([u32::from_be_bytes(sides[0]), u32::from_be_bytes(sides[1])])
}

fn oriented_box(data: &[u8]) -> Option<OrientedBox> {
    let [x, y, length, width, angle] = *data.last_chunk::<5>()?;
    let box_of = |bytes: [u8; 5]| bytes.map(f64::from);
    let [x, y, length, width, angle] = box_of([x, y, length, width, angle]);
    OrientedBox::new(x, y, 4.0 * length, width, 2.0 * angle).ok()
}
