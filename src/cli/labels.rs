//! Flags that name labels of entries.

use std::collections::HashMap;

use clap::Args;

use super::Refusal;

/// Labels of entries.
#[derive(Args)]
pub struct LabelFlags {
    /// A label. May be repeated.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
}

impl LabelFlags {
    /// # Errors
    /// A flag lacks "=", or two flags have the same name.
    pub fn parse(&self) -> Result<HashMap<String, String>, Refusal> {
        parse(&self.labels)
    }
}

/// The labels that `flags` give as `NAME=VALUE`.
///
/// # Errors
/// A flag lacks "=", or two flags have the same name.
pub fn parse(flags: &[String]) -> Result<HashMap<String, String>, Refusal> {
    let mut labels = HashMap::new();
    for flag in flags {
        let Some((name, value)) = flag.split_once('=') else {
            return Err(Refusal(format!("--label {flag}: write NAME=VALUE")));
        };
        if labels.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Refusal(format!(
                "the label {name} is given twice: one value is all that an entry has"
            )));
        }
    }
    Ok(labels)
}
