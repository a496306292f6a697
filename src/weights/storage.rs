//! Tensors as torch stores them: a view with offset and strides into an array of typed bytes.

use std::io::{self, Read};

use half::{bf16, f16};

use super::tensors::{HostTensor, file_bytes_mut};

/// Maximum number of axes of a checkpoint's tensor; a patch convolution has four.
pub(super) const AXES_MAX: usize = 8;

/// Storage classes: the type of their elements, its size in bytes and how its numbers are read.
const STORAGES: &[(&str, &str, usize, Option<ElementType>)] = &[
    ("DoubleStorage", "float64", 8, Some(ElementType::F64)),
    ("FloatStorage", "float32", 4, Some(ElementType::F32)),
    ("HalfStorage", "float16", 2, Some(ElementType::F16)),
    ("BFloat16Storage", "bfloat16", 2, Some(ElementType::Bf16)),
    ("LongStorage", "int64", 8, Some(ElementType::I64)),
    ("IntStorage", "int32", 4, Some(ElementType::I32)),
    ("ShortStorage", "int16", 2, Some(ElementType::I16)),
    ("CharStorage", "int8", 1, Some(ElementType::I8)),
    ("ByteStorage", "uint8", 1, Some(ElementType::U8)),
    ("BoolStorage", "bool", 1, Some(ElementType::Bool)),
    ("ComplexDoubleStorage", "complex128", 16, None),
    ("ComplexFloatStorage", "complex64", 8, None),
    ("QInt8Storage", "qint8", 1, None),
    ("QInt32Storage", "qint32", 4, None),
    ("QUInt8Storage", "quint8", 1, None),
    ("QUInt4x2Storage", "quint4x2", 1, None),
    ("QUInt2x4Storage", "quint2x4", 1, None),
];

/// Types whose arrays are in untyped storages, and their sizes in bytes.
const UNTYPED: &[(&str, usize)] = &[
    ("float8_e5m2", 1),
    ("float8_e4m3fn", 1),
    ("float8_e5m2fnuz", 1),
    ("float8_e4m3fnuz", 1),
    ("float8_e8m0fnu", 1),
    ("float4_e2m1fn_x2", 1),
    ("bits8", 1),
    ("bits16", 2),
    ("bits1x8", 1),
    ("bits2x4", 1),
    ("bits4x2", 1),
    ("complex32", 4),
    ("uint16", 2),
    ("uint32", 4),
    ("uint64", 8),
    ("uint1", 1),
    ("uint2", 1),
    ("uint3", 1),
    ("uint4", 1),
    ("uint5", 1),
    ("uint6", 1),
    ("uint7", 1),
    ("int1", 1),
    ("int2", 1),
    ("int3", 1),
    ("int4", 1),
    ("int5", 1),
    ("int6", 1),
    ("int7", 1),
];

/// The element type of an array. Everything becomes f32 when it is read: f16, bf16, u8, i8, i16 and bool
/// exactly, f64 rounded to the nearest, i32 and i64 exactly up to 2^24 in magnitude and rounded beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

/// A type by torch's name (`float32`): one whose numbers are read, or one whose arrays are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataType {
    pub name: &'static str,
    /// Bytes per element.
    size: usize,
    pub element: Option<ElementType>,
}

/// An array named by a checkpoint's pickle; its bytes are elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    pub key: String,
    pub data_type: DataType,
    pub elements: u64,
}

/// A tensor's view into a storage; every index of its shape is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    storage: Storage,
    element: ElementType,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
    elements: usize,
}

impl DataType {
    /// The type of torch's storage class `<class>`, for example `FloatStorage`. An untyped storage
    /// counts bytes.
    pub fn of_storage_class(class: &str) -> Option<Self> {
        if class == "UntypedStorage" {
            return Self::named("uint8");
        }
        let entry = STORAGES.iter().find(|(known, ..)| *known == class);
        entry.map(|&(_, name, size, element)| Self { name, size, element })
    }

    /// The type `<name>` in torch's module `torch`.
    pub fn named(name: &str) -> Option<Self> {
        let typed = STORAGES.iter().find(|(_, known, ..)| *known == name);
        let typed = typed.map(|&(_, name, size, element)| Self { name, size, element });
        let untyped = || UNTYPED.iter().find(|(known, _)| *known == name);
        typed.or_else(|| untyped().map(|&(name, size)| Self { name, size, element: None }))
    }
}

impl ElementType {
    /// Reads `length` bytes as f32, which f32 becomes without a copy.
    ///
    /// # Errors
    /// If the reader fails, or ends early.
    pub fn read(self, reader: &mut impl Read, length: usize) -> io::Result<Vec<f32>> {
        if self == Self::F32 {
            let mut values = vec![0.0; length / size_of::<f32>()];
            reader.read_exact(file_bytes_mut(&mut values))?;
            return Ok(values);
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes)?;
        Ok(self.decode(&bytes))
    }

