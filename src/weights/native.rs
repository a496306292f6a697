//! Our own model format: a folder with `model.safetensors` (f32) and `model.toml` (a description of
//! the tensors).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, View};
use serde::{Deserialize, Serialize};
use zip::result::ZipError;

use super::coded::{self, Layers, Quantization};
use super::family::{Architecture, Family, FeaturePoint};
use super::foreign::{ForeignError, read_header};
use super::storage::ElementType;
use super::tensors::{HostTensor, NamedTensors, file_bytes, printable};
use crate::durable::write_folder;

pub const DESCRIPTION: &str = "model.toml";
pub const TENSORS: &str = "model.safetensors";
/// Incremented when an older program could misread a folder.
const FORMAT: u32 = 1;
/// Of the description of an ensemble, which has the models of its members in folders of their own.
pub(super) const FORMAT_OF_ENSEMBLES: u32 = 2;
pub(super) const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;
pub(super) const TENSOR_BYTES_MAX: u64 = 16 << 30;

/// A folder's description of its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// 64 hexadecimal digits; verified against the tensors when they are read.
    pub digest: String,
    pub feature_point: FeaturePoint,
    /// Name of the imported file, for display.
    pub source: String,
    pub architecture: Architecture,
    /// Of a model in int8.
    pub quantization: Option<Quantization>,
}

/// A model folder as it was read; whether tensors, architecture and digest match is not verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    pub description: Description,
    pub tensors: NamedTensors,
    /// Of a model in int8.
    pub layers: Layers,
}

/// `model.toml`; its family parses the architecture.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<A> {
    format: u32,
    digest: String,
    feature_point: FeaturePoint,
    source: String,
    #[serde(default, skip_serializing_if = "Family::is_default")]
    family: Family,
    architecture: A,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
}

impl Description {
    /// The form that is written to disk.
    pub fn to_toml(&self) -> String {
        let Self { digest, feature_point, source, architecture, quantization } = self;
        let written = Written {
            format: FORMAT,
            digest: digest.clone(),
            feature_point: *feature_point,
            source: source.clone(),
            family: architecture.family(),
            architecture,
            quantization: quantization.clone(),
        };
        toml::to_string(&written).expect("a description is a table")
    }

    fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        let Written { digest, feature_point, source, family, quantization, .. } =
            toml::from_str::<Written<toml::Table>>(text)?;
        let architecture = family.architecture_in(text)?;
        Ok(Self { digest, feature_point, source, architecture, quantization })
    }

    /// The fewest bytes that the tensors take.
    pub fn tensor_bytes_min(&self) -> u64 {
        let numbers = self.architecture.parameters();
        if self.quantization.is_some() { numbers } else { numbers.saturating_mul(size_of::<f32>() as u64) }
    }
}

/// Why a folder is not a model, or could not be written as one.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error("{0} exists already")]
    Exists(PathBuf),
    #[error("{path} is not a model description: {cause}")]
    Description { path: PathBuf, cause: String },
    #[error("{path} has format {found}; this program reads formats {FORMAT} and {FORMAT_OF_ENSEMBLES}")]
    Format { path: PathBuf, found: u32 },
    #[error("{0} is of an ensemble, and one model is needed here")]
    Ensemble(PathBuf),
    #[error("{path} is not a safetensors file: {cause}")]
    Tensors { path: PathBuf, cause: String },
    #[error("{path} is larger than {max} bytes")]
    TooLarge { path: PathBuf, max: u64 },
    #[error("{path} is not a complete zip archive: {cause}")]
    Packed { path: PathBuf, cause: ZipError },
}

/// Writes a model folder that is complete or absent, even after a power failure; `tensors` is a safetensors file.
///
/// # Errors
/// If `folder` already exists or cannot be written.
pub fn write(folder: &Path, description: &Description, tensors: &[u8]) -> Result<(), NativeError> {
    if folder.exists() {
        return Err(NativeError::Exists(folder.to_owned()));
    }
    let text = description.to_toml();
    let files: [(&str, &[u8]); 2] = [(TENSORS, tensors), (DESCRIPTION, text.as_bytes())];
    write_folder(folder, &files).map_err(|cause| NativeError::Io { path: folder.to_owned(), cause })
}

/// `tensors` as a safetensors file.
pub fn tensor_bytes(tensors: &NamedTensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, tensor)| (name, Values(tensor)));
    safetensors::serialize(views, None).expect("every tensor holds as many values as its shape")
}

/// Reads a file of a model's folder, of at most so many bytes.
pub(super) type ReadFile<'r> = &'r dyn Fn(&str, u64) -> Result<Vec<u8>, NativeError>;

/// Reads a model folder; the caller verifies the tensors against architecture and digest.
///
/// # Errors
/// If a file is missing, malformed, too large or of another format.
pub fn read(folder: &Path) -> Result<Contents, NativeError> {
    read_with(folder, &|name, bytes_max| read_bounded(&folder.join(name), bytes_max))
}

