//! A strict reader of the pickles in torch checkpoints: it builds plain values and executes no functions.
//!
//! A pickle is a program for a small stack machine, and the usual reader runs any function that it names.
//! This reader accepts only the names that torch's own safe loader (`weights_only`) accepts and refuses any
//! other name. It builds what they would return where that is weights or the containers of weights, and
//! records only the existence of anything else. It also supports the instructions of protocols later than the
//! second, which torch writes on request. Values live in one arena and refer to each other by index, so that
//! nesting and cycles are harmless and memory stays proportional to the pickle's length.

mod input;
mod machine;
mod rebuild;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};

use self::machine::Machine;
use super::storage::{DataType, Storage, StoredTensor};

/// Maximum size of a pickle in bytes; that of a ViT-B with its optimizer has about 0.2 MB.
const BYTES_MAX: u64 = 16 << 20;
/// Values, stack slots and memo slots.
const VALUES_MAX: usize = 1 << 20;
/// Some programs save their configuration or a patch of their source next to the weights.
const TEXT_MAX: usize = 4 << 20;

/// Modules whose names never occur in a checkpoint that was saved in good faith.
const SUSPICIOUS: &[&str] = &[
    "builtins",
    "code",
    "ctypes",
    "functools",
    "importlib",
    "marshal",
    "nt",
    "operator",
    "os",
    "pdb",
    "pickle",
    "posix",
    "pty",
    "runpy",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "timeit",
    "webbrowser",
];

/// Rewrites a checkpoint, keeping its tensors and the dictionaries that contain them.
const TENSORS_ONLY: &str = "python3 -c \"import sys, torch; \
     keep = lambda v: {str(k): keep(x) for k, x in v.items() if torch.is_tensor(x) or hasattr(x, 'items')} \
     if hasattr(v, 'items') else v.detach().contiguous(); \
     torch.save(keep(torch.load(sys.argv[1], 'cpu', weights_only=False)), sys.argv[2])\" OLD.pth NEW.pth";

/// A value's index in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ValueId(u32);

/// The content of a pickle, as far as relevant for checkpoints.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    Tuple(Vec<ValueId>),
    List(Vec<ValueId>),
    /// Plain and ordered dictionaries, in order; the last of equal keys wins.
    Dict(Vec<(ValueId, ValueId)>),
    Global(Global),
    /// An array, or the part of it from element `first` on.
    Storage {
        storage: Box<Storage>,
        first: usize,
    },
    Tensor(Box<StoredTensor>),
    /// A value that is allowed next to a model's tensors but not used.
    Unread(Unread),
}

/// The only names that a pickle may mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    OrderedDict,
    Counter,
    Size,
    Tensor,
    Parameter,
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    RebuildParameterWithState,
    /// Tensors with attributes, or of a subclass.
    RebuildWithType,
    RebuildOnDevice,
    Storage(DataType),
    DataType(DataType),
    /// A quantization scheme.
    Scheme,
    /// Accepts any arguments; only the kind of the result is kept.
    Made(Unread),
}

/// Kinds of values that torch reads and that are not used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    Bytes,
    Set,
    /// An integer of more than 16 bytes.
    Number,
    Complex,
    Device,
    Layout,
    Storage,
    /// A tensor of a type or kind that networks here do not use.
    Tensor(&'static str),
}

/// A pickle that was read completely.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    storages: BTreeMap<String, Storage>,
    root: ValueId,
}

fn advice(global: &str) -> String {
    let module = global.split('.').next().unwrap_or_default();
    if SUSPICIOUS.contains(&module) {
        return "do not open this file with anything that runs what it says".to_owned();
    }
    format!(
        "if you trust its origin, this rewrites it with tensors only (and runs what the file says): {TENSORS_ONLY}"
    )
}

impl Value {
    /// Its kind, for display.
    pub fn kind(&self) -> String {
        match self {
            Self::None => "nothing",
            Self::Bool(_) | Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global(Global::DataType(_)) => "a data type",
            Self::Global(_) => "a name",
            Self::Storage { .. } => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Unread(unread) => return unread.to_string(),
        }
        .to_owned()
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Set => "a set",
            Self::Number | Self::Complex => "a number",
            Self::Device => "a device",
            Self::Layout => "a layout",
            Self::Storage => "a storage",
            Self::Tensor(kind) => return write!(f, "a {kind} tensor"),
        })
    }
}

/// Why a pickle was refused. Nothing that it names was called.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    #[error(
        "the pickle names {name}, which torch's safe loader (weights_only) refuses too; nothing was called; {}",
        advice(.name)
    )]
    ForbiddenGlobal { name: String },
    #[error(
        "the pickle uses instruction {opcode:#04x} at byte {at}, which torch's safe loader does not know either"
    )]
    ForbiddenOpcode { opcode: u8, at: u64 },
    #[error("the pickle is malformed at byte {at}: {what}")]
    Malformed { what: &'static str, at: u64 },
    #[error("the pickle has more than {max} {what}")]
    TooLarge { what: &'static str, max: u64 },
    #[error("the pickle ends early")]
    Truncated,
    #[error(transparent)]
    Io(io::Error),
}

impl Pickle {
    /// Reads one pickle, up to and including its end mark.
    ///
    /// # Errors
    /// See [`PickleError`]; the position of `reader` is then unspecified.
    pub fn read(reader: &mut impl Read) -> Result<Self, PickleError> {
        Machine::new(reader).run()
    }

    pub fn root(&self) -> ValueId {
        self.root
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// Every storage that the pickle names, by key.
    pub fn storages(&self) -> &BTreeMap<String, Storage> {
        &self.storages
    }

    /// Keys and values of a dictionary; empty for anything else.
    pub fn items(&self, dict: ValueId) -> &[(ValueId, ValueId)] {
        match self.value(dict) {
            Value::Dict(items) => items,
            _ => &[],
        }
    }

    /// The value under a text key of a dictionary.
    pub fn entry(&self, dict: ValueId, key: &str) -> Option<ValueId> {
        let entry = self
            .items(dict)
            .iter()
            .rev()
            .find(|(name, _)| matches!(self.value(*name), Value::Text(text) if text == key));
        entry.map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests;
