//! What a manifest tells of the files of a command.

use std::fs;
use std::path::Path;

use anyhow::Context;
use shipreid::manifest::{FileNames, Manifest, ManifestEntry};

use super::chips::FoundFile;

/// What the manifest at `path` tells of each of `files`; nothing without one.
///
/// # Errors
/// It cannot be read, or a line of it stands for no file.
pub fn known_of(path: Option<&Path>, files: &[FoundFile]) -> anyhow::Result<Vec<ManifestEntry>> {
    let Some(path) = path else { return Ok(vec![ManifestEntry::default(); files.len()]) };
    let place = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(place)?;
    let names: Vec<_> = files.iter().map(|file| FileNames { path: &file.path, name: &file.name }).collect();
    Manifest::parse(&text).and_then(|manifest| manifest.of(&names)).with_context(place)
}
