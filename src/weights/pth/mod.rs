//! Torch checkpoint files, the zip archives of today and the legacy format, read storage by storage.
//!
//! At no time is more in memory than the tensors asked for and one storage.

mod archive;
mod legacy;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use zip::result::ZipError;

use super::pickle::{Pickle, PickleError, Value, ValueId};
use super::storage::{Storage, StoredTensor};
use super::tensors::NamedTensors;

/// A ViT-L with the state of its optimizer has 3.6 GB.
const FILE_BYTES_MAX: u64 = 4 << 30;
const TENSORS_MAX: usize = 16_384;

const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
/// The instruction that opens every binary pickle.
const PICKLE_MAGIC: u8 = 0x80;

/// Why a file is no readable checkpoint. Nothing in it was executed.
#[derive(Debug, thiserror::Error)]
pub enum PthError {
    #[error("the file is neither a torch archive nor a legacy torch file")]
    NotTorch,
    #[error(transparent)]
    Pickle(PickleError),
    #[error("the file ends early")]
    Truncated,
    #[error("the archive is damaged or truncated: {0}")]
    Archive(#[from] ZipError),
    #[error("entry {name} of the archive {reason}")]
    Entry { name: String, reason: &'static str },
    #[error("the legacy file is malformed: {0}")]
    Legacy(&'static str),
    #[error("the numbers are stored with the highest byte first; save the checkpoint with the lowest first")]
    ByteOrder,
    #[error("storage {key} {reason}")]
    Storage { key: String, reason: &'static str },
    #[error("the file holds no dictionary of tensors")]
    NoTensors,
    #[error("entry {0} of the state dict is no tensor")]
    NotATensor(String),
    #[error("the checkpoint has more than {max} {what}")]
    TooLarge { what: &'static str, max: u64 },
    #[error(transparent)]
    Io(io::Error),
}

impl From<PickleError> for PthError {
    fn from(error: PickleError) -> Self {
        match error {
            PickleError::Truncated => Self::Truncated,
            PickleError::Io(error) => error.into(),
            other => Self::Pickle(other),
        }
    }
}

impl From<io::Error> for PthError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

/// Reads the state dict of a `.pth`, `.pt` or `.bin` file as f32 (see [`super::storage::ElementType`]).
///
/// The format goes by content. Each of `wrappers` is opened in turn where the dictionary has such a key with
/// a dictionary under it: `["state_dict"]` finds the tensors in `{"state_dict": {...}, "epoch": 60}`, and
/// other entries beside it are not read.
///
/// # Errors
/// See [`PthError`].
pub fn read(path: &Path, wrappers: &[&str]) -> Result<NamedTensors, PthError> {
    read_from(BufReader::new(File::open(path)?), wrappers)
}

/// [`read`] for a file that is open, or in memory.
///
/// # Errors
/// See [`PthError`].
pub fn read_from(mut reader: impl Read + Seek, wrappers: &[&str]) -> Result<NamedTensors, PthError> {
    let file_bytes = reader.seek(SeekFrom::End(0))?;
    if file_bytes > FILE_BYTES_MAX {
        return Err(PthError::TooLarge { what: "bytes", max: FILE_BYTES_MAX });
    }
    reader.rewind()?;
    let mut magic = Vec::new();
    reader.by_ref().take(ZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
    reader.rewind()?;
    match magic.as_slice() {
        ZIP_MAGIC => archive::read(reader, file_bytes, wrappers),
        [PICKLE_MAGIC, ..] => legacy::read(reader, file_bytes, wrappers),
        _ => Err(PthError::NotTorch),
    }
}

/// The tensors that a checkpoint's pickle asks for, by the storage that holds them.
struct Wanted {
    by_storage: BTreeMap<String, Vec<(String, StoredTensor)>>,
}

impl Wanted {
    fn of(pickle: &Pickle, wrappers: &[&str], file_bytes: u64) -> Result<Self, PthError> {
        let mut dict = pickle.root();
        for wrapper in wrappers {
            if let Some(inner) = pickle.entry(dict, wrapper).filter(|id| is_dict(pickle, *id)) {
                dict = inner;
            }
        }
        let Value::Dict(items) = pickle.value(dict) else { return Err(PthError::NoTensors) };
        let mut tensors = BTreeMap::new();
        for (key, value) in items {
            let Value::Text(name) = pickle.value(*key) else { return Err(PthError::NoTensors) };
            let Value::Tensor(tensor) = pickle.value(*value) else {
                return Err(PthError::NotATensor(name.clone()));
            };
            tensors.insert(name.clone(), tensor.as_ref().clone());
        }
        if tensors.is_empty() {
            return Err(PthError::NoTensors);
        }
        if tensors.len() > TENSORS_MAX {
            return Err(PthError::TooLarge { what: "tensors", max: TENSORS_MAX as u64 });
        }
        check_total(&tensors, file_bytes)?;
        let mut by_storage: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, tensor) in tensors {
            by_storage.entry(tensor.storage().key.clone()).or_default().push((name, tensor));
        }
        Ok(Self { by_storage })
    }

    /// Copies the tensors of one storage out of its bytes.
    fn gather(&mut self, storage: &Storage, bytes: &[u8], tensors: &mut NamedTensors) {
        let array = storage.element.decode(bytes);
        for (name, tensor) in self.by_storage.remove(&storage.key).unwrap_or_default() {
            tensors.insert(name, tensor.gather(&array));
        }
    }
}

/// Views may repeat elements, so that a small file could ask for any amount of memory; none that was ever
/// saved has more elements than bytes.
fn check_total(tensors: &BTreeMap<String, StoredTensor>, file_bytes: u64) -> Result<(), PthError> {
    let total = tensors.values().try_fold(0_u64, |sum, tensor| sum.checked_add(tensor.elements() as u64));
    match total {
        Some(total) if total <= file_bytes => Ok(()),
        _ => Err(PthError::TooLarge { what: "values, as many as the file has bytes", max: file_bytes }),
    }
}

fn is_dict(pickle: &Pickle, id: ValueId) -> bool {
    matches!(pickle.value(id), Value::Dict(_))
}

fn byte_length(storage: &Storage, file_bytes: u64) -> Result<usize, PthError> {
    storage
        .byte_length()
        .filter(|length| *length as u64 <= file_bytes)
        .ok_or_else(|| PthError::Storage { key: storage.key.clone(), reason: "is longer than the file" })
}
