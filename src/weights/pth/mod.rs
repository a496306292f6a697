//! Torch checkpoint files, in the current zip format and the legacy format, read storage by storage.
//!
//! Memory never holds more than the requested tensors and one storage.

mod archive;
mod legacy;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use zip::result::ZipError;

use super::pickle::{Pickle, PickleError, Value};
use super::storage::{ElementType, Storage, StoredTensor};
use super::tensors::{NamedTensors, printable};
use super::wrapper::{WeightsChoice, WeightsDict, locate};

/// A ViT-L with the state of its optimizer has 3.6 GB.
const FILE_BYTES_MAX: u64 = 4 << 30;
pub(super) const TENSORS_MAX: usize = 16_384;
/// Names are copied, so long ones would multiply.
const NAME_BYTES_MAX: usize = 1024;

/// Keys that an error message lists.
const LISTED_MAX: usize = 8;

const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
/// The first instruction of every binary pickle.
const PICKLE_MAGIC: u8 = 0x80;

/// Why a file is not a readable checkpoint. Nothing in it was executed.
#[derive(Debug, thiserror::Error)]
pub enum PthError {
    #[error("the file is neither a torch archive nor a legacy torch file")]
    NotTorch,
    #[error(transparent)]
    Pickle(PickleError),
    #[error(
        "the file is a TorchScript program, which is not run; save the state_dict() of the loaded module instead"
    )]
    TorchScript,
    #[error("the file ends early")]
    Truncated,
    #[error("the archive is damaged or truncated: {0}")]
    Archive(#[from] ZipError),
    #[error("entry {} of the archive {reason}", printable(.name))]
    Entry { name: String, reason: &'static str },
    #[error("the legacy file is malformed: {0}")]
    Legacy(&'static str),
    #[error("the numbers are stored with the highest byte first; save the checkpoint with the lowest first")]
    ByteOrder,
    #[error("storage {} {reason}", printable(.key))]
    Storage { key: String, reason: &'static str },
    #[error("the file holds no tensors, neither outermost nor under a known key; outermost it has {0}")]
    NoTensors(String),
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

/// The state dict of a file, and the entries next to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    pub tensors: NamedTensors,
    /// Keys of the dictionaries that contain it, from the outermost one.
    pub path: Vec<String>,
    /// Other keys of the outermost dictionary that contain weights.
    pub others: Vec<String>,
    /// Whether the selection was resolved by key, so that names need not resolve it.
    pub is_chosen: bool,
    /// Entries of the state dict that are not readable tensors, with their kinds.
    pub skipped: Vec<(String, String)>,
}

/// Reads the state dict of a `.pth`, `.pt` or `.bin` file as f32 (see [`super::storage::ElementType`]).
///
/// The format is determined by content. The state dict is the outermost dictionary, or is found under the
/// keys of `first` or under those that programs use (see [`super::wrapper`]); other entries next to it are
/// not read.
///
/// # Errors
/// See [`PthError`].
pub fn read(path: &Path, first: &[&str], choice: &WeightsChoice) -> Result<StateDict, PthError> {
    read_from(BufReader::new(File::open(path)?), first, choice)
}

/// [`read`] for a file that is already open, or in memory.
///
/// # Errors
/// See [`PthError`].
pub fn read_from(
    mut reader: impl Read + Seek,
    first: &[&str],
    choice: &WeightsChoice,
) -> Result<StateDict, PthError> {
    let file_bytes = reader.seek(SeekFrom::End(0))?;
    if file_bytes > FILE_BYTES_MAX {
        return Err(PthError::TooLarge { what: "bytes", max: FILE_BYTES_MAX });
    }
    reader.rewind()?;
    let mut magic = Vec::new();
    reader.by_ref().take(ZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
    reader.rewind()?;
    let wish = Wish { first, choice, file_bytes };
    match magic.as_slice() {
        ZIP_MAGIC => archive::read(reader, &wish),
        [PICKLE_MAGIC, ..] => legacy::read(reader, &wish),
        _ => Err(PthError::NotTorch),
    }
}

/// What to look for, and in which file.
struct Wish<'a> {
    first: &'a [&'a str],
    choice: &'a WeightsChoice,
    file_bytes: u64,
}

/// The tensors that a checkpoint's pickle refers to, grouped by storage.
struct Wanted {
    by_storage: BTreeMap<String, Vec<(String, StoredTensor)>>,
    /// The result without its tensors.
    found: StateDict,
}

impl Wanted {
    fn of(pickle: &Pickle, wish: &Wish) -> Result<Self, PthError> {
        let place = locate(pickle, wish.first, wish.choice);
        let WeightsDict { dict, path, others, is_chosen } =
            place.ok_or_else(|| PthError::NoTensors(outermost(pickle)))?;
        let mut found = StateDict { path, others, is_chosen, ..StateDict::default() };
        let mut tensors = BTreeMap::new();
        for (key, value) in pickle.items(dict) {
            let name = match pickle.value(*key) {
                Value::Text(name) if name.len() > NAME_BYTES_MAX => {
                    return Err(PthError::TooLarge { what: "bytes in one name", max: NAME_BYTES_MAX as u64 });
                }
                Value::Text(name) => name.clone(),
                other => format!("a key that is {}", other.kind()),
            };
            match pickle.value(*value) {
                Value::Tensor(tensor) if matches!(pickle.value(*key), Value::Text(_)) => {
                    tensors.insert(name, tensor.as_ref().clone());
                }
                other => found.skipped.push((name, other.kind())),
            }
            if tensors.len() + found.skipped.len() > TENSORS_MAX {
                return Err(PthError::TooLarge { what: "tensors", max: TENSORS_MAX as u64 });
            }
        }
        check_total(&tensors, wish.file_bytes)?;
        let mut by_storage: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, tensor) in tensors {
            by_storage.entry(tensor.storage().key.clone()).or_default().push((name, tensor));
        }
        Ok(Self { by_storage, found })
    }

    /// The type of a storage's numbers, if it has wanted tensors.
    fn element(&self, key: &str) -> Option<ElementType> {
        // One storage has one type.
        self.by_storage.get(key)?.first().map(|(_, tensor)| tensor.element())
    }

    /// Takes the tensors of one storage out of its numbers.
    fn gather(&mut self, storage: &Storage, array: Vec<f32>) {
        let mut tensors = self.by_storage.remove(&storage.key).unwrap_or_default();
        let last = tensors.pop();
        for (name, tensor) in tensors {
            self.found.tensors.insert(name, tensor.gather(&array));
        }
        if let Some((name, tensor)) = last {
            self.found.tensors.insert(name, tensor.take(array));
        }
    }
}

/// Views may repeat elements, so a small file could request any amount of memory. No tensor that was ever
/// saved has more elements than its storage has bytes.
fn check_total(tensors: &BTreeMap<String, StoredTensor>, file_bytes: u64) -> Result<(), PthError> {
    let total = tensors.values().try_fold(0_u64, |sum, tensor| sum.checked_add(tensor.elements() as u64));
    match total {
        Some(total) if total <= file_bytes => Ok(()),
        _ => Err(PthError::TooLarge { what: "values, as many as the file has bytes", max: file_bytes }),
    }
}

/// The outermost value of a file, for display.
fn outermost(pickle: &Pickle) -> String {
    let root = pickle.root();
    let names = pickle.items(root).iter().map(|(key, value)| match pickle.value(*key) {
        Value::Text(name) => {
            format!("{} ({})", printable(name), pickle.value(*value).kind())
        }
        other => other.kind(),
    });
    let listed: Vec<String> = names.take(LISTED_MAX).collect();
    if listed.is_empty() { pickle.value(root).kind() } else { listed.join(", ") }
}

fn byte_length(storage: &Storage, file_bytes: u64) -> Result<usize, PthError> {
    storage
        .byte_length()
        .filter(|length| *length as u64 <= file_bytes)
        .ok_or_else(|| PthError::Storage { key: storage.key.clone(), reason: "is longer than the file" })
}
