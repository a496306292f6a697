//! What a folder of images holds beside images.

use std::fmt;
use std::path::Path;

use crate::message::listed;

/// Maximum number of names that a message lists.
const LISTED_MAX: usize = 10;

/// Names of files in a folder that are not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassedOver(Vec<String>);

impl PassedOver {
    pub fn of<P: AsRef<Path>>(paths: &[P]) -> Self {
        let mut names: Vec<String> = paths.iter().map(|path| file_name(path.as_ref())).collect();
        names.sort();
        Self(names)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reports them in the log, if there are any.
    pub fn tell(&self, folder: &Path, why: &str) {
        if !self.is_empty() {
            tracing::warn!(folder = %folder.display(), "{self} passed over: {why}");
        }
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0.len() == 1 { "file" } else { "files" };
        write!(f, "{} {noun} ({})", self.0.len(), listed(&self.0, LISTED_MAX))
    }
}

/// Whether a file is one that systems leave beside others, as macOS does with `._x.tif`.
pub fn is_hidden(path: &Path) -> bool {
    file_name(path).starts_with('.')
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
