//! Metadata of a command's files from a manifest.

use std::path::Path;

use anyhow::bail;
use shipreid::manifest::{FileNames, Manifest, ManifestEntry};

use super::Refusal;
use super::chips::{FoundFile, contents, is_standard_input, unreadable};

/// The manifest entry of each of `files`; empty entries without a manifest.
///
/// # Errors
/// The manifest cannot be read, or one of its lines matches no file.
pub fn known_of(path: Option<&Path>, files: &[FoundFile]) -> anyhow::Result<Vec<ManifestEntry>> {
    let Some(path) = path else { return Ok(vec![ManifestEntry::default(); files.len()]) };
    if is_standard_input(path) && files.iter().any(|file| is_standard_input(&file.path)) {
        bail!(Refusal("an image and the manifest cannot both be read from standard input".to_owned()));
    }
    let text = contents(path).map_err(|cause| unreadable(path, &cause))?;
    let text = String::from_utf8(text).map_err(|_| Refusal(format!("{} is not UTF-8", path.display())))?;
    let names: Vec<_> = files.iter().map(|file| FileNames { path: &file.path, name: &file.name }).collect();
    let known = Manifest::parse(&text).and_then(|manifest| manifest.of(&names));
    Ok(known.map_err(|cause| Refusal(format!("{}: {cause}", path.display())))?)
}