    /// All elements of little-endian `bytes` as f32.
    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F64 => each(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::I64 => each(bytes, |bytes| i64::from_le_bytes(bytes) as f32),
            Self::I32 => each(bytes, |bytes| i32::from_le_bytes(bytes) as f32),
            Self::I16 => each(bytes, |bytes| f32::from(i16::from_le_bytes(bytes))),
            Self::I8 => each(bytes, |bytes| f32::from(i8::from_le_bytes(bytes))),
            Self::U8 => each(bytes, |[byte]: [u8; 1]| f32::from(byte)),
            Self::Bool => each(bytes, |[byte]: [u8; 1]| f32::from(u8::from(byte != 0))),
        }
    }
}

impl Storage {
    /// Length in bytes, if it is representable on this machine.
    pub fn byte_length(&self) -> Option<usize> {
        usize::try_from(self.elements).ok()?.checked_mul(self.data_type.size)
    }
}

impl StoredTensor {
    /// A view of `storage`; `None` if it would exceed the storage, axes and strides differ in number, or the
    /// storage holds a type that is not read.
    pub fn new(storage: Storage, offset: usize, shape: Vec<usize>, strides: Vec<usize>) -> Option<Self> {
        let element = storage.data_type.element?;
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
        Some(Self { storage, element, offset, shape, strides, elements })
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    pub fn element(&self) -> ElementType {
        self.element
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

    /// [`Self::gather`] for the last view of `array`, which it becomes where it is all of it.
    pub fn take(&self, array: Vec<f32>) -> HostTensor {
        if self.offset == 0 && self.elements == array.len() && self.is_contiguous() {
            return HostTensor { shape: self.shape.clone(), values: array };
        }
        self.gather(&array)
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
        let data_type = DataType::named("float32").expect("a known type");
        Storage { key: "0".to_owned(), data_type, elements }
    }

    #[test]
    fn transposed_repeated_and_shifted_views_are_copied_row_by_row() {
        let array: Vec<f32> = (0_u8..12).map(f32::from).collect();
        let check = |offset, shape: &[usize], strides: &[usize], expected: &[f32]| {
            let view =
                StoredTensor::new(storage(12), offset, shape.to_vec(), strides.to_vec()).expect("inside");
            let expected = HostTensor { shape: shape.to_vec(), values: expected.to_vec() };
            assert_eq!([view.gather(&array), view.take(array.clone())], [expected.clone(), expected]);
        };
        check(0, &[2, 3], &[3, 1], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        check(1, &[3, 2], &[1, 3], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        check(2, &[2, 2], &[0, 5], &[2.0, 7.0, 2.0, 7.0]);
        check(4, &[2, 1, 2], &[6, 99, 1], &[4.0, 5.0, 10.0, 11.0]);
        check(11, &[], &[], &[11.0]);
        check(0, &[3, 4], &[4, 1], &array);
        check(0, &[4, 3], &[1, 4], &[0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0]);
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
        let check = |class, name, bytes: &[u8], expected: &[f32]| {
            let found = DataType::of_storage_class(class).expect("a known class");
            assert_eq!((DataType::named(name), found.name), (Some(found), name));
            assert_eq!(bytes.len(), found.size * expected.len());
            let element = found.element.expect("read");
            assert_eq!(element.read(&mut { bytes }, bytes.len()).expect("all there"), expected, "{class}");
            assert!(element.read(&mut &bytes[1..], bytes.len()).is_err(), "{class}: a byte less");
        };
        check("FloatStorage", "float32", &1.5_f32.to_le_bytes(), &[1.5]);
        check("DoubleStorage", "float64", &0.1_f64.to_le_bytes(), &[0.1]);
        check("HalfStorage", "float16", &[0x00, 0x3C, 0x01, 0x00], &[1.0, f32::exp2(-24.0)]);
        check("BFloat16Storage", "bfloat16", &[0x80, 0x3F], &[1.0]);
        check("LongStorage", "int64", &(-7_i64).to_le_bytes(), &[-7.0]);
        check("IntStorage", "int32", &(1_i32 << 24).to_le_bytes(), &[16_777_216.0]);
        check("ShortStorage", "int16", &(-300_i16).to_le_bytes(), &[-300.0]);
        check("CharStorage", "int8", &[0xFF], &[-1.0]);
        check("ByteStorage", "uint8", &[255], &[255.0]);
        check("BoolStorage", "bool", &[0, 1], &[0.0, 1.0]);
    }

    #[test]
    fn an_array_of_another_type_has_a_length_and_no_numbers() {
        let data_type = DataType::of_storage_class("ComplexFloatStorage").expect("a known class");
        let storage = Storage { key: "0".to_owned(), data_type, elements: 6 };
        assert_eq!(storage.byte_length(), Some(48));
        assert_eq!(StoredTensor::new(storage, 0, vec![6], vec![1]), None);
        assert_eq!(DataType::named("float8_e4m3fn").map(|found| found.element), Some(None));
        assert_eq!(DataType::of_storage_class("UntypedStorage"), DataType::named("uint8"));
        assert_eq!((DataType::of_storage_class("Module"), DataType::named("load")), (None, None));
    }
}
