//! Tensors as torch stores them: a view with offset and strides into an array of typed bytes.

use half::{bf16, f16};

use super::tensors::HostTensor;

/// Axes that a checkpoint's tensor may have; a patch convolution has four.
const AXES_MAX: usize = 8;

/// What an array holds. Everything becomes f32 when it is read: f16, bf16, u8 and bool exactly, f64 rounded
/// to the nearest, i32 and i64 exactly up to 2^24 in magnitude and rounded beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    U8,
    Bool,
}

/// An array named by a checkpoint's pickle; its bytes lie elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    pub key: String,
    pub element: ElementType,
    pub elements: u64,
}

/// A tensor's place in a storage; every index of its shape lies inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    storage: Storage,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
    elements: usize,
}

impl ElementType {
    /// The type that torch calls `<name>` in its module `torch`, `FloatStorage` for one.
    pub fn of_storage_class(name: &str) -> Option<Self> {
        Some(match name {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }

    /// All elements of little-endian `bytes` as f32.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F64 => each(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::I64 => each(bytes, |bytes| i64::from_le_bytes(bytes) as f32),
            Self::I32 => each(bytes, |bytes| i32::from_le_bytes(bytes) as f32),
            Self::U8 => each(bytes, |[byte]: [u8; 1]| f32::from(byte)),
            Self::Bool => each(bytes, |[byte]: [u8; 1]| f32::from(u8::from(byte != 0))),
        }
    }
}

impl Storage {
    /// Length in bytes, where it fits this machine at all.
    pub fn byte_length(&self) -> Option<usize> {
        usize::try_from(self.elements).ok()?.checked_mul(self.element.size())
    }
}

impl StoredTensor {
    /// A view of `storage`; `None` where it would reach past the end, or axes and strides differ in number.
    pub fn new(storage: Storage, offset: usize, shape: Vec<usize>, strides: Vec<usize>) -> Option<Self> {
        if shape.len() != strides.len() || shape.len() > AXES_MAX {
            return None;
        }
        let elements = shape.iter().try_fold(1_usize, |product, length| product.checked_mul(*length))?;
        if elements > 0 {
            let last = shape.iter().zip(&strides).try_fold(offset, |at, (length, stride)| {
                at.checked_add((length - 1).checked_mul(*stride)?)
            })?;
            if u64::try_from(last).ok()? >= storage.elements {
                return None;
            }
        }
        Some(Self { storage, offset, shape, strides, elements })
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Number of values, the product of the shape.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Copies the view out of `array`, which holds all of the storage's elements, into row-major order.
    pub fn gather(&self, array: &[f32]) -> HostTensor {
        let values = if self.elements == 0 {
            Vec::new()
        } else if self.is_contiguous() {
            array[self.offset..self.offset + self.elements].to_vec()
        } else {
            self.walk().map(|position| array[position]).collect()
        };
        HostTensor { shape: self.shape.clone(), values }
    }

    fn is_contiguous(&self) -> bool {
        let mut step = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(length, stride)| {
            let fits = *length == 1 || *stride == step;
            step *= length;
            fits
        })
    }

    /// Positions in the storage, last axis fastest.
    fn walk(&self) -> impl Iterator<Item = usize> {
        let mut index = vec![0; self.shape.len()];
        let mut position = self.offset;
        (0..self.elements).map(move |_| {
            let here = position;
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                position += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                position -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
            here
        })
    }
}

fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|chunk| value(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(elements: u64) -> Storage {
        Storage { key: "0".to_owned(), element: ElementType::F32, elements }
    }

    #[test]
    fn transposed_repeated_and_shifted_views_are_copied_row_by_row() {
        let array: Vec<f32> = (0_u8..12).map(f32::from).collect();
        let check = |offset, shape: &[usize], strides: &[usize], expected: &[f32]| {
            let view =
                StoredTensor::new(storage(12), offset, shape.to_vec(), strides.to_vec()).expect("inside");
            assert_eq!(view.gather(&array), HostTensor { shape: shape.to_vec(), values: expected.to_vec() });
        };
        check(0, &[2, 3], &[3, 1], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        check(1, &[3, 2], &[1, 3], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        check(2, &[2, 2], &[0, 5], &[2.0, 7.0, 2.0, 7.0]);
        check(4, &[2, 1, 2], &[6, 99, 1], &[4.0, 5.0, 10.0, 11.0]);
        check(11, &[], &[], &[11.0]);
        check(50, &[0, 3], &[3, 1], &[]);
    }

    #[test]
    fn a_view_past_the_end_of_its_storage_is_refused() {
        let check = |offset, shape: &[usize], strides: &[usize]| {
            assert_eq!(StoredTensor::new(storage(6), offset, shape.to_vec(), strides.to_vec()), None);
        };
        check(1, &[2, 3], &[3, 1]);
        check(0, &[2, 3], &[4, 1]);
        check(6, &[], &[]);
        check(0, &[2], &[1, 1]);
        check(0, &[2, 2], &[usize::MAX, 1]);
        check(usize::MAX, &[2], &[1]);
        check(0, &[usize::MAX, 2], &[0, 0]);
        check(0, &[1; 9], &[1; 9]);
    }

    #[test]
    fn every_element_type_becomes_f32() {
        let check = |class, bytes: &[u8], expected: &[f32]| {
            let element = ElementType::of_storage_class(class).expect("a known class");
            assert_eq!(bytes.len(), element.size() * expected.len());
            assert_eq!(element.decode(bytes), expected, "{class}");
        };
        check("FloatStorage", &1.5_f32.to_le_bytes(), &[1.5]);
        check("DoubleStorage", &0.1_f64.to_le_bytes(), &[0.1]);
        check("HalfStorage", &[0x00, 0x3C, 0x01, 0x00], &[1.0, f32::exp2(-24.0)]);
        check("BFloat16Storage", &[0x80, 0x3F], &[1.0]);
        check("LongStorage", &(-7_i64).to_le_bytes(), &[-7.0]);
        check("IntStorage", &(1_i32 << 24).to_le_bytes(), &[16_777_216.0]);
        check("ByteStorage", &[255], &[255.0]);
        check("BoolStorage", &[0, 1], &[0.0, 1.0]);
        assert_eq!(ElementType::of_storage_class("ComplexFloatStorage"), None);
    }
}
