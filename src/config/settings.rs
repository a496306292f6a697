//! Merges sources into the defaults key by key, so that an error can name its key and its source.

use std::path::Path;

use toml::{Table, Value};

use super::{Config, ConfigError};
use crate::message::{nearest, one_line};

/// The default values as a table, into which sources are merged key by key.
pub(super) struct Settings {
    table: Table,
}

impl Settings {
    pub(super) fn new() -> Self {
        let table = Table::try_from(Config::default()).expect("the defaults are a table");
        Self { table }
    }

    pub(super) fn apply_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause: cause.to_string() })?;
        self.apply_toml(&path.display().to_string(), &text)
    }

    /// Applies the text of a file that messages call `source_name`.
    pub(super) fn apply_toml(&mut self, source_name: &str, text: &str) -> Result<(), ConfigError> {
        let table: Table = text.parse().map_err(|cause: toml::de::Error| ConfigError::Syntax {
            source_name: source_name.into(),
            cause: one_line(cause.to_string().trim()),
        })?;
        for (section, value) in table {
            let Value::Table(keys) = value else {
                return Err(self.unknown(source_name, &section));
            };
            if !self.table.contains_key(&section) {
                return Err(self.unknown(source_name, &section));
            }
            for (key, value) in keys {
                let slot = self.slot(source_name, &format!("{section}.{key}"))?;
                *slot = value;
            }
        }
        // A wrong type is reported while it can still be attributed to the file.
        self.typed(source_name).map(drop)
    }

    pub(super) fn apply_text(&mut self, source_name: &str, key: &str, text: &str) -> Result<(), ConfigError> {
        let slot = self.slot(source_name, key)?;
        let wrong = |kind: &str| ConfigError::WrongType {
            source_name: source_name.into(),
            key: key.into(),
            cause: format!("the value {text:?}, which is not {kind}"),
        };
        *slot = match slot {
            Value::Integer(_) => Value::Integer(text.parse().map_err(|_| wrong("a whole number"))?),
            Value::Float(_) => Value::Float(text.parse().map_err(|_| wrong("a number"))?),
            // Paths are separated by colons as in shell path lists; addresses contain colons themselves.
            Value::Array(_) => {
                let separator = if key == "training.data_roots" { ':' } else { ',' };
                let items = text.split(separator).filter(|item| !item.is_empty());
                Value::Array(items.map(Value::from).collect())
            }
            _ => Value::String(text.into()),
        };
        self.typed(source_name).map(drop)
    }

    #[cfg(test)]
    pub(super) fn into_table(self) -> Table {
        self.table
    }

    fn slot(&mut self, source_name: &str, key: &str) -> Result<&mut Value, ConfigError> {
        let (section, name) = key.split_once('.').unwrap_or((key, ""));
        let keys = self.table.get(section).and_then(Value::as_table);
        if !keys.is_some_and(|keys| keys.contains_key(name)) {
            return Err(self.unknown(source_name, key));
        }
        let keys = self.table.get_mut(section).and_then(Value::as_table_mut);
        Ok(keys.and_then(|keys| keys.get_mut(name)).expect("the key is there"))
    }

    fn unknown(&self, source_name: &str, key: &str) -> ConfigError {
        let keys = self.table.iter().flat_map(|(section, value)| {
            let names = value.as_table().into_iter().flat_map(|keys| keys.keys());
            names.map(move |name| format!("{section}.{name}"))
        });
        let nearest = nearest(key, keys.chain(self.table.keys().cloned()));
        ConfigError::UnknownKey { source_name: source_name.into(), key: one_line(key), nearest }
    }

    fn typed(&self, source_name: &str) -> Result<Config, ConfigError> {
        if let Ok(config) = self.table.clone().try_into() {
            return Ok(config);
        }
        let defaults = Self::new().table;
        for (section, value) in &self.table {
            for (key, value) in value.as_table().into_iter().flatten() {
                let mut alone = defaults.clone();
                let slot = alone.get_mut(section).and_then(Value::as_table_mut).expect("the section exists");
                if slot.insert(key.clone(), value.clone()).as_ref() == Some(value) {
                    continue;
                }
                if let Err(cause) = alone.try_into::<Config>() {
                    return Err(ConfigError::WrongType {
                        source_name: source_name.into(),
                        key: format!("{section}.{key}"),
                        cause: one_line(&format!("the value {value}: {}", cause.message().trim())),
                    });
                }
            }
        }
        Ok(self.table.clone().try_into().expect("every key was tried alone"))
    }

    pub(super) fn finish(self) -> Result<Config, ConfigError> {
        self.typed("the configuration")
    }
}

/// The end of a message about an unknown key.
pub(super) fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |key| format!("; did you mean {key}?"))
}
