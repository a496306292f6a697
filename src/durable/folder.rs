//! Folders that are whole or absent, even after a power failure.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes `files` into a new folder: first next to its final path, then synced, then renamed. A file's name may be a path
/// in the folder.
///
/// # Errors
/// The folder exists, or something cannot be written. Nothing is left behind then.
pub fn write_folder(folder: &Path, files: &[(&str, &[u8])]) -> io::Result<()> {
    let partial = PartialFolder::new(folder)?;
    let mut inner = BTreeSet::new();
    for (name, bytes) in files {
        let path = partial.path().join(name);
        let parents = path.ancestors().skip(1).take_while(|parent| *parent != partial.path());
        inner.extend(parents.map(Path::to_owned));
        fs::create_dir_all(parent_of(&path))?;
        write_file(&path, bytes)?;
    }
    inner.iter().try_for_each(|folder| sync_folder(folder))?;
    partial.publish()
}

/// A folder that is not yet at its final path. Dropped before it is published, it leaves nothing behind.
#[derive(Debug)]
pub struct PartialFolder {
    partial: PathBuf,
    folder: PathBuf,
    published: bool,
}

impl PartialFolder {
    /// Creates an empty folder next to `folder`. The caller syncs the files that it writes there.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let partial = beside(folder, "new");
        fs::create_dir(&partial)?;
        Ok(Self { partial, folder: folder.to_owned(), published: false })
    }

    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Moves the folder to its final path.
    ///
    /// # Errors
    /// A non-empty folder is at that path, or the folder cannot be renamed or synced.
    pub fn publish(mut self) -> io::Result<()> {
        sync_folder(&self.partial)?;
        fs::rename(&self.partial, &self.folder)?;
        self.published = true;
        sync_folder(parent_of(&self.folder))
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        if !self.published {
            // The rest of a failed attempt is useless; failing to remove it changes nothing.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Creates a folder if it is missing; its name is durable then.
///
/// # Errors
/// It cannot be created or synced.
pub fn ensure_folder(folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        fs::create_dir(folder)?;
        sync_folder(parent_of(folder))?;
    }
    Ok(())
}

/// Removes a folder with everything in it. Once this returns, it stays gone even after a power failure.
///
/// # Errors
/// The folder cannot be moved away. What cannot be removed after that is left to [`remove_partial`].
pub fn discard_folder(folder: &Path) -> io::Result<()> {
    let partial = beside(folder, "gone");
    fs::rename(folder, &partial)?;
    sync_folder(parent_of(folder))?;
    if let Err(cause) = fs::remove_dir_all(&partial) {
        tracing::warn!(path = %partial.display(), %cause, "a deleted folder cannot be removed now");
    }
    Ok(())
}

/// Removes what killed writers and removers have left in `parent`.
///
/// # Errors
/// The folder cannot be read, or something in it cannot be removed.
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

/// A unique path next to `folder` that [`remove_partial`] recognises.
fn beside(folder: &Path, purpose: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    parent_of(folder).join(format!("{PARTIAL}{name}-{purpose}-{}-{count}", std::process::id()))
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn parent_of(folder: &Path) -> &Path {
    folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("readable");
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_folder_is_whole_or_absent() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let folder = parent.path().join("a");
        let partial = PartialFolder::new(&folder).expect("writable");
        fs::write(partial.path().join("x"), b"x").expect("writable");
        drop(partial);
        assert!(names(parent.path()).is_empty());
        write_folder(&folder, &[("x", b"1"), ("y/0/z", b"2")]).expect("writable");
        assert_eq!(fs::read(folder.join("y/0/z")).expect("written"), b"2");
        assert!(write_folder(&folder, &[("x", b"2")]).is_err());
        assert_eq!(fs::read(folder.join("x")).expect("written"), b"1");
        assert_eq!(names(parent.path()), ["a"]);
        discard_folder(&folder).expect("removable");
        assert!(names(parent.path()).is_empty());
    }

    #[test]
    fn what_the_killed_left_behind_is_removed() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let partial = PartialFolder::new(&parent.path().join("a")).expect("writable");
        std::mem::forget(partial);
        fs::create_dir(parent.path().join("kept")).expect("writable");
        remove_partial(parent.path()).expect("removable");
        assert_eq!(names(parent.path()), ["kept"]);
    }
}