/// [`read`] for a folder whose files are read by `read`.
///
/// # Errors
/// See [`read`].
pub(super) fn read_with(folder: &Path, read: ReadFile<'_>) -> Result<Contents, NativeError> {
    let text = read(DESCRIPTION, DESCRIPTION_BYTES_MAX)?;
    let description = parse_description(&folder.join(DESCRIPTION), &text)?;
    parse(&folder.join(TENSORS), description, &read(TENSORS, TENSOR_BYTES_MAX)?)
}

/// The described model with the tensors in `bytes`, which were read from `path`.
///
/// # Errors
/// See [`parse_tensors`].
pub(super) fn parse(path: &Path, description: Description, bytes: &[u8]) -> Result<Contents, NativeError> {
    let (tensors, layers) = match &description.quantization {
        Some(_) => {
            coded::parse(bytes).map_err(|cause| NativeError::Tensors { path: path.to_owned(), cause })?
        }
        None => (parse_tensors(path, bytes)?, Layers::new()),
    };
    Ok(Contents { description, tensors, layers })
}

/// Reads the description of a model folder without the tensors.
///
/// # Errors
/// If the description is missing, malformed, too large or of another format.
pub fn read_description(folder: &Path) -> Result<Description, NativeError> {
    let path = folder.join(DESCRIPTION);
    parse_description(&path, &read_bounded(&path, DESCRIPTION_BYTES_MAX)?)
}

/// The description in `bytes`, which were read from `path`.
pub(super) fn parse_description(path: &Path, bytes: &[u8]) -> Result<Description, NativeError> {
    parse_toml(path, &String::from_utf8_lossy(bytes), FORMAT, Description::from_toml)
}

/// What `parse` reads in a description of a format.
pub(super) fn parse_toml<T>(
    path: &Path,
    text: &str,
    format: u32,
    parse: impl FnOnce(&str) -> Result<T, toml::de::Error>,
) -> Result<T, NativeError> {
    match format_of(path, text)? {
        found if found == format => parse(text).map_err(|cause| malformed(path, &cause)),
        FORMAT_OF_ENSEMBLES => Err(NativeError::Ensemble(path.to_owned())),
        found => Err(NativeError::Format { path: path.to_owned(), found }),
    }
}

/// The format of a description.
pub(super) fn format_of(path: &Path, text: &str) -> Result<u32, NativeError> {
    Ok(toml::from_str::<Format>(text).map_err(|cause| malformed(path, &cause))?.format)
}

fn malformed(path: &Path, cause: &toml::de::Error) -> NativeError {
    let cause = cause.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    NativeError::Description { path: path.to_owned(), cause }
}

/// The part of a description that is common to all formats.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Reads the f32 tensors of a safetensors file.
///
/// # Errors
/// If the file is missing, malformed, too large or holds numbers of another type.
pub fn read_tensors(path: &Path) -> Result<NamedTensors, NativeError> {
    let file = open_bounded(path, TENSOR_BYTES_MAX)?;
    tensors_from(path, file)
}

/// The bytes of a safetensors file.
///
/// # Errors
/// If the file is missing or too large.
pub fn read_tensor_bytes(path: &Path) -> Result<Vec<u8>, NativeError> {
    read_bounded(path, TENSOR_BYTES_MAX)
}

/// The tensors in `bytes`, which were read from `path`.
///
/// # Errors
/// If the bytes are malformed or hold numbers of another type.
pub fn parse_tensors(path: &Path, bytes: &[u8]) -> Result<NamedTensors, NativeError> {
    tensors_from(path, Cursor::new(bytes))
}

/// Every tensor is read to where it stays.
fn tensors_from(path: &Path, mut reader: impl Read + Seek) -> Result<NamedTensors, NativeError> {
    let malformed = |cause: String| NativeError::Tensors { path: path.to_owned(), cause };
    let failed = |cause: ForeignError| match cause {
        ForeignError::Io(cause) if cause.kind() != io::ErrorKind::UnexpectedEof => {
            NativeError::Io { path: path.to_owned(), cause }
        }
        other => malformed(other.to_string()),
    };
    let header = read_header(&mut reader, TENSOR_BYTES_MAX).map_err(failed)?;
    let mut tensors = BTreeMap::new();
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        if info.dtype != Dtype::F32 {
            return Err(malformed(format!("tensor {} holds {:?}, not F32", printable(&name), info.dtype)));
        }
        let length = info.data_offsets.1 - info.data_offsets.0;
        let values = ElementType::F32.read(&mut reader, length).map_err(|cause| failed(cause.into()))?;
        tensors.insert(name, HostTensor { shape: info.shape.clone(), values });
    }
    Ok(tensors)
}

pub(super) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, NativeError> {
    let failed = |cause| NativeError::Io { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    open_bounded(path, max)?.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn open_bounded(path: &Path, max: u64) -> Result<File, NativeError> {
    let failed = |cause| NativeError::Io { path: path.to_owned(), cause };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > max {
        return Err(NativeError::TooLarge { path: path.to_owned(), max });
    }
    Ok(file)
}

/// A tensor in the form that safetensors requires.
struct Values<'a>(&'a HostTensor);

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(file_bytes(&self.0.values))
    }

    fn data_len(&self) -> usize {
        self.0.values.len() * size_of::<f32>()
    }
}
