//! Conversion of single samples of every supported type, to a picture and to an amplitude.

use half::f16;

/// How a sample is converted to 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Showing {
    /// A byte, unchanged.
    Bits,
    /// 0..=`max` scaled to 0..=255: fewer than 8 bits.
    Spread { max: u32 },
    /// Clipped to 0..=255 and truncated: gray of more than 8 bits, and floats.
    Clipped,
    /// The most significant 8 bits: colours of more than 8.
    High { shift: u32 },
}

/// A number as stored in a file, read in native byte order.
pub trait Sample: Copy {
    const BYTES: usize;

    fn read(bytes: &[u8]) -> Self;
    /// The nodata value that GDAL uses where a chunk is omitted.
    fn from_nodata(nodata: f64) -> Self;
    fn is_nodata(self, nodata: f64) -> bool;
    fn amplitude(self) -> f32;
    fn shown(self, showing: Showing) -> u8;
    /// Whether it exceeds the 8-bit range.
    fn is_above_bytes(self) -> bool;
}

macro_rules! whole_numbers {
    ($($type:ty),*) => {$(
        impl Sample for $type {
            const BYTES: usize = size_of::<Self>();

            #[inline]
            fn read(bytes: &[u8]) -> Self {
                let mut value = [0; Self::BYTES];
                value.copy_from_slice(&bytes[..Self::BYTES]);
                Self::from_ne_bytes(value)
            }

            fn from_nodata(nodata: f64) -> Self {
                nodata.round() as Self
            }

            #[inline]
            fn is_nodata(self, nodata: f64) -> bool {
                self as f64 == nodata
            }

            #[inline]
            fn amplitude(self) -> f32 {
                self as f32
            }

            #[inline]
            fn shown(self, showing: Showing) -> u8 {
                match showing {
                    Showing::Bits => self as u8,
                    Showing::Spread { max } => ((self as u32 * 255 + max / 2) / max) as u8,
                    #[allow(unused_comparisons, reason = "half of the types have no sign")]
                    Showing::Clipped if self < 0 => 0,
                    Showing::Clipped if self.is_above_bytes() => 255,
                    Showing::Clipped => self as u8,
                    Showing::High { shift } => (self as u64 >> shift) as u8,
                }
            }

            #[inline]
            fn is_above_bytes(self) -> bool {
                self > 0 && self as u64 > 255
            }
        }
    )*};
}

whole_numbers!(u8, u16, u32, u64, i8, i16, i32, i64);

macro_rules! floats {
    ($($type:ty: $from:expr, $into_f32:expr, $into_f64:expr;)*) => {$(
        impl Sample for $type {
            const BYTES: usize = size_of::<Self>();

            #[inline]
            fn read(bytes: &[u8]) -> Self {
                let mut value = [0; Self::BYTES];
                value.copy_from_slice(&bytes[..Self::BYTES]);
                Self::from_ne_bytes(value)
            }

            fn from_nodata(nodata: f64) -> Self {
                $from(nodata)
            }

            #[inline]
            fn is_nodata(self, nodata: f64) -> bool {
                let nodata: Self = $from(nodata);
                self == nodata || (self.is_nan() && nodata.is_nan())
            }

            #[inline]
            fn amplitude(self) -> f32 {
                $into_f32(self)
            }

            #[inline]
            fn shown(self, _showing: Showing) -> u8 {
                // A cast from float saturates, truncates, and makes NaN 0.
                $into_f64(self) as u8
            }

            #[inline]
            fn is_above_bytes(self) -> bool {
                $into_f64(self) >= 256.0
            }
        }
    )*};
}

floats! {
    f16: f16::from_f64, f16::to_f32, f16::to_f64;
    f32: |value: f64| value as f32, |value: f32| value, f64::from;
    f64: |value: f64| value, |value: f64| value as f32, |value: f64| value;
}

/// A real and an imaginary part; the magnitude is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Complex<T>(T, T);

impl<T: Sample + Into<f64>> Sample for Complex<T> {
    const BYTES: usize = 2 * T::BYTES;

    fn read(bytes: &[u8]) -> Self {
        Self(T::read(bytes), T::read(&bytes[T::BYTES..]))
    }

    fn from_nodata(nodata: f64) -> Self {
        Self(T::from_nodata(nodata), T::from_nodata(0.0))
    }

