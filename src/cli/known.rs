//! Metadata of a command's files from a manifest.

use std::fs;
use std::path::Path;

use anyhow::Context;
use shipreid::manifest::{FileNames, Manifest, ManifestEntry};

use super::chips::FoundFile;

/// The manifest entry of each of `files`; empty entries without a manifest.
///
/// # Errors
/// The manifest cannot be read, or one of its lines matches no file.
pub fn known_of(path: Option<&Path>, files: &[FoundFile]) -> anyhow::Result<Vec<ManifestEntry>> {
    let Some(path) = path else { return Ok(vec![ManifestEntry::default(); files.len()]) };
    let place = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(place)?;
    let names: Vec<_> = files.iter().map(|file| FileNames { path: &file.path, name: &file.name }).collect();
    Manifest::parse(&text).and_then(|manifest| manifest.of(&names)).with_context(place)
}
