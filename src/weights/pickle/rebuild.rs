//! The few names that a checkpoint's pickle may call, and what the calls build.

use std::io::Read;

use super::machine::Machine;
use super::{Global, PickleError, Value, ValueId};
use crate::weights::storage::{ElementType, Storage, StoredTensor};

const KEY_MAX: usize = 64;

impl<R: Read> Machine<'_, R> {
    pub(super) fn global(&mut self, opcode: u8) -> Result<(), PickleError> {
        let (module, name) = if opcode == b'c' {
            (self.input.line()?, self.input.line()?)
        } else {
            let name = self.pop()?;
            let module = self.pop()?;
            (self.text(module)?, self.text(name)?)
        };
        let global = allowed(&module, &name)
            .ok_or_else(|| PickleError::ForbiddenGlobal(printable(&format!("{module}.{name}"))))?;
        self.push(Value::Global(global))
    }

    /// A persistent id: `("storage", class, key, place, elements)`, in legacy files with a view at the end.
    pub(super) fn storage(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let (tag, class, key, elements) = match self.tuple(arguments)? {
            [tag, class, key, _, elements] => (*tag, *class, *key, *elements),
            [tag, class, key, _, elements, view] if *self.get(*view) == Value::None => {
                (*tag, *class, *key, *elements)
            }
            _ => return Err(self.malformed("a storage is not named by type, key, place and length")),
        };
        let Value::Global(Global::Storage(element)) = *self.get(class) else {
            return Err(self.malformed("a storage has no known type"));
        };
        if self.text(tag)? != "storage" {
            return Err(self.malformed("something outside the pickle is no storage"));
        }
        let key = self.text(key)?;
        if key.len() > KEY_MAX {
            // Every tensor repeats its storage's key, so that long ones would multiply.
            return Err(self.malformed("the key of a storage is longer than 64 bytes"));
        }
        let storage = Storage { key: key.clone(), element, elements: self.natural(elements)? as u64 };
        if self.storages.get(&key).is_some_and(|known| *known != storage) {
            return Err(self.malformed("one storage is named with two types or lengths"));
        }
        self.storages.insert(key, storage.clone());
        self.push(Value::Storage(Box::new(storage)))
    }

    pub(super) fn reduce(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let Value::Global(function) = *self.get(function) else {
            return Err(self.malformed("something that is no function is called"));
        };
        let arguments = self.tuple(arguments)?.to_vec();
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::Size, [lengths]) => {
                self.tuple(*lengths)?;
                self.push_id(*lengths)
            }
            (Global::RebuildTensor, [storage, offset, shape, strides])
            | (
                Global::RebuildTensorV2,
                [storage, offset, shape, strides, _, _] | [storage, offset, shape, strides, _, _, _],
            ) => {
                let tensor = self.tensor([*storage, *offset, *shape, *strides])?;
                self.push(Value::Tensor(Box::new(tensor)))
            }
            (Global::RebuildParameter, [tensor, _, _])
            | (Global::RebuildParameterWithState, [tensor, _, _, _]) => match self.get(*tensor) {
                Value::Tensor(_) => self.push_id(*tensor),
                _ => Err(self.malformed("a parameter has no tensor")),
            },
            _ => Err(self.malformed("a call has the wrong arguments")),
        }
    }

    /// Attributes of a state dict (its version numbers) mean nothing here.
    pub(super) fn build(&mut self) -> Result<(), PickleError> {
        let state = self.pop()?;
        let target = self.top()?;
        match (self.get(target), self.get(state)) {
            (Value::Dict(_), Value::Dict(_)) => Ok(()),
            _ => Err(self.malformed("attributes are set on something that is no dictionary")),
        }
    }

    fn tensor(&self, [storage, offset, shape, strides]: [ValueId; 4]) -> Result<StoredTensor, PickleError> {
        let Value::Storage(storage) = self.get(storage) else {
            return Err(self.malformed("a tensor has no storage"));
        };
        let lengths =
            |id| self.tuple(id)?.iter().map(|length| self.natural(*length)).collect::<Result<_, _>>();
        StoredTensor::new(storage.as_ref().clone(), self.natural(offset)?, lengths(shape)?, lengths(strides)?)
            .ok_or_else(|| self.malformed("a tensor reaches past its storage"))
    }
}

fn allowed(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch", "Size") => Global::Size,
        ("torch._utils", "_rebuild_tensor") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensorV2,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch._utils", "_rebuild_parameter_with_state") => Global::RebuildParameterWithState,
        ("torch", class) => Global::Storage(ElementType::of_storage_class(class)?),
        _ => return None,
    })
}

/// The first 120 characters without anything that could act on a terminal.
fn printable(name: &str) -> String {
    name.chars().take(120).flat_map(char::escape_default).collect()
}