    /// GDAL writes the value into the real part, other programs into both.
    fn is_nodata(self, nodata: f64) -> bool {
        self.0.is_nodata(nodata) && (self.1.is_nodata(0.0) || self.1.is_nodata(nodata))
    }

    fn amplitude(self) -> f32 {
        let (real, imaginary): (f64, f64) = (self.0.into(), self.1.into());
        real.hypot(imaginary) as f32
    }

    /// No optical image has complex samples.
    fn shown(self, showing: Showing) -> u8 {
        self.amplitude().shown(showing)
    }

    fn is_above_bytes(self) -> bool {
        self.amplitude().is_above_bytes()
    }
}

/// Samples of `bits` bits, packed without gaps starting at the high bit, as one `u32` each.
pub fn unpack(row: &[u8], bits: u16, samples: &mut Vec<u8>) {
    samples.clear();
    let (mut held, mut count) = (0u64, 0);
    let mut bytes = row.iter();
    let mask = (1u64 << bits) - 1;
    loop {
        while count < bits {
            let Some(byte) = bytes.next() else { return };
            held = held << 8 | u64::from(*byte);
            count += 8;
        }
        count -= bits;
        samples.extend_from_slice(&((held >> count & mask) as u32).to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn eight_bits_show_what_the_reference_shows() {
        assert_eq!([0u16, 255, 256, u16::MAX].map(|value| value.shown(Showing::Clipped)), [0, 255, 255, 255]);
        assert_eq!(
            [0u16, 255, 256, u16::MAX].map(|value| value.shown(Showing::High { shift: 8 })),
            [0, 0, 1, 255]
        );
        assert_eq!([i16::MIN, -1, 7, 300].map(|value| value.shown(Showing::Clipped)), [0, 0, 7, 255]);
        assert_eq!([-1i8, 5].map(|value| value.shown(Showing::Clipped)), [0, 5]);
        assert_eq!([0u32, 1, 2, 3].map(|value| value.shown(Showing::Spread { max: 3 })), [0, 85, 170, 255]);
        let floats = [-1.0f32, 0.99, 254.999, 255.5, 1e30, f32::NAN];
        assert_eq!(floats.map(|value| value.shown(Showing::Clipped)), [0, 0, 254, 255, 255, 0]);
        assert_eq!([u64::MAX, 3].map(|value| value.shown(Showing::Clipped)), [255, 3]);
    }

    #[test]
    fn nodata_is_compared_in_the_type_of_the_samples() {
        assert!(f32::MIN.is_nodata(-3.402_823_466_385_288_6e38) && f32::NAN.is_nodata(f64::NAN));
        assert!(0.1f32.is_nodata(0.1) && !0.1f64.is_nodata(f64::from(0.1f32)));
        assert!(u16::MAX.is_nodata(65535.0) && !0u16.is_nodata(-9999.0) && !0u8.is_nodata(f64::NAN));
        assert!(Complex(-5i16, 0).is_nodata(-5.0) && !Complex(-5i16, 3).is_nodata(-5.0));
        assert_eq!(
            (u8::from_nodata(-9999.0), i16::from_nodata(1e9), u8::from_nodata(f64::NAN)),
            (0, i16::MAX, 0)
        );
    }

    #[test]
    fn the_magnitude_of_complex_samples_is_read() {
        let bytes = [3i16.to_ne_bytes(), (-4i16).to_ne_bytes()].concat();
        assert_eq!(Complex::<i16>::read(&bytes).amplitude(), 5.0);
    }

    proptest! {
        #[test]
        fn packed_samples_come_out_as_they_went_in(
            bits in 1..=32u16, values in prop::collection::vec(any::<u32>(), 0..40)
        ) {
            let text: String = values
                .iter()
                .map(|value| format!("{:032b}", value)[32 - usize::from(bits)..].to_string())
                .collect();
            let padded = format!("{text:0<width$}", width = text.len().div_ceil(8) * 8);
            let row: Vec<u8> = padded
                .as_bytes()
                .chunks(8)
                .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
                .collect();
            let mut samples = Vec::new();
            unpack(&row, bits, &mut samples);
            let found: Vec<u32> = samples.chunks(4).map(u32::read).collect();
            let mask = u32::MAX >> (32 - bits);
            let expected: Vec<u32> = values.iter().map(|value| value & mask).collect();
            prop_assert_eq!(&found[..expected.len()], &expected[..]);
        }
    }
}
