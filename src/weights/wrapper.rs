//! Where in a checkpoint's dictionaries a model's tensors are.

use std::collections::HashSet;

use super::pickle::{Pickle, Value, ValueId};

/// Keys under which programs keep a model's own weights, in the order in which they are tried.
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
/// Keys under which they keep the moving average of these.
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
/// Dictionaries inside each other; no program is known that has more than three.
const DEPTH_MAX: usize = 4;

/// Which of several weights in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WeightsChoice {
    /// Those of the model itself; averaged ones where there are no others.
    #[default]
    Own,
    Averaged,
    /// Those under this key, or whose names begin with it.
    Named(String),
}

/// The dictionary that holds a model's tensors.
pub struct WeightsDict {
    pub dict: ValueId,
    /// Keys that lead to it from the outermost dictionary.
    pub path: Vec<String>,
    /// Other keys of the outermost dictionary that lead to weights.
    pub others: Vec<String>,
    /// Whether the choice decided, so that names need not.
    pub is_chosen: bool,
}

impl WeightsChoice {
    /// As a configuration or a flag says it: nothing, `ema`, or a key of the file.
    pub fn new(text: &str) -> Self {
        match text {
            "" => Self::Own,
            "ema" => Self::Averaged,
            key => Self::Named(key.to_owned()),
        }
    }
}

/// Whether a key, or the last part of a prefix, is one of averaged weights.
pub fn is_averaged(key: &str) -> bool {
    AVERAGED.contains(&key)
}

/// The dictionary with the tensors of a model: `first` are keys that are tried before all others, at every depth.
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
        // A file of nothing but an average.
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

/// Looks at every dictionary once, however they are entangled.
struct Search<'a> {
    pickle: &'a Pickle,
    own: &'a [&'a str],
    seen: HashSet<ValueId>,
}

/// Keys from the innermost to the outermost, and the dictionary that they lead to.
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

    /// Under a key as it is, or under keys with dots between them.
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
