//! The names that a checkpoint's pickle may mention, and the values that their calls build. Nothing
//! is executed.

use std::io::Read;

use super::machine::Machine;
use super::{Global, PickleError, Unread, VALUES_MAX, Value, ValueId};
use crate::weights::storage::{DataType, Storage, StoredTensor};
use crate::weights::tensors::printable;

const KEY_MAX: usize = 64;

/// The result of a call on the stack.
enum Built {
    New(Value),
    /// One of its arguments.
    Known(ValueId),
}

impl<R: Read> Machine<'_, R> {
    pub(super) fn global(&mut self, opcode: u8) -> Result<(), PickleError> {
        let global = if opcode == b'c' {
            let (module, name) = (self.input.line()?, self.input.line()?);
            known(&module, &name)?
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            known(self.text(module)?, self.text(name)?)?
        };
        self.push(Value::Global(global))
    }

    /// A persistent id: `("storage", class, key, place, elements)`, in legacy files with a view at the end, which is
    /// `None` or `(key, offset, elements)`.
    pub(super) fn storage(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let (named, view) = match self.tuple(arguments)? {
            [tag, class, key, _, elements] => ([*tag, *class, *key, *elements], None),
            [tag, class, key, _, elements, view] => ([*tag, *class, *key, *elements], Some(*view)),
            _ => return Err(self.malformed("a storage is not named by type, key, place and length")),
        };
        let [tag, class, key, elements] = named;
        let Value::Global(Global::Storage(data_type)) = *self.get(class) else {
            return Err(self.malformed("a storage has no known type"));
        };
        if self.text(tag)? != "storage" {
            return Err(self.malformed("something outside the pickle is no storage"));
        }
        let first = match view.map(|view| self.get(view)) {
            None | Some(Value::None) => 0,
            Some(Value::Tuple(view)) if view.len() == 3 => self.natural(view[1])?,
            Some(_) => return Err(self.malformed("the view of a storage is not key, offset and length")),
        };
        let key = self.text(key)?;
        if key.len() > KEY_MAX {
            // Every tensor repeats its storage's key, so long keys would multiply.
            return Err(self.malformed("the key of a storage is longer than 64 bytes"));
        }
        let storage = Storage { key: key.to_owned(), data_type, elements: self.natural(elements)? as u64 };
        if self.storages.get(&storage.key).is_some_and(|known| *known != storage) {
            return Err(self.malformed("one storage is named with two types or lengths"));
        }
        self.storages.insert(storage.key.clone(), storage.clone());
        self.push(Value::Storage { storage: Box::new(storage), first })
    }

    /// A call of a function or a class.
    pub(super) fn reduce(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let Value::Global(function) = *self.get(function) else {
            return Err(self.malformed("something that is no function is called"));
        };
        let built = self.call(function, self.tuple(arguments)?)?;
        self.leave(built)
    }

    /// An object created by `__new__` of its class, before its attributes are set.
    pub(super) fn new_object(&mut self) -> Result<(), PickleError> {
        let arguments = self.pop()?;
        let class = self.pop()?;
        let Value::Global(class) = *self.get(class) else {
            return Err(self.malformed("an object is made of something that is no class"));
        };
        let built = match (class, self.tuple(arguments)?) {
            (Global::OrderedDict | Global::Counter, _) => Built::New(Value::Dict(Vec::new())),
            (Global::Tensor | Global::Parameter, []) => Built::New(Value::Unread(Unread::Tensor("unset"))),
            (Global::Size | Global::Parameter | Global::Made(_), arguments) => self.call(class, arguments)?,
            _ => return Err(self.malformed("an object is made of something that is no class")),
        };
        self.leave(built)
    }

    /// Attributes of a state dict (its version numbers) are ignored; a tensor may receive its
    /// storage this way.
    pub(super) fn build(&mut self) -> Result<(), PickleError> {
        let state = self.pop()?;
        let target = self.top()?;
        match self.get(target) {
            Value::Dict(_) if matches!(self.get(state), Value::Dict(_)) => Ok(()),
            Value::Tensor(_) | Value::Unread(Unread::Tensor(_)) => {
                let value = match self.tuple(state)? {
                    [storage, offset, shape, strides] => {
                        self.tensor([*storage, *offset, *shape, *strides])?
                    }
                    [tensor, _, _, _, _] => match self.get(*tensor) {
                        value @ (Value::Tensor(_) | Value::Unread(Unread::Tensor(_))) => value.clone(),
                        _ => return Err(self.malformed("a parameter has no tensor")),
                    },
                    // The `requires_grad` flag, and hooks.
                    [_, _, _] => return Ok(()),
                    _ => return Err(self.malformed("a tensor is set to something else")),
                };
                self.values[target.0 as usize] = value;
                Ok(())
            }
            Value::Unread(_) => Ok(()),
            _ => Err(self.malformed("attributes are set on something that has none")),
        }
    }

    fn leave(&mut self, built: Built) -> Result<(), PickleError> {
        match built {
            Built::Known(id) => self.push_id(id),
            Built::New(value) => {
                if let Value::Dict(items) = &value {
                    // The pairs are copied, possibly any number of times.
                    self.copied += items.len();
                    if self.copied > VALUES_MAX {
                        return Err(PickleError::TooLarge { what: "values", max: VALUES_MAX as u64 });
                    }
                }
                self.push(value)
            }
        }
    }

    /// What torch would build from these arguments.
    fn call(&self, function: Global, arguments: &[ValueId]) -> Result<Built, PickleError> {
        Ok(match (function, arguments) {
            (Global::OrderedDict | Global::Counter, []) => Built::New(Value::Dict(Vec::new())),
            (Global::OrderedDict | Global::Counter, [items]) => Built::New(Value::Dict(self.pairs(*items)?)),
            (Global::Size, [lengths]) => {
                self.tuple(*lengths)?;
                Built::Known(*lengths)
            }
            (Global::Made(unread), _) => Built::New(Value::Unread(unread)),
            (Global::Tensor, []) => Built::New(Value::Unread(Unread::Tensor("unset"))),
            (Global::Parameter, [tensor] | [tensor, _])
            | (Global::RebuildParameter, [tensor, _, _])
            | (Global::RebuildParameterWithState, [tensor, _, _, _]) => {
                Built::Known(self.parameter(*tensor)?)
            }
            (Global::RebuildOnDevice, [tensor, data_type, _, _]) => self.on_device(*tensor, *data_type)?,
            (Global::RebuildWithType, [function, _, arguments, _]) => {
                let function = match *self.get(*function) {
                    // Nesting could be arbitrarily deep.
                    Value::Global(Global::RebuildWithType) => None,
                    Value::Global(function) => Some(function),
                    _ => None,
                };
                let function = function.ok_or_else(|| self.malformed("a tensor is made by no function"))?;
                self.call(function, self.tuple(*arguments)?)?
            }
            (Global::RebuildTensor, [storage, offset, shape, strides])
            | (Global::RebuildTensorV2, [storage, offset, shape, strides, _, _]) => {
                Built::New(self.tensor([*storage, *offset, *shape, *strides])?)
            }
            (Global::RebuildTensorV2, [storage, offset, shape, strides, _, _, metadata]) => {
                let tensor = self.tensor([*storage, *offset, *shape, *strides])?;
                Built::New(self.unless_pending(tensor, *metadata))
            }
            // Types without a storage class of their own; none of them is read.
            (
                Global::RebuildTensorV3,
                [storage, _, _, _, _, _, data_type] | [storage, _, _, _, _, _, data_type, _],
            ) => match (self.get(*storage), self.get(*data_type)) {
                (Value::Storage { .. }, Value::Global(Global::DataType(data_type))) => {
                    Built::New(Value::Unread(Unread::Tensor(data_type.name)))
                }
                _ => return Err(self.malformed("a tensor has no storage or no type")),
            },
            _ => return Err(self.malformed("a call has the wrong arguments")),
        })
    }

    /// Pairs of a dictionary, or of a list of lists as written by Python 2.
    fn pairs(&self, items: ValueId) -> Result<Vec<(ValueId, ValueId)>, PickleError> {
        let pair = |id: &ValueId| match self.get(*id) {
            Value::Tuple(pair) | Value::List(pair) => match pair.as_slice() {
                [key, value] => Ok((*key, *value)),
                _ => Err(self.malformed("a dictionary is made of something else than pairs")),
            },
            _ => Err(self.malformed("a dictionary is made of something else than pairs")),
        };
        match self.get(items) {
            Value::Dict(items) => Ok(items.clone()),
            Value::Tuple(items) | Value::List(items) => items.iter().map(pair).collect(),
            _ => Err(self.malformed("a call has the wrong arguments")),
        }
    }

    fn parameter(&self, tensor: ValueId) -> Result<ValueId, PickleError> {
        match self.get(tensor) {
            Value::Tensor(_) | Value::Unread(Unread::Tensor(_)) => Ok(tensor),
            _ => Err(self.malformed("a parameter has no tensor")),
        }
    }

    /// A tensor saved during a transfer from another device, with its type on that device.
    fn on_device(&self, tensor: ValueId, data_type: ValueId) -> Result<Built, PickleError> {
        let Value::Global(Global::DataType(data_type)) = *self.get(data_type) else {
            return Err(self.malformed("a tensor has no type"));
        };
        Ok(match self.get(self.parameter(tensor)?) {
            Value::Tensor(stored) if stored.storage().data_type == data_type => Built::Known(tensor),
            _ => Built::New(Value::Unread(Unread::Tensor(data_type.name))),
        })
    }

    /// The values of a negated or conjugated view differ from those of its storage.
    fn unless_pending(&self, tensor: Value, metadata: ValueId) -> Value {
        let is_set = |(_, value): &(ValueId, ValueId)| !matches!(self.get(*value), Value::Bool(false));
        match self.get(metadata) {
            Value::None => tensor,
            Value::Dict(flags) if !flags.iter().any(is_set) => tensor,
            _ => Value::Unread(Unread::Tensor("negated or conjugated")),
        }
    }

    fn tensor(&self, [storage, offset, shape, strides]: [ValueId; 4]) -> Result<Value, PickleError> {
        let Value::Storage { storage, first } = self.get(storage) else {
            return Err(self.malformed("a tensor has no storage"));
        };
        let lengths =
            |id| self.tuple(id)?.iter().map(|length| self.natural(*length)).collect::<Result<_, _>>();
        let (shape, strides) = (lengths(shape)?, lengths(strides)?);
        if storage.data_type.element.is_none() {
            return Ok(Value::Unread(Unread::Tensor(storage.data_type.name)));
        }
        let offset = self.natural(offset)?.checked_add(*first);
        offset
            .and_then(|offset| StoredTensor::new(storage.as_ref().clone(), offset, shape, strides))
            .map(|tensor| Value::Tensor(Box::new(tensor)))
            .ok_or_else(|| self.malformed("a tensor reaches past its storage"))
    }
}

