//! Which galleries a server holds, where several servers share galleries: patterns of their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Galleries of every tenant (`NAME`), or of those that a pattern admits (`TENANT/NAME`). In both, `*` stands for any
/// characters, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GalleryPattern {
    /// `None`: every tenant.
    tenant: Option<String>,
    name: String,
}

/// The galleries that one server holds.
#[derive(Clone, Debug, Default)]
pub struct Holding(Vec<GalleryPattern>);

impl GalleryPattern {
    /// Whether galleries of the tenant may be among them.
    pub fn admits(&self, tenant: &str) -> bool {
        self.tenant.as_ref().is_none_or(|pattern| matches(pattern, tenant))
    }

    fn has(&self, tenant: &str, name: &str) -> bool {
        self.admits(tenant) && matches(&self.name, name)
    }
}

impl Holding {
    /// What any of the patterns admits; without patterns, every gallery.
    pub fn new(patterns: Vec<GalleryPattern>) -> Self {
        Self(patterns)
    }

    pub fn has(&self, tenant: &str, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.has(tenant, name))
    }
}

/// Whether `text` is `pattern` with something in place of each `*`.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let (between, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut left) = text.strip_prefix(first).and_then(|text| text.strip_suffix(last)) else {
        return false;
    };
    between.split('*').all(|piece| {
        let found = left.split_once(piece);
        left = found.map_or("", |(_, after)| after);
        found.is_some()
    })
}

impl FromStr for GalleryPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tenant, name) = text.split_once('/').map_or((None, text), |(tenant, name)| (Some(tenant), name));
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || [b'-', b'_', b'*'].contains(&byte)
        };
        let is_pattern = |text: &str| !text.is_empty() && text.bytes().all(allowed);
        if !is_pattern(name) || !tenant.is_none_or(is_pattern) {
            return Err(format!(
                "{text:?} is no pattern of galleries: write NAME or TENANT/NAME of a-z, 0-9, \"-\" and \"_\", with * for any characters"
            ));
        }
        Ok(Self { tenant: tenant.map(str::to_owned), name: name.to_owned() })
    }
}

impl TryFrom<String> for GalleryPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<GalleryPattern> for String {
    fn from(pattern: GalleryPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for GalleryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tenant {
            Some(tenant) => write!(f, "{tenant}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(patterns: &str) -> Holding {
        Holding::new(patterns.split_whitespace().map(|pattern| pattern.parse().expect("a pattern")).collect())
    }

    #[test]
    fn a_server_holds_what_one_of_its_patterns_admits() {
        for (patterns, tenant, name, holds) in [
            ("", "acme", "harbour", true),
            ("harbour", "acme", "harbour", true),
            ("harbour", "acme", "harbour-2", false),
            ("harbour*", "acme", "harbour-2", true),
            ("harbour*", "acme", "harbour", true),
            ("*-2025", "acme", "strait-2025", true),
            ("*-2025", "acme", "strait-2025-b", false),
            ("a*a", "acme", "a", false),
            ("a*b*b", "acme", "axb", false),
            ("a*b*b", "acme", "axbxb", true),
            ("*a*b*", "acme", "xbxax", false),
            ("acme/*", "acme", "harbour", true),
            ("acme/*", "other", "harbour", false),
            ("ac*/h*", "acme", "harbour", true),
            ("ac*/h*", "acme", "strait", false),
            ("strait acme/harbour", "acme", "harbour", true),
            ("strait acme/harbour", "other", "harbour", false),
            ("strait acme/harbour", "other", "strait", true),
        ] {
            assert_eq!(holding(patterns).has(tenant, name), holds, "{patterns:?} {tenant}/{name}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for text in ["", "Harbour", "a b", "a/b/c", "/a", "a/", "har?our", "[a-c]", "ä", "a,b"] {
            let cause = text.parse::<GalleryPattern>().expect_err("no pattern");
            assert!(cause.starts_with(&format!("{text:?} is no pattern")), "{cause}");
        }
    }

    #[test]
    fn a_pattern_is_written_as_it_was_read() {
        for text in ["harbour", "acme/*", "*/h*r"] {
            assert_eq!(text.parse::<GalleryPattern>().expect("a pattern").to_string(), text);
        }
    }
}
