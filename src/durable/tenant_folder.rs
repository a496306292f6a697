//! Folders of tenants.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Longest folder name of a tenant; file systems allow 255 bytes.
const FOLDER_BYTES_MAX: usize = 200;

/// The folder of a tenant, for any name. Different tenants have different folders, even on case-insensitive file
/// systems.
pub fn tenant_folder(tenant: &str) -> String {
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

/// Marks each escaped byte, so that it is not read as a letter.
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