fn known(module: &str, name: &str) -> Result<Global, PickleError> {
    // Python 2's name; torch writes the second protocol, in which Python 3 uses it too.
    let module = if module == "__builtin__" { "builtins" } else { module };
    allowed(module, name)
        .ok_or_else(|| PickleError::ForbiddenGlobal { name: printable(&format!("{module}.{name}")) })
}

/// Exactly the names that torch's own safe loader (`weights_only`) accepts.
fn allowed(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("collections", "Counter") => Global::Counter,
        ("builtins", "set") => Global::Made(Unread::Set),
        ("builtins", "bytearray") | ("_codecs", "encode") => Global::Made(Unread::Bytes),
        ("builtins", "complex") => Global::Made(Unread::Complex),
        ("torch", "device") => Global::Made(Unread::Device),
        ("torch.serialization", "_get_layout") => Global::Made(Unread::Layout),
        ("torch", "Size") => Global::Size,
        ("torch.nn.parameter", "Parameter") => Global::Parameter,
        ("torch._utils", function) => rebuilding(function)?,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::RebuildWithType,
        ("torch", scheme) if SCHEMES.contains(&scheme) => Global::Scheme,
        ("torch.storage", "TypedStorage") => Global::Made(Unread::Storage),
        ("torch.storage", class @ "UntypedStorage") => Global::Storage(DataType::of_storage_class(class)?),
        ("torch.sparse" | "torch.cuda.sparse", class) if is_tensor(class) => {
            Global::Made(Unread::Tensor("sparse"))
        }
        ("torch" | "torch.cuda", class) if class == "Tensor" || is_tensor(class) => Global::Tensor,
        ("torch" | "torch.cuda", class) if class.ends_with("Storage") && class != "UntypedStorage" => {
            Global::Storage(DataType::of_storage_class(class)?)
        }
        ("torch", name) => Global::DataType(DataType::named(name)?),
        _ => return None,
    })
}

