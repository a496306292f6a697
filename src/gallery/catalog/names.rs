//! Names of galleries and tenants, and the folders that they become.

use std::fmt;
use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Name of a gallery: 1 to 64 of a-z, 0-9, "-" and "_", starting with a letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GalleryName(Box<str>);

const NAME_BYTES_MAX: usize = 64;
/// Longest folder name of a tenant; file systems take 255 bytes.
const FOLDER_BYTES_MAX: usize = 200;

/// A text that names no gallery.
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

/// The folder of a tenant, whatever its name has in it; different tenants have different folders, also where a file
/// system takes capitals for small letters.
pub(super) fn tenant_folder(tenant: &str) -> String {
    let mut folder = String::from("t-");
    for byte in tenant.bytes() {
        if byte.is_ascii_lowercase() || byte.is_ascii_digit() {
            folder.push(char::from(byte));
        } else {
            hexadecimal(&mut folder, &[byte]);
        }
    }
    if folder.len() <= FOLDER_BYTES_MAX {
        return folder;
    }
    let mut folder = String::from("h-");
    hexadecimal(&mut folder, &Sha256::digest(tenant.as_bytes()));
    folder
}

/// Marks each byte, so that it is not read as a letter.
fn hexadecimal(folder: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(folder, "_{byte:02x}").expect("a string has room");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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

    #[test]
    fn different_tenants_have_different_plain_folders() {
        let long = "x".repeat(300);
        let tenants = [
            "",
            "a",
            "A",
            "_41",
            "-41",
            "..",
            "/",
            "a/../b",
            "a.b",
            "ä",
            "\0",
            &long,
            &long[1..],
            "h-",
            "t-",
        ];
        let folders: BTreeSet<String> = tenants.iter().map(|tenant| tenant_folder(tenant)).collect();
        assert_eq!(folders.len(), tenants.len());
        for folder in folders {
            assert!(folder.len() <= FOLDER_BYTES_MAX, "{folder}");
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
            assert!(folder.bytes().all(plain), "{folder}");
        }
    }
}
