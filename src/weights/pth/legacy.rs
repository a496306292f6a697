//! The format that torch wrote before version 1.6: five pickles, then the bytes of every storage.

use std::io::{self, Read};

use super::{PthError, StateDict, Wanted, Wish, byte_length};
use crate::weights::pickle::{Pickle, Value};

const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const PROTOCOL: i128 = 1001;

/// Reads the state dict of a legacy file.
pub(super) fn read(mut reader: impl Read, wish: &Wish) -> Result<StateDict, PthError> {
    check_header(&mut reader)?;
    let pickle = Pickle::read(&mut reader)?;
    let mut wanted = Wanted::of(&pickle, wish)?;
    for key in storage_keys(&mut reader)? {
        let storage =
            pickle.storages().get(&key).ok_or(PthError::Legacy("it lists a storage that no tensor has"))?;
        let length = byte_length(storage, wish.file_bytes)?;
        let mut elements = [0; 8];
        reader.read_exact(&mut elements)?;
        if u64::from_le_bytes(elements) != storage.elements {
            return Err(PthError::Storage { key, reason: "has another length than its tensors say" });
        }
        if let Some(element) = wanted.element(&key) {
            wanted.gather(storage, element.read(&mut reader, length)?);
        } else if io::copy(&mut reader.by_ref().take(length as u64), &mut io::sink())? < length as u64 {
            return Err(PthError::Truncated);
        }
    }
    match wanted.by_storage.pop_first() {
        None => Ok(wanted.found),
        Some((key, _)) => Err(PthError::Storage { key, reason: "is not in the file" }),
    }
}

/// Magic number, protocol and the byte order of the writing machine.
fn check_header(reader: &mut impl Read) -> Result<(), PthError> {
    let magic = Pickle::read(reader)?;
    if *magic.value(magic.root()) != Value::Int(MAGIC) {
        return Err(PthError::NotTorch);
    }
    let protocol = Pickle::read(reader)?;
    if *protocol.value(protocol.root()) != Value::Int(PROTOCOL) {
        return Err(PthError::Legacy("its protocol is unknown"));
    }
    let system = Pickle::read(reader)?;
    match system.entry(system.root(), "little_endian").map(|id| system.value(id)) {
        Some(Value::Bool(true)) => Ok(()),
        _ => Err(PthError::ByteOrder),
    }
}

/// Keys of all storages in the order of their bytes.
fn storage_keys(reader: &mut impl Read) -> Result<Vec<String>, PthError> {
    let pickle = Pickle::read(reader)?;
    let Value::List(items) = pickle.value(pickle.root()) else {
        return Err(PthError::Legacy("it has no list of storages"));
    };
    let key = |id: &_| match pickle.value(*id) {
        Value::Text(key) => Ok(key.clone()),
        _ => Err(PthError::Legacy("a storage has no name")),
    };
    items.iter().map(key).collect()
}