fn rebuilding(function: &str) -> Option<Global> {
    Some(match function {
        "_rebuild_tensor" => Global::RebuildTensor,
        "_rebuild_tensor_v2" => Global::RebuildTensorV2,
        "_rebuild_tensor_v3" => Global::RebuildTensorV3,
        "_rebuild_parameter" => Global::RebuildParameter,
        "_rebuild_parameter_with_state" => Global::RebuildParameterWithState,
        "_rebuild_device_tensor_from_cpu_tensor" => Global::RebuildOnDevice,
        "_rebuild_qtensor" => Global::Made(Unread::Tensor("quantized")),
        "_rebuild_sparse_tensor" => Global::Made(Unread::Tensor("sparse")),
        "_rebuild_nested_tensor" => Global::Made(Unread::Tensor("nested")),
        "_rebuild_meta_tensor_no_storage" => Global::Made(Unread::Tensor("meta")),
        "_rebuild_wrapper_subclass" => Global::Made(Unread::Tensor("wrapped")),
        "_rebuild_device_tensor_from_numpy" => Global::Made(Unread::Tensor("NumPy")),
        _ => return None,
    })
}

/// Quantization schemes.
const SCHEMES: [&str; 5] = [
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
];

/// Whether torch has a tensor class with this name, one for each type.
fn is_tensor(class: &str) -> bool {
    let of = class.strip_suffix("Tensor").unwrap_or_default();
    ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"].contains(&of)
}
