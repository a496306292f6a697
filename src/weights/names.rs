//! The names of a checkpoint's tensors, without the additions of wrappers.

use super::tensors::{NamedTensors, printable};
use super::wrapper::{WeightsChoice, is_averaged};

/// Text that data-parallel training and `torch.compile` add before or inside a name.
const WRAPPERS: &[&str] = &["_orig_mod.", "module."];
/// Extra entry in an average of models.
const BOOKKEEPING: &[&str] = &["n_averaged"];

/// Maximum number of models in one dictionary; every name is compared with each.
const MODELS_MAX: usize = 8;

/// How names were interpreted, and what does not belong to the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// Which of `_orig_mod.` and `module.` were removed.
    pub removed: Vec<&'static str>,
    /// The prefix that was removed from every name; it ends in a dot.
    pub prefix: String,
    /// Prefixes of other models in the same dictionary.
    pub others: Vec<String>,
    /// Tensors that belong to no model, and their shapes.
    pub outside: Vec<(String, Vec<usize>)>,
}

/// Why names are ambiguous.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamingError {
    #[error("two tensors are named {0} once \"module.\" and \"_orig_mod.\" are removed")]
    Ambiguous(String),
    #[error("the file has no weights named {asked}{}", listed(.known))]
    NoSuchWeights { asked: String, known: Vec<String> },
}

/// Converts names to those of a model. Every such model has at least one of the tensors `anchors`; the prefix
/// of that tensor is the prefix of all names.
///
/// # Errors
/// If two names become equal, or no prefix is the selected one.
pub fn bare(
    tensors: NamedTensors,
    anchors: &[&str],
    choice: &WeightsChoice,
) -> Result<(NamedTensors, Naming), NamingError> {
    let mut naming = Naming::default();
    let mut plain = NamedTensors::new();
    for (name, tensor) in tensors {
        let name = naming.unwrap(name);
        if plain.contains_key(&name) {
            return Err(NamingError::Ambiguous(printable(&name)));
        }
        plain.insert(name, tensor);
    }
    let before = |name: &String| anchors.iter().find_map(|anchor| prefix(name, anchor)).map(str::to_owned);
    let mut prefixes: Vec<String> = plain.keys().filter_map(before).collect();
    prefixes.sort_by_key(|prefix| (is_average(prefix), prefix.len(), prefix.clone()));
    prefixes.dedup();
    prefixes.truncate(MODELS_MAX);
    let place = match choice {
        WeightsChoice::Own => 0,
        WeightsChoice::Averaged => place(&prefixes, "ema", is_average)?,
        WeightsChoice::Named(name) => {
            place(&prefixes, name, |prefix| prefix.strip_suffix('.') == Some(name))?
        }
    };
    if place < prefixes.len() {
        naming.prefix = prefixes.remove(place);
    }
    naming.others = prefixes.iter().map(|prefix| prefix.trim_end_matches('.').to_owned()).collect();
    let mut named = NamedTensors::new();
    for (name, tensor) in plain {
        match name.strip_prefix(&naming.prefix) {
            Some(own) if !BOOKKEEPING.contains(&own) => {
                named.insert(own.to_owned(), tensor);
            }
            // Tensors of other models, under their own prefixes, are dropped without a report.
            _ if prefixes.iter().any(|other| !other.is_empty() && name.starts_with(other)) => {}
            _ => naming.outside.push((name, tensor.shape)),
        }
    }
    Ok((named, naming))
}

impl Naming {
    /// A name without wrappers and prefix, as produced by [`bare`].
    pub fn of_model(&self, name: &str) -> String {
        let plain = WRAPPERS.iter().fold(name.to_owned(), |name, wrapper| name.replace(wrapper, ""));
        plain.strip_prefix(&self.prefix).map_or_else(|| plain.clone(), str::to_owned)
    }

    /// For display.
    pub fn shown_prefix(&self) -> String {
        printable(&self.prefix)
    }

    fn unwrap(&mut self, mut name: String) -> String {
        for wrapper in WRAPPERS {
            if name.contains(wrapper) {
                name = name.replace(wrapper, "");
                if !self.removed.contains(wrapper) {
                    self.removed.push(wrapper);
                }
            }
        }
        name
    }
}

