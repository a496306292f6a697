//! Names of galleries.

use std::fmt;

/// Name of a gallery: 1 to 64 of a-z, 0-9, "-" and "_", starting with a letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GalleryName(Box<str>);

const NAME_BYTES_MAX: usize = 64;

/// The text is not a valid gallery name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {NAME_BYTES_MAX} of a-z, 0-9, \"-\" and \"_\", starting with a letter")]
pub struct NameError;

impl GalleryName {
    /// # Errors
    /// The text breaks the rule.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        let starts = text.bytes().next().is_some_and(|first| first.is_ascii_lowercase());
        let holds = starts && text.len() <= NAME_BYTES_MAX && text.bytes().all(allowed);
        if holds { Ok(Self(text.into())) } else { Err(NameError) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GalleryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_plain() {
        for name in ["a", "a-b_9", &"z".repeat(64)] {
            assert_eq!(GalleryName::new(name).expect("a name").as_str(), name);
        }
        for name in ["", "9a", "-a", "_a", "A", "a.b", "a/b", "..", "ä", "a b", "a\0", &"z".repeat(65)] {
            assert_eq!(GalleryName::new(name), Err(NameError), "{name:?}");
        }
    }
}
