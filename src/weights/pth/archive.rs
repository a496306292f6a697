//! The zip archive that torch has written since version 1.6: a pickle, and one uncompressed entry
//! per storage.

use std::io::{self, Read, Seek};

use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::{PthError, StateDict, Wanted, Wish, byte_length};
use crate::weights::pickle::Pickle;

/// More than any pickle that [`Pickle::read`] accepts.
const PICKLE_BYTES_MAX: u64 = 32 << 20;
const BYTE_ORDER_BYTES_MAX: u64 = 16;

/// Reads the state dict of an archive. Lengths and checksums are verified.
pub(super) fn read(reader: impl Read + Seek, wish: &Wish) -> Result<StateDict, PthError> {
    let file_bytes = wish.file_bytes;
    let mut archive = ZipArchive::new(reader)?;
    let folder = folder(&archive)?;
    if archive.index_for_name(&format!("{folder}/constants.pkl")).is_some() {
        return Err(PthError::TorchScript);
    }
    let byte_order = format!("{folder}/byteorder");
    if archive.index_for_name(&byte_order).is_some()
        && entry(&mut archive, &byte_order, BYTE_ORDER_BYTES_MAX)? != b"little"
    {
        return Err(PthError::ByteOrder);
    }
    let pickle = entry(&mut archive, &format!("{folder}/data.pkl"), PICKLE_BYTES_MAX.min(file_bytes))?;
    let pickle = Pickle::read(&mut pickle.as_slice())?;
    let mut wanted = Wanted::of(&pickle, wish)?;
    let mut left = file_bytes;
    for (key, storage) in pickle.storages() {
        let Some(element) = wanted.element(key) else { continue };
        // Entries may overlap, so a small file could otherwise be read any number of times.
        let length = byte_length(storage, left)?;
        left -= length as u64;
        let name = format!("{folder}/data/{key}");
        let array = read_entry(&mut archive, &name, length as u64, |entry, announced| {
            if announced != length {
                return Err(PthError::Storage {
                    key: key.clone(),
                    reason: "is shorter than its tensors need",
                });
            }
            Ok(element.read(entry, length)?)
        })?;
        wanted.gather(storage, array);
    }
    Ok(wanted.found)
}

/// The single top-level folder; torch names it after the file.
fn folder<R: Read + Seek>(archive: &ZipArchive<R>) -> Result<String, PthError> {
    if archive.has_duplicate_names() {
        return Err(PthError::Entry { name: "names".to_owned(), reason: "are not unique" });
    }
    let mut found = None;
    for name in archive.file_names() {
        let name = name?;
        let Some(folder) = name.strip_suffix("/data.pkl").filter(|folder| !folder.contains('/')) else {
            continue;
        };
        if found.replace(folder.to_owned()).is_some() {
            return Err(PthError::Entry { name: name.into_owned(), reason: "is there twice" });
        }
    }
    found.ok_or(PthError::NotTorch)
}

/// All bytes of an entry.
fn entry<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    name: &str,
    bytes_max: u64,
) -> Result<Vec<u8>, PthError> {
    read_entry(archive, name, bytes_max, |entry, length| {
        let mut bytes = vec![0; length];
        entry.read_exact(&mut bytes)?;
        Ok(bytes)
    })
}

/// Reads an entry with `read`, which gets its announced length and reads as much. The archive's reader verifies the
/// checksum at the end.
fn read_entry<R: Read + Seek, T>(
    archive: &mut ZipArchive<R>,
    name: &str,
    bytes_max: u64,
    read: impl FnOnce(&mut ZipFile<'_, R>, usize) -> Result<T, PthError>,
) -> Result<T, PthError> {
    let refused = |reason| PthError::Entry { name: name.to_owned(), reason };
    let mut entry = match archive.by_name(name) {
        Err(ZipError::FileNotFound) => return Err(refused("is missing")),
        found => found?,
    };
    if entry.compression() != CompressionMethod::Stored {
        return Err(refused("is compressed, which torch never does"));
    }
    if entry.size() > bytes_max {
        return Err(refused("is longer than it may be"));
    }
    let length = usize::try_from(entry.size()).unwrap_or(usize::MAX);
    let outcome = read(&mut entry, length).and_then(|read| {
        // The end is where the checksum is compared.
        io::copy(&mut entry, &mut io::sink())?;
        Ok(read)
    });
    match outcome {
        Err(PthError::Truncated) => Err(refused("is shorter than announced")),
        Err(PthError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            Err(refused("does not match its checksum"))
        }
        other => other,
    }
}