/// The prefix of `anchor` in a name that ends with it: empty, or ending in a dot.
fn prefix<'a>(name: &'a str, anchor: &str) -> Option<&'a str> {
    name.strip_suffix(anchor).filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
}

fn is_average(prefix: &str) -> bool {
    prefix.split('.').any(is_averaged)
}

fn place(prefixes: &[String], asked: &str, is_chosen: impl Fn(&str) -> bool) -> Result<usize, NamingError> {
    prefixes.iter().position(|prefix| is_chosen(prefix)).ok_or_else(|| {
        let known = prefixes.iter().map(|prefix| prefix.trim_end_matches('.').to_owned());
        NamingError::NoSuchWeights {
            asked: printable(asked),
            known: known.filter(|prefix| !prefix.is_empty()).collect(),
        }
    })
}

fn listed(known: &[String]) -> String {
    match known {
        [] => "; leave the choice of weights empty".to_owned(),
        known => {
            let shown: Vec<String> = known.iter().take(MODELS_MAX).map(|name| printable(name)).collect();
            format!("; it has {}", shown.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tensors::HostTensor;

    fn tensors(names: &[&str]) -> NamedTensors {
        let tensor = || HostTensor { shape: vec![], values: vec![0.0] };
        names.iter().map(|name| ((*name).to_owned(), tensor())).collect()
    }

    fn check(names: &[&str], choice: &WeightsChoice, expected: &[&str], prefix: &str, others: &[&str]) {
        let (named, naming) = bare(tensors(names), &["base.cls_token"], choice).expect("clear names");
        assert!(named.keys().eq(expected), "{named:?}");
        assert!(naming.prefix == prefix && naming.others == others, "{naming:?}");
        let of_others = names.iter().filter(|name| others.iter().any(|other| name.starts_with(other)));
        assert_eq!(naming.outside.len() + named.len() + of_others.count(), names.len());
    }

    #[test]
    fn wrappers_are_removed_wherever_they_stand_unless_two_names_meet() {
        check(&["module.base.module.a", "b"], &WeightsChoice::Own, &["b", "base.a"], "", &[]);
        let names = ["_orig_mod.module.base.cls_token", "module._orig_mod.b"];
        check(&names, &WeightsChoice::Own, &["b", "base.cls_token"], "", &[]);
        for wrapper in WRAPPERS {
            let met = bare(tensors(&[&format!("{wrapper}a"), "a"]), &["base.cls_token"], &WeightsChoice::Own);
            assert_eq!(met.expect_err("two are one"), NamingError::Ambiguous("a".to_owned()));
        }
    }

    #[test]
    fn a_common_prefix_is_found_by_a_tensor_that_every_model_has() {
        let names = ["model.base.cls_token", "model.bottleneck.weight", "criterion.center"];
        check(&names, &WeightsChoice::Own, &["base.cls_token", "bottleneck.weight"], "model.", &[]);
        check(
            &["base.cls_token", "other.base.cls_token2"],
            &WeightsChoice::Own,
            &["base.cls_token", "other.base.cls_token2"],
            "",
            &[],
        );
        check(&["module.base.cls_token", "n_averaged"], &WeightsChoice::Own, &["base.cls_token"], "", &[]);
        check(&["a", "database.cls_token"], &WeightsChoice::Own, &["a", "database.cls_token"], "", &[]);
    }

    #[test]
    fn of_several_models_the_own_one_is_taken_unless_another_is_chosen() {
        let names = ["ema.base.cls_token", "net.inner.base.cls_token"];
        check(&names, &WeightsChoice::Own, &["base.cls_token"], "net.inner.", &["ema"]);
        check(&names, &WeightsChoice::Averaged, &["base.cls_token"], "ema.", &["net.inner"]);
        let named = |name: &str| WeightsChoice::Named(name.to_owned());
        check(&names, &named("net.inner"), &["base.cls_token"], "net.inner.", &["ema"]);
        let refused = bare(tensors(&names), &["base.cls_token"], &named("net")).expect_err("no such prefix");
        assert_eq!(refused.to_string(), "the file has no weights named net; it has net.inner, ema");
        let none = bare(tensors(&["base.cls_token"]), &["base.cls_token"], &WeightsChoice::Averaged);
        let none = none.expect_err("no average").to_string();
        assert_eq!(none, "the file has no weights named ema; leave the choice of weights empty");
    }
}
