//! Flags that name labels of entries.

use std::collections::HashMap;

use anyhow::Context;
use clap::Args;

/// Labels of entries.
#[derive(Args)]
pub struct LabelFlags {
    /// A label. May be repeated.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
}

impl LabelFlags {
    /// # Errors
    /// A flag without "=".
    pub fn parse(&self) -> anyhow::Result<HashMap<String, String>> {
        let label = |flag: &String| {
            let (name, value) =
                flag.split_once('=').with_context(|| format!("--label {flag}: write NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        };
        self.labels.iter().map(label).collect()
    }
}
