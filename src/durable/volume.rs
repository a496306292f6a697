//! Where a store keeps its files: a folder, or in tests a disk that fails.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::folder::sync_folder;

/// Named files in one place.
pub trait Volume: fmt::Debug + Send + Sync {
    /// Creates an empty file for a new database.
    ///
    /// # Errors
    /// The file already exists or cannot be created.
    fn create(&self, name: &str) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens the file of an existing database.
    ///
    /// # Errors
    /// The file does not exist, or cannot be read and written.
    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>>;

    /// Makes the next reader see what is on the disk instead of the page cache: after a failed sync, the cache may show
    /// pages as clean that never reached the disk.
    ///
    /// # Errors
    /// The file cannot be opened or synced.
    fn forget(&self, name: &str) -> io::Result<()>;

    /// Checks that there is room for `bytes` more.
    ///
    /// # Errors
    /// There is not enough room, or nothing can be written.
    fn reserve(&self, bytes: u64) -> io::Result<()>;

    /// The content of a file, `None` if it does not exist.
    ///
    /// # Errors
    /// It cannot be opened.
    fn read(&self, name: &str) -> io::Result<Option<Box<dyn Read>>>;

    /// Replaces the file of this name, if there is one, as a whole.
    ///
    /// # Errors
    /// The errors of `content`, or the file cannot be written; the old one then stays.
    fn replace(
        &self,
        name: &str,
        content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()>;
}

/// A folder of the file system.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Volume for Folder {
    fn create(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.0.join(name))?;
        backend(file)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        backend(OpenOptions::new().read(true).write(true).open(self.0.join(name))?)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(self.0.join(name))?;
        file.sync_all()?;
        drop_cached_pages(&file)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let path = self.0.join("room.new");
        let file = File::create(&path)?;
        let reserved = match fallocate(&file, FallocateFlags::empty(), 0, bytes.max(1)) {
            // The next write will then report it.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            reserved => reserved.map_err(io::Error::from),
        };
        fs::remove_file(&path)?;
        reserved
    }

    fn read(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        match File::open(self.0.join(name)) {
            Ok(file) => Ok(Some(Box::new(BufReader::with_capacity(BUFFER_BYTES, file)))),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    fn replace(
        &self,
        name: &str,
        content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let temporary = self.0.join(format!("{name}.new"));
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(&temporary)?);
        content(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, self.0.join(name))?;
        sync_folder(&self.0)
    }
}

const BUFFER_BYTES: usize = 1 << 20;

fn backend(file: File) -> io::Result<Box<dyn StorageBackend>> {
    Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
}

#[cfg(target_os = "linux")]
fn drop_cached_pages(file: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for as long as `file` lives; the call does not access our memory.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(not(target_os = "linux"))]
fn drop_cached_pages(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(volume: &Folder, name: &str) -> Option<String> {
        let mut text = String::new();
        volume.read(name).expect("readable")?.read_to_string(&mut text).expect("readable");
        Some(text)
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_or_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let volume = Folder(folder.path().to_owned());
        assert_eq!(text(&volume, "codes"), None);
        volume.replace("codes", &mut |file| file.write_all(b"one")).expect("writable");
        let failed = volume.replace("codes", &mut |file| {
            file.write_all(b"tw")?;
            Err(io::Error::other("no more"))
        });
        assert!(failed.is_err());
        assert_eq!(text(&volume, "codes").as_deref(), Some("one"));
        volume.replace("codes", &mut |file| file.write_all(b"three")).expect("writable");
        assert_eq!(text(&volume, "codes").as_deref(), Some("three"));
    }
}
