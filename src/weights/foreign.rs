//! Safetensors files of other programs: any number type, any metadata, read tensor by tensor.

use std::io::{self, Read, Seek, SeekFrom};

use safetensors::tensor::{Dtype, Metadata};

use super::pth::TENSORS_MAX;
use super::storage::{AXES_MAX, ElementType};
use super::tensors::{HostTensor, NamedTensors, printable};

/// Same limit as for torch checkpoints.
const FILE_BYTES_MAX: u64 = 4 << 30;
/// Enough for the names and offsets of the maximum number of tensors, and metadata.
const HEADER_BYTES_MAX: u64 = 8 << 20;
const LENGTH_BYTES: u64 = 8;

/// The tensors, and the types of those that were not read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    pub tensors: NamedTensors,
    pub skipped: Vec<(String, String)>,
}

/// Why a file is not a readable safetensors file.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    #[error("the safetensors header is malformed: {0}")]
    Header(String),
    #[error("the file has {found} bytes where its safetensors header says {announced}")]
    Length { found: u64, announced: u64 },
    #[error("the file has more than {max} {what}")]
    TooLarge { what: &'static str, max: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Whether `first`, the first bytes of a file, are those of a safetensors file: the length of its header, which is JSON.
pub fn is_safetensors(first: &[u8], file_bytes: u64) -> bool {
    let Some((length, rest)) = first.split_first_chunk() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= file_bytes.saturating_sub(LENGTH_BYTES)
}

/// Reads the tensors of a file that [`is_safetensors`] as f32.
///
/// # Errors
/// See [`ForeignError`].
pub fn read_from(mut reader: impl Read + Seek) -> Result<Contents, ForeignError> {
    let header = read_header(&mut reader, FILE_BYTES_MAX)?;
    let mut contents = Contents::default();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let length = info.data_offsets.1 - info.data_offsets.0;
        let element = element(info.dtype).filter(|_| info.shape.len() <= AXES_MAX);
        match element {
            Some(element) => {
                let values = element.read(&mut reader, length)?;
                contents.tensors.insert(name, HostTensor { shape: info.shape.clone(), values });
            }
            None => {
                io::copy(&mut reader.by_ref().take(length as u64), &mut io::sink())?;
                let kind = match info.shape.len() {
                    axes if axes > AXES_MAX => format!("a tensor with {axes} axes"),
                    _ => format!("a {:?} tensor", info.dtype),
                };
                contents.skipped.push((name, kind));
            }
        }
    }
    Ok(contents)
}

/// The header of a file of at most `bytes_max` bytes, all of which it accounts for. The tensors follow, in the order of
/// their offsets.
///
/// # Errors
/// See [`ForeignError`].
pub(super) fn read_header(reader: &mut (impl Read + Seek), bytes_max: u64) -> Result<Metadata, ForeignError> {
    let file_bytes = reader.seek(SeekFrom::End(0))?;
    if file_bytes > bytes_max {
        return Err(ForeignError::TooLarge { what: "bytes", max: bytes_max });
    }
    reader.rewind()?;
    let mut length = [0; LENGTH_BYTES as usize];
    reader.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        return Err(ForeignError::TooLarge { what: "bytes in its header", max: HEADER_BYTES_MAX });
    }
    let mut header = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut header)?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|cause| ForeignError::Header(printable(&cause.to_string())))?;
    if header.offset_keys().len() > TENSORS_MAX {
        return Err(ForeignError::TooLarge { what: "tensors", max: TENSORS_MAX as u64 });
    }
    let announced = LENGTH_BYTES.saturating_add(length).saturating_add(header.data_len() as u64);
    if announced != file_bytes {
        return Err(ForeignError::Length { found: file_bytes, announced });
    }
    Ok(header)
}

fn element(data_type: Dtype) -> Option<ElementType> {
    Some(match data_type {
        Dtype::F64 => ElementType::F64,
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::Bf16,
        Dtype::I64 => ElementType::I64,
        Dtype::I32 => ElementType::I32,
        Dtype::I16 => ElementType::I16,
        Dtype::I8 => ElementType::I8,
        Dtype::U8 => ElementType::U8,
        Dtype::BOOL => ElementType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn check_refused(bytes: &[u8], message: &str) {
        let error = read_from(Cursor::new(bytes)).expect_err("not whole").to_string();
        assert!(error.contains(message) && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn every_type_of_number_becomes_f32_and_others_are_named() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "half":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
            "brain":{"dtype":"BF16","shape":[1,1],"data_offsets":[4,6]},
            "double":{"dtype":"F64","shape":[],"data_offsets":[6,14]},
            "long":{"dtype":"I64","shape":[],"data_offsets":[14,22]},
            "tiny":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[22,24]},
            "flag":{"dtype":"BOOL","shape":[1],"data_offsets":[24,25]}} "#;
        let mut data = vec![0x00, 0x3C, 0x00, 0xC0, 0x80, 0x3F];
        data.extend(2.5_f64.to_le_bytes());
        data.extend((-3_i64).to_le_bytes());
        data.extend([1, 2, 1]);
        let bytes = file(header, &data);
        assert!(is_safetensors(&bytes[..9], bytes.len() as u64));
        let Contents { tensors, skipped } = read_from(Cursor::new(&bytes)).expect("whole");
        let found = |name: &str| (tensors[name].shape.as_slice(), tensors[name].values.as_slice());
        assert_eq!(found("half"), (&[2][..], &[1.0, -2.0][..]));
        assert_eq!(found("brain"), (&[1, 1][..], &[1.0][..]));
        assert_eq!(found("double"), (&[][..], &[2.5][..]));
        assert_eq!(found("long"), (&[][..], &[-3.0][..]));
        assert_eq!(found("flag"), (&[1][..], &[1.0][..]));
        assert_eq!(skipped, [("tiny".to_owned(), "a F8_E4M3 tensor".to_owned())]);
        assert_eq!(tensors.len(), 5);
        (9..bytes.len()).for_each(|length| assert!(read_from(Cursor::new(&bytes[..length])).is_err()));
    }

    #[test]
    fn a_file_that_says_what_it_does_not_hold_is_refused() {
        let header = |shape: &str, end: u64| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
        };
        check_refused(&file(&header("[2]", 8), &[0; 7]), "where its safetensors header says");
        check_refused(&file(&header("[2]", 8), &[0; 9]), "where its safetensors header says");
        check_refused(&file(&header("[3]", 8), &[0; 8]), "malformed");
        check_refused(&file(&header("[4611686018427387904,4]", 0), &[]), "malformed");
        check_refused(&file("{", &[]), "malformed");
        check_refused(&u64::MAX.to_le_bytes(), "bytes in its header");
        let far = u64::from(u32::MAX) * 4;
        check_refused(&file(&header("[4294967295]", far), &[]), "where its safetensors header says");
        for other in [&b"PK\x03\x04\0\0\0\0\0"[..], b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9", b"{", b""] {
            assert!(!is_safetensors(other, 1 << 40));
        }
    }
}
