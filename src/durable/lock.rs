//! Restricts a data directory to one process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";

/// Held while this process uses a directory; the kernel releases it when the process ends, however that happens.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// A directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{path} is in use by another process{}", pid(.holder))]
    Held { path: PathBuf, holder: String },
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
}

impl DirectoryLock {
    /// Locks `directory`, which must exist.
    ///
    /// # Errors
    /// Another process, or another part of this one, holds the lock, or the lock file cannot be used.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join(LOCK);
        let failed = |cause| LockError::Io { path: path.clone(), cause };
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
            Err(TryLockError::WouldBlock) => {
                // The holder's id is for people to read; the lock does not depend on it.
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(LockError::Held { path: directory.to_owned(), holder: holder.trim().to_owned() });
            }
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn pid(holder: &str) -> String {
    if holder.is_empty() { String::new() } else { format!(" (process {holder})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let lock = DirectoryLock::acquire(directory.path()).expect("free");
        let refused = DirectoryLock::acquire(directory.path()).expect_err("in use").to_string();
        assert!(refused.ends_with(&format!("another process (process {})", std::process::id())), "{refused}");
        drop(lock);
        DirectoryLock::acquire(directory.path()).expect("free again");
    }
}
