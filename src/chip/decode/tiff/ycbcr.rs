//! YCbCr outside JPEG: chroma shared by blocks of pixels, converted to colours in libtiff's integer
//! arithmetic.

use super::super::DecodeError;
use super::directory::Directory;
use super::refusal::{convert, unsupported};
use super::tag::Tag;

/// How many pixels share their chroma, and the coefficients of the conversion.
#[derive(Clone, Debug, PartialEq)]
pub struct Subsampling {
    across: usize,
    down: usize,
    luma: [f32; 3],
    /// Black and white of Y, Cb and Cr.
    reference: [f32; 6],
}

impl Subsampling {
    pub fn read(directory: &Directory<'_>) -> Result<Self, DecodeError> {
        let pixels = directory.integers(Tag::YCBCR_SUBSAMPLING, 2)?;
        let (across, down) = match pixels[..] {
            [] => (2, 2),
            [across @ (1 | 2 | 4), down @ (1 | 2 | 4)] => (across as usize, down as usize),
            _ => {
                let what = format!("YCbCr with a chroma sample for {pixels:?} pixels");
                return Err(unsupported(what, convert::TO_RGB));
            }
        };
        let reals = |tag: Tag, default: &[f32]| -> Result<Vec<f32>, DecodeError> {
            let values = directory.reals(tag, default.len() as u64)?;
            let given = values.len() == default.len() && values.iter().all(|value| value.is_finite());
            Ok(if given { values.into_iter().map(|v| v as f32).collect() } else { default.to_vec() })
        };
        let luma = reals(Tag::YCBCR_COEFFICIENTS, &[0.299, 0.587, 0.114])?;
        let reference = reals(Tag::REFERENCE_BLACK_WHITE, &[0.0, 255.0, 128.0, 255.0, 128.0, 255.0])?;
        if luma[1] == 0.0 {
            return Err(DecodeError::corrupt("the YCbCr coefficient of green is 0"));
        }
        let reference = std::array::from_fn(|index| reference[index]);
        Ok(Self { across, down, luma: [luma[0], luma[1], luma[2]], reference })
    }

    /// Whether each pixel has its own chroma.
    pub fn is_full(&self) -> bool {
        (self.across, self.down) == (1, 1)
    }

    /// Bytes of a chunk with this many pixels: blocks of luma, each followed by its Cb and Cr.
    pub fn chunk_bytes(&self, width: usize, height: usize) -> usize {
        width.div_ceil(self.across) * height.div_ceil(self.down) * (self.across * self.down + 2)
    }

    /// Assigns each pixel of a chunk the chroma of its block.
    pub fn expand(&self, blocks: &[u8], width: usize, height: usize) -> Vec<u8> {
        let mut pixels = vec![0; width * height * 3];
        let (block_bytes, blocks_across) = (self.across * self.down + 2, width.div_ceil(self.across));
        for (index, block) in blocks.chunks_exact(block_bytes).enumerate() {
            let (left, top) = (index % blocks_across * self.across, index / blocks_across * self.down);
            let (luma, chroma) = block.split_at(block_bytes - 2);
            for (at, y) in luma.iter().enumerate() {
                let (column, row) = (left + at % self.across, top + at / self.across);
                if column < width && row < height {
                    let at = (row * width + column) * 3;
                    pixels[at..at + 3].copy_from_slice(&[*y, chroma[0], chroma[1]]);
                }
            }
        }
        pixels
    }

    /// Converts Y, Cb and Cr of each pixel to red, green and blue.
    pub fn to_rgb(&self, pixels: &mut [u8]) {
        let tables = Tables::new(self.luma, self.reference);
        for pixel in pixels.chunks_exact_mut(3) {
            let rgb = tables.rgb(pixel[0], pixel[1], pixel[2]);
            pixel.copy_from_slice(&rgb);
        }
    }
}

struct Tables {
    y: [i32; 256],
    red_of_cr: [i32; 256],
    green_of_cr: [i32; 256],
    green_of_cb: [i32; 256],
    blue_of_cb: [i32; 256],
}

