//! Locates a model's tensors in a checkpoint's dictionaries.

use std::collections::HashSet;

use super::pickle::{Pickle, Value, ValueId};

/// Keys under which programs store a model's own weights, in the order in which they are tried.
const OWN: &[&str] = &[
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
    "student",
    "weights",
    "params",
];
/// Keys under which they store the moving average of these.
const AVERAGED: &[&str] = &[
    "ema",
    "model_ema",
    "ema_model",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "teacher",
    "params_ema",
];
/// Maximum nesting of dictionaries; no known program uses more than three.
const DEPTH_MAX: usize = 4;

/// Selects one of several sets of weights in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WeightsChoice {
    /// The model's own weights, or averaged ones if there are no others.
    #[default]
    Own,
    Averaged,
    /// The weights under this key, or those whose names begin with it.
    Named(String),
}

/// The dictionary that holds a model's tensors.
pub struct WeightsDict {
    pub dict: ValueId,
    /// Keys of the dictionaries that contain it, from the outermost one.
    pub path: Vec<String>,
    /// Other keys of the outermost dictionary that contain weights.
    pub others: Vec<String>,
    /// Whether the selection was resolved by key, so that names need not resolve it.
    pub is_chosen: bool,
}

impl WeightsChoice {
    /// As written in a configuration or flag: empty, `ema`, or a key of the file.
    pub fn new(text: &str) -> Self {
        match text {
            "" => Self::Own,
            "ema" => Self::Averaged,
            key => Self::Named(key.to_owned()),
        }
    }
}

/// Whether a key, or the last part of a prefix, denotes averaged weights.
pub fn is_averaged(key: &str) -> bool {
    AVERAGED.contains(&key)
}

/// The dictionary with a model's tensors; `first` are keys that are tried before all others, at every depth.
pub fn locate(pickle: &Pickle, first: &[&str], choice: &WeightsChoice) -> Option<WeightsDict> {
    let root = pickle.root();
    let own: Vec<&str> = first.iter().chain(OWN).copied().collect();
    let mut search = Search { pickle, own: &own, seen: HashSet::new() };
    let chosen = match choice {
        WeightsChoice::Own => None,
        WeightsChoice::Averaged => search.under(root, AVERAGED, DEPTH_MAX),
        WeightsChoice::Named(key) => search.named(key),
    };
    let is_chosen = chosen.is_some();
    let (mut path, dict) = chosen.or_else(|| search.below(root, DEPTH_MAX)).or_else(|| {
        // A file that contains only an average.
        search.under(root, AVERAGED, DEPTH_MAX)
    })?;
    path.reverse();
    search.seen.clear();
    search.seen.extend([root, dict]);
    let mut others = Vec::new();
    for key in OWN.iter().chain(AVERAGED) {
        let is_other = path.first().is_none_or(|taken| taken != key);
        if is_other && search.under(root, &[key], DEPTH_MAX).is_some() {
            others.push((*key).to_owned());
        }
    }
    Some(WeightsDict { dict, path, others, is_chosen })
}

/// Visits every dictionary once, however they refer to each other.
struct Search<'a> {
    pickle: &'a Pickle,
    own: &'a [&'a str],
    seen: HashSet<ValueId>,
}

/// Keys from the innermost to the outermost, and the dictionary at the end of the path.
type KeyPath = (Vec<String>, ValueId);

impl Search<'_> {
    /// A dictionary with tensors, in `dict` or under keys of a model's own weights.
    fn below(&mut self, dict: ValueId, depth: usize) -> Option<KeyPath> {
        if depth == 0 || !self.seen.insert(dict) {
            return None;
        }
        self.under(dict, self.own, depth).or_else(|| self.holds_tensors(dict).then(|| (Vec::new(), dict)))
    }

    fn under(&mut self, dict: ValueId, keys: &[&str], depth: usize) -> Option<KeyPath> {
        let mut found = vec![None; keys.len()];
        for (key, value) in self.pickle.items(dict) {
            if let Value::Text(name) = self.pickle.value(*key)
                && let Some(place) = keys.iter().position(|key| key == name)
            {
                found[place] = Some(*value);
            }
        }
        keys.iter().zip(found).find_map(|(key, value)| {
            let (mut path, dict) = self.below(value?, depth - 1)?;
            path.push((*key).to_owned());
            Some((path, dict))
        })
    }

    /// Under the key itself, or under dot-separated keys.
    fn named(&mut self, name: &str) -> Option<KeyPath> {
        let root = self.pickle.root();
        if self.pickle.entry(root, name).is_some() {
            return self.under(root, &[name], DEPTH_MAX);
        }
        let keys: Vec<&str> = name.split('.').take(DEPTH_MAX).collect();
        let dict = keys.iter().try_fold(root, |dict, key| self.pickle.entry(dict, key))?;
        let (mut path, dict) = self.below(dict, DEPTH_MAX)?;
        path.extend(keys.iter().rev().map(|key| (*key).to_owned()));
        Some((path, dict))
    }

    fn holds_tensors(&self, dict: ValueId) -> bool {
        self.pickle.items(dict).iter().any(|(key, value)| {
            matches!(self.pickle.value(*key), Value::Text(_))
                && matches!(self.pickle.value(*value), Value::Tensor(_))
        })
    }
}
