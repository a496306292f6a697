//! Folders that are whole or absent, also after a power failure.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes `files` into a new folder: beside its place first, then synced, then renamed.
///
/// # Errors
/// The folder exists, or something cannot be written; then nothing stays behind.
pub fn write_folder(folder: &Path, files: &[(&str, &[u8])]) -> io::Result<()> {
    let parent = parent_of(folder);
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let partial = parent.join(format!("{PARTIAL}{name}-{}", std::process::id()));
    let written = fs::create_dir(&partial)
        .and_then(|()| files.iter().try_for_each(|(name, bytes)| write_file(&partial.join(name), bytes)))
        .and_then(|()| File::open(&partial)?.sync_all())
        .and_then(|()| fs::rename(&partial, folder))
        .and_then(|()| File::open(parent)?.sync_all());
    if written.is_err() {
        // What is left of a failed attempt is of no use; that it cannot be removed changes nothing.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

/// Removes what writers that were killed have left in `parent`.
///
/// # Errors
/// The folder cannot be read or something in it not removed.
pub fn remove_partial(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path: PathBuf = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL)) {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

const PARTIAL: &str = ".partial-";

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn parent_of(folder: &Path) -> &Path {
    folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