impl Tables {
    fn new([red, green, blue]: [f32; 3], reference: [f32; 6]) -> Self {
        const HALF: i32 = 1 << 15;
        // The reference clamps factors, so that no product overflows.
        let fixed = |factor: f32| (f64::from(factor.clamp(0.0, 2.0)) * 65536.0 + 0.5) as i32;
        let red_of_cr = fixed(2.0 - 2.0 * red);
        let green_of_cr = -fixed(red * (2.0 - 2.0 * red) / green);
        let blue_of_cb = fixed(2.0 - 2.0 * blue);
        let green_of_cb = -fixed(blue * (2.0 - 2.0 * blue) / green);
        let level = |code: i32, black: f32, white: f32, range: f32| {
            let span = if white - black == 0.0 { 1.0 } else { white - black };
            // libtiff uses whole numbers for black.
            let value = code.saturating_sub(black as i32) as f32 * range / span;
            value.clamp(-128.0 * 32.0, 128.0 * 32.0) as i32
        };
        let [y_black, y_white, cb_black, cb_white, cr_black, cr_white] = reference;
        let code = |index: usize| index as i32 - 128;
        let cr = |index| level(code(index), cr_black - 128.0, cr_white - 128.0, 127.0);
        let cb = |index| level(code(index), cb_black - 128.0, cb_white - 128.0, 127.0);
        Self {
            y: std::array::from_fn(|index| level(index as i32, y_black, y_white, 255.0)),
            red_of_cr: std::array::from_fn(|index| (red_of_cr * cr(index) + HALF) >> 16),
            green_of_cr: std::array::from_fn(|index| green_of_cr * cr(index)),
            green_of_cb: std::array::from_fn(|index| green_of_cb * cb(index) + HALF),
            blue_of_cb: std::array::from_fn(|index| (blue_of_cb * cb(index) + HALF) >> 16),
        }
    }

    fn rgb(&self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        let (y, cb, cr) = (self.y[usize::from(y)], usize::from(cb), usize::from(cr));
        let green = (self.green_of_cb[cb] + self.green_of_cr[cr]) >> 16;
        [y + self.red_of_cr[cr], y + green, y + self.blue_of_cb[cb]].map(|value| value.clamp(0, 255) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::ByteOrder;
    use super::super::sample::Sample;
    use super::*;

    fn sampling(pixels: &[u64]) -> Result<Subsampling, DecodeError> {
        let file = Sample::new(ByteOrder::Little, false).set(Tag::YCBCR_SUBSAMPLING, pixels).finish();
        Subsampling::read(&Directory::read(&file).expect("a directory"))
    }

    #[test]
    fn blocks_share_their_chroma_up_to_the_edge() {
        let sampling = sampling(&[2, 2]).expect("a sampling");
        assert_eq!(sampling.chunk_bytes(3, 2), 12);
        let blocks = [1, 2, 4, 5, 50, 60, 3, 0, 6, 0, 70, 80];
        let pixels = sampling.expand(&blocks, 3, 2);
        let (a, b) = ([50, 60], [70, 80]);
        let expected = [(1, a), (2, a), (3, b), (4, a), (5, a), (6, b)];
        assert_eq!(pixels, expected.map(|(y, [cb, cr])| [y, cb, cr]).concat());
    }

    #[test]
    fn colours_are_those_of_libtiff() {
        // The output of TIFFReadRGBAStrip of libtiff 4.7.
        let mut pixels = vec![0, 0, 0, 128, 128, 128, 255, 255, 255, 81, 90, 240, 145, 54, 34];
        sampling(&[1, 1]).expect("a sampling").to_rgb(&mut pixels);
        assert_eq!(pixels, [0, 135, 0, 128, 128, 128, 255, 121, 255, 238, 14, 14, 13, 238, 14]);
    }

    #[test]
    fn hostile_numbers_overflow_nothing() {
        for value in [f64::MAX, f64::MIN, f64::NAN, f64::INFINITY, -0.0, 1e-300, 2e9, -2147483648.0] {
            let mut sample = Sample::new(ByteOrder::Little, false);
            sample.set_reals(Tag::YCBCR_COEFFICIENTS, &[value, 0.5, value]);
            sample.set_reals(Tag::REFERENCE_BLACK_WHITE, &[value, -value, value, value, -value, value]);
            let file = sample.finish();
            let sampling = Subsampling::read(&Directory::read(&file).expect("a directory")).expect("numbers");
            sampling.to_rgb(&mut [0, 0, 0, 255, 255, 255]);
        }
    }

    #[test]
    fn odd_samplings_are_refused_by_name() {
        let error = sampling(&[3, 1]).expect_err("no sampling of libtiff").to_string();
        assert!(error.contains("[3, 1]"), "{error}");
    }
}
