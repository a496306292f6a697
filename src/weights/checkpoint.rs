//! Files of other programs in any supported format: the tensors of one model under their plain names, and
//! what was skipped to find them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use super::foreign::{self, Contents, ForeignError};
use super::names::{Naming, NamingError, bare};
use super::pth::{self, PthError, StateDict};
use super::tensors::{NamedTensors, printable};
use super::wrapper::WeightsChoice;

/// Names that a message lists before it only counts the rest.
const LISTED_MAX: usize = 8;
/// Bytes that distinguish the formats.
const MAGIC_BYTES: u64 = 9;

/// What a caller expects of a file.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Keys of wrapping dictionaries to try before the usual ones.
    pub first: &'a [&'a str],
    /// Tensors of which every such model has at least one.
    pub anchors: &'a [&'a str],
    pub choice: &'a WeightsChoice,
}

/// The tensors of a model in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub tensors: NamedTensors,
    pub origin: Origin,
}

/// The location of a model's tensors in a file, and what was skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Dot-separated keys of the dictionaries that contain the tensors; empty where they are outermost.
    pub wrapper: String,
    /// What was removed from names.
    pub naming: Naming,
    /// Keys of other weights in the file.
    pub others: Vec<String>,
    /// Entries next to the tensors that were not read, with their kinds.
    pub skipped: Vec<(String, String)>,
    /// Tensors of the model that serving does not read, by their names in it.
    pub dropped: Vec<String>,
}

/// Why no model was found in a file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Pth(#[from] PthError),
    #[error(transparent)]
    Safetensors(#[from] ForeignError),
    #[error(transparent)]
    Names(#[from] NamingError),
}

impl Checkpoint {
    /// Reads a torch file or a safetensors file; the format is determined by content.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn read(path: &Path, expected: &Expected) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(PthError::from)?;
        Self::read_from(BufReader::new(file), expected)
    }

    /// [`Self::read`] for a file that is already open, or in memory.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn read_from(mut reader: impl Read + Seek, expected: &Expected) -> Result<Self, CheckpointError> {
        let (first, length) = beginning(&mut reader).map_err(PthError::from)?;
        if foreign::is_safetensors(&first, length) {
            let Contents { tensors, skipped } = foreign::read_from(reader)?;
            let state = StateDict { tensors, skipped, ..StateDict::default() };
            return Self::of(state, expected);
        }
        Self::of(pth::read_from(reader, expected.first, expected.choice)?, expected)
    }

    fn of(state: StateDict, expected: &Expected) -> Result<Self, CheckpointError> {
        let StateDict { tensors, path, others, is_chosen, skipped } = state;
        let choice = if is_chosen { &WeightsChoice::Own } else { expected.choice };
        let (tensors, naming) = bare(tensors, expected.anchors, choice).map_err(|cause| match cause {
            NamingError::NoSuchWeights { asked, known } => {
                NamingError::NoSuchWeights { asked, known: [known, others.clone()].concat() }
            }
            other @ NamingError::Ambiguous(_) => other,
        })?;
        Ok(Self {
            tensors,
            origin: Origin { wrapper: path.join("."), naming, others, skipped, dropped: Vec::new() },
        })
    }
}

impl Origin {
    /// Entries found in place of readable tensors, by the names that they would have in a model.
    pub fn unread(&self) -> BTreeMap<String, &str> {
        self.skipped.iter().map(|(name, kind)| (self.naming.of_model(name), kind.as_str())).collect()
    }

    /// Whether the file contains only the tensors of one model under their own names.
    pub fn is_plain(&self) -> bool {
        *self == Self { dropped: self.dropped.clone(), ..Self::default() }
    }
}

/// One line for display.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Naming { removed, prefix, others, outside } = &self.naming;
        match self.wrapper.as_str() {
            "" => f.write_str("outermost in the file")?,
            wrapper => write!(f, "under {}", printable(wrapper))?,
        }
        let removed =
            removed.iter().copied().chain(Some(prefix.as_str()).filter(|prefix| !prefix.is_empty()));
        let removed: Vec<String> = removed.map(|part| format!("\"{}\"", printable(part))).collect();
        if !removed.is_empty() {
            write!(f, ", names without {}", removed.join(" and "))?;
        }
        let others: Vec<String> = self.others.iter().chain(others).map(|key| printable(key)).collect();
        if !others.is_empty() {
            write!(f, "; other weights, which can be chosen: {}", listed(&others))?;
        }
        let outside = outside.iter().map(|(name, _)| printable(name));
        let skipped = self.skipped.iter().map(|(name, kind)| format!("{} ({kind})", printable(name)));
        let passed: Vec<String> = outside.chain(skipped).collect();
        if !passed.is_empty() {
            write!(f, "; passed over: {}", listed(&passed))?;
        }
        Ok(())
    }
}

/// The first names of many.
pub(super) fn listed(names: &[String]) -> String {
    let first = names.iter().take(LISTED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

fn beginning(reader: &mut (impl Read + Seek)) -> io::Result<(Vec<u8>, u64)> {
    let length = reader.seek(io::SeekFrom::End(0))?;
    reader.rewind()?;
    let mut first = Vec::new();
    reader.by_ref().take(MAGIC_BYTES).read_to_end(&mut first)?;
    reader.rewind()?;
    Ok((first, length))
}
