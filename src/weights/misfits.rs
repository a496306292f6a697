//! Reports everything that prevents a model from using a checkpoint, at once.

use std::collections::BTreeMap;
use std::fmt;

use super::tensors::{HostTensor, printable};

/// Names of each kind that an error message lists before it only counts the rest.
const LISTED_MAX: usize = 8;

/// Values that are checked at a time.
const CHUNK: usize = 4096;

/// A tensor with a different shape than the model's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    pub name: String,
    pub expected: Vec<usize>,
    pub found: Vec<usize>,
}

/// Everything that prevents a model from using a checkpoint; the message names the first of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Misfits {
    pub missing: Vec<String>,
    pub unexpected: Vec<String>,
    pub misshapen: Vec<Misshapen>,
    /// Tensors with an infinite or NaN value.
    pub not_finite: Vec<String>,
}

impl Misfits {
    /// Describes, for missing tensors, what a checkpoint has in their place.
    pub fn explain(&mut self, unread: &BTreeMap<String, &str>) {
        for name in &mut self.missing {
            if let Some(kind) = unread.get(name) {
                *name = format!("{name} (it is {kind}, which is not read)");
            }
        }
    }

    pub(super) fn compare(&mut self, name: &str, expected: &[usize], tensor: &HostTensor) {
        if tensor.shape != expected {
            let (expected, found) = (expected.to_vec(), tensor.shape.clone());
            self.misshapen.push(Misshapen { name: name.to_owned(), expected, found });
        } else if !are_finite(&tensor.values) {
            self.not_finite.push(name.to_owned());
        }
    }

    pub(super) fn none_or<T>(self, value: T) -> Result<T, Self> {
        if self == Self::default() { Ok(value) } else { Err(self) }
    }
}

/// Looks at many values before it decides, which takes a fraction of the time.
fn are_finite(values: &[f32]) -> bool {
    values.chunks(CHUNK).all(|chunk| chunk.iter().fold(true, |all, value| all & value.is_finite()))
}

impl fmt::Display for Misfits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "the checkpoint does not fit the model: ";
        for (what, names) in [
            ("missing", listed(self.missing.iter().map(|name| printable(name)))),
            ("unexpected", listed(self.unexpected.iter().map(|name| printable(name)))),
            ("misshapen", listed(self.misshapen.iter().map(ToString::to_string))),
            ("not finite", listed(self.not_finite.iter().map(|name| printable(name)))),
        ] {
            if let Some(names) = names {
                write!(f, "{separator}{what} {names}")?;
                separator = "; ";
            }
        }
        Ok(())
    }
}

impl fmt::Display for Misshapen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} instead of {:?}", printable(&self.name), self.found, self.expected)
    }
}

fn listed(items: impl ExactSizeIterator<Item = String>) -> Option<String> {
    let count = items.len();
    let names: Vec<String> = items.take(LISTED_MAX).collect();
    match count.saturating_sub(LISTED_MAX) {
        _ if names.is_empty() => None,
        0 => Some(names.join(", ")),
        more => Some(format!("{} and {more} more", names.join(", "))),
    }
}
