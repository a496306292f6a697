//! Reads a configuration from TOML and from settings of the command line.

use toml::{Table, Value};

use super::TrainConfig;
use super::violations::Violation;
use crate::message::{excerpt, one_line};

/// Keys that had another name until the previous release: section, old name, new name. The next
/// release removes the old one.
const RENAMED: [(&str, &str, &str); 2] =
    [("gradient", "parts", "accumulation_steps"), ("gradient", "norm_max", "grad_norm_max")];

/// Why a configuration cannot start a run; every message is one line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TrainConfigError {
    #[error("{0}")]
    Syntax(String),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
}

impl TrainConfigError {
    pub(in crate::train) fn syntax(problem: &str) -> Self {
        Self::Syntax(one_line(problem))
    }
}

impl TrainConfig {
    /// Reads a configuration, and checks its values as a whole.
    ///
    /// # Errors
    /// The message of TOML or the first wrong key, or all values out of bounds at once.
    pub fn parse(text: &str) -> Result<Self, TrainConfigError> {
        let config = Self::read(text, &[])?;
        let violations = config.violations();
        if violations.is_empty() { Ok(config) } else { Err(TrainConfigError::Invalid(violations)) }
    }

    /// Reads a configuration whose values may be out of bounds. `settings` are `section.key=value` and
    /// override the text; a value that is not TOML is a string.
    ///
    /// # Errors
    /// The message of TOML or the first wrong key.
    pub fn read(text: &str, settings: &[String]) -> Result<Self, TrainConfigError> {
        let one_line = |cause: toml::de::Error| {
            let lines = text[..cause.span().map_or(0, |span| span.start)].lines().count();
            TrainConfigError::syntax(&format!("line {}: {}", lines.max(1), cause.message()))
        };
        let mut table: Table = toml::from_str(text).map_err(one_line)?;
        take_new_names(&mut table);
        for setting in settings {
            apply(&mut table, setting).map_err(|problem| TrainConfigError::syntax(&problem))?;
            take_new_names(&mut table);
        }
        if settings.is_empty() {
            // An error from parsing the text includes the line.
            return toml::from_str(text).map_err(one_line);
        }
        let unfit = |cause: toml::de::Error| TrainConfigError::syntax(cause.to_string().trim());
        table.try_into().map_err(unfit)
    }
}

fn take_new_names(table: &mut Table) {
    for (name, old, new) in RENAMED {
        let section = table.get_mut(name).and_then(Value::as_table_mut);
        if let Some((section, value)) =
            section.and_then(|section| section.remove(old).map(|value| (section, value)))
        {
            tracing::warn!("{name}.{old} is now {name}.{new}; the old name goes with the next release");
            section.insert(new.to_owned(), value);
        }
    }
}

/// Inserts `section.key=value` into a table.
fn apply(table: &mut Table, setting: &str) -> Result<(), String> {
    let (key, text) = setting
        .split_once('=')
        .ok_or_else(|| format!("{} has no value: write section.key=value", excerpt(setting)))?;
    let parsed: Result<Table, _> = toml::from_str(&format!("value = {text}"));
    let value = parsed.ok().and_then(|mut parsed| parsed.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
    match key.split_once('.') {
        None => table.insert(key.to_owned(), value),
        Some((section, key)) => {
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            let section = section
                .as_table_mut()
                .ok_or_else(|| format!("{}: {} is in no section", excerpt(setting), excerpt(key)))?;
            section.insert(key.to_owned(), value)
        }
    };
    Ok(())
}
