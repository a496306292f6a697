//! Which tensors of a starting point a model took, and which it did not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::tensors::{NamedTensors, printable};

/// Which tensors of a model came from a checkpoint, which kept their initial values, and which
/// tensors of the checkpoint were not used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    pub loaded: Vec<String>,
    pub kept: Vec<String>,
    /// By name.
    pub untaken: Vec<Untaken>,
    pub blocks: Blocks,
}

/// How much of the network's body came from a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// Blocks of which every tensor was taken.
    pub whole: usize,
    /// Blocks of which at least one tensor was taken.
    pub touched: usize,
    pub of: usize,
}

/// A tensor of a checkpoint that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Untaken {
    /// As the checkpoint has it, without wrappers.
    pub name: String,
    /// Its shape; `None` if the checkpoint has something other than a readable tensor.
    pub found: Option<Vec<usize>>,
    /// The shape of the model's tensor with this name, if there is one.
    pub expected: Option<Vec<usize>>,
    pub reason: UntakenReason,
}

/// Why a tensor was not taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UntakenReason {
    Shape,
    /// A classifier or distillation head, or `fc`: the run learns its own.
    Head,
    /// The network has no modality embedding.
    NoModality,
    /// It does not belong to the network.
    Outside,
    /// It is not a tensor, or not one with readable numbers.
    Unread(String),
}

impl Fit {
    /// Replaces tensors of `initial` by those of `taken`, which have the same names and shapes.
    /// `block_prefix` precedes the number of a block.
    pub fn overlay(
        initial: &mut NamedTensors,
        block_prefix: &str,
        taken: NamedTensors,
        mut untaken: Vec<Untaken>,
    ) -> Self {
        untaken.sort();
        let kept: Vec<String> = initial.keys().filter(|name| !taken.contains_key(*name)).cloned().collect();
        let blocks = Blocks::count(block_prefix, initial, &taken);
        let loaded = taken.keys().cloned().collect();
        initial.extend(taken);
        Self { loaded, kept, untaken, blocks }
    }
}

impl Blocks {
    fn count(prefix: &str, model: &NamedTensors, taken: &NamedTensors) -> Self {
        let block = |name: &str| name.strip_prefix(prefix)?.split('.').next().map(str::to_owned);
        let mut blocks: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for name in model.keys() {
            if let Some(block) = block(name) {
                blocks.entry(block).or_default().push(name);
            }
        }
        let touched: BTreeSet<String> = taken.keys().filter_map(|name| block(name)).collect();
        let whole = blocks.values().filter(|names| names.iter().all(|name| taken.contains_key(*name)));
        Self { whole: whole.count(), touched: touched.len(), of: blocks.len() }
    }
}

impl Untaken {
    /// For display.
    pub fn shown_name(&self) -> String {
        printable(&self.name)
    }
}

/// One line for display.
impl fmt::Display for Untaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown_name())?;
        if let Some(found) = &self.found {
            write!(f, " {found:?}")?;
        }
        match (&self.reason, &self.expected) {
            (UntakenReason::Shape, Some(expected)) => write!(f, " (the model's has {expected:?})"),
            (reason, _) => write!(f, " ({reason})"),
        }
    }
}

impl fmt::Display for UntakenReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape => f.write_str("another shape than the model's"),
            Self::Head => f.write_str("a head, which the run learns itself"),
            Self::NoModality => f.write_str("the model has no modality embedding"),
            Self::Outside => f.write_str("not of the network"),
            Self::Unread(kind) => write!(f, "{kind}, which is not read"),
        }
    }
}
