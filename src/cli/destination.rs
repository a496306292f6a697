//! Files that a command writes to paths given by the user. An existing file is kept, unless --force is given.

use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Cursor, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use image::{ImageFormat, RgbImage};
use tempfile::Builder;

use super::Refusal;

/// The mode of a new file, before the umask of the process is applied.
const NEW_FILE: u32 = 0o666;

/// Whether a file may be replaced.
#[derive(Args)]
pub struct ForceFlag {
    /// Replaces what already exists.
    #[arg(long)]
    force: bool,
}

impl ForceFlag {
    pub fn is_given(&self) -> bool {
        self.force
    }

    /// Checks, before the work, whether its result may be written to `path`.
    ///
    /// # Errors
    /// The path is a folder, or a file that may not be replaced.
    pub fn check(&self, path: &Path) -> Result<(), Refusal> {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                Err(Refusal(format!("{} is a folder: name a file", path.display())))
            }
            Ok(found) if found.is_file() && !self.force => Err(taken(path)),
            _ => Ok(()),
        }
    }

    /// Like `check`, for a file that is written next to its path and then renamed, which is not possible for devices
    /// and pipes.
    ///
    /// # Errors
    /// Those of `check`, or the path is something other than a file.
    pub fn check_file(&self, path: &Path) -> Result<(), Refusal> {
        self.check(path)?;
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => {
                Err(Refusal(format!("{} is a device or a pipe: name a file", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// Lets `fill` write to `path`, which changes only once everything is written.
    ///
    /// # Errors
    /// The file may not be replaced or cannot be written.
    pub fn write(
        &self,
        path: &Path,
        fill: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.check(path)?;
        let named = || path.display().to_string();
        // The target of a link is replaced, not the link.
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if fs::metadata(&place).is_ok_and(|found| !found.is_file()) {
            // A device or a pipe, which cannot be replaced by a file.
            let mut out = BufWriter::new(File::options().write(true).open(&place).with_context(named)?);
            fill(&mut out)?;
            return out.flush().with_context(named);
        }
        let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty());
        let partial = Builder::new()
            .permissions(Permissions::from_mode(NEW_FILE))
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .with_context(named)?;
        let mut out = BufWriter::new(partial.reopen().with_context(named)?);
        fill(&mut out)?;
        out.flush().with_context(named)?;
        let kept = if self.force { partial.persist(&place) } else { partial.persist_noclobber(&place) };
        match kept {
            Ok(_) => Ok(()),
            Err(cause) if cause.error.kind() == ErrorKind::AlreadyExists => Err(taken(path).into()),
            Err(cause) => Err(cause.error).with_context(named),
        }
    }

    /// Writes a text or other bytes.
    ///
    /// # Errors
    /// The file may not be replaced or cannot be written.
    pub fn write_bytes(&self, path: &Path, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        self.write(path, |out| Ok(out.write_all(bytes.as_ref())?))
    }

    /// Writes a picture in the format given by the file's extension.
    ///
    /// # Errors
    /// The file may not be replaced or cannot be written, or its extension is not a known format.
    pub fn write_picture(&self, path: &Path, picture: &RgbImage) -> anyhow::Result<()> {
        let format = ImageFormat::from_path(path).with_context(|| path.display().to_string())?;
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format)?;
        self.write_bytes(path, bytes.into_inner())
    }
}

/// Checks a folder that a command fills.
///
/// # Errors
/// The folder is not empty.
pub fn check_unused(folder: &Path) -> Result<(), Refusal> {
    let used = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if used || folder.is_file() {
        return Err(Refusal(format!(
            "{} is not an empty folder: name a new or an empty one",
            folder.display()
        )));
    }
    Ok(())
}

fn taken(path: &Path) -> Refusal {
    Refusal(format!("{} already exists: name another file, or replace it with --force", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: ForceFlag = ForceFlag { force: false };
    const REPLACE: ForceFlag = ForceFlag { force: true };

    fn text(path: &Path) -> String {
        fs::read_to_string(path).expect("a file")
    }

    #[test]
    fn a_file_is_replaced_only_where_that_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("report.html");
        KEEP.write_bytes(&file, "first").expect("a new file");
        let refused = KEEP.write_bytes(&file, "second").expect_err("it is there").to_string();
        assert!(refused.contains("report.html already exists") && refused.contains("--force"), "{refused}");
        assert_eq!(text(&file), "first");
        REPLACE.write_bytes(&file, "third").expect("it may be replaced");
        assert_eq!(text(&file), "third");
        assert!(REPLACE.write_bytes(folder.path(), "a folder").is_err());
    }

    #[test]
    fn what_fails_on_the_way_leaves_what_was_there_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("report.html");
        REPLACE.write_bytes(&file, "first").expect("a new file");
        let failed = REPLACE.write(&file, |out| {
            out.write_all(b"half")?;
            anyhow::bail!("no more")
        });
        assert!(failed.is_err());
        assert_eq!(text(&file), "first");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn a_device_is_written_to_and_stays_one() {
        KEEP.write_bytes(Path::new("/dev/null"), "nothing").expect("a device");
        assert!(!fs::metadata("/dev/null").expect("it stays").is_file());
        let refused = REPLACE.check_file(Path::new("/dev/null")).expect_err("no file").to_string();
        assert!(refused.contains("/dev/null is a device"), "{refused}");
    }

    #[test]
    fn a_link_stays_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "first").expect("a file");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        assert!(KEEP.write_bytes(&link, "second").is_err());
        REPLACE.write_bytes(&link, "second").expect("it may be replaced");
        assert!(fs::symlink_metadata(&link).expect("it stays").is_symlink());
        assert_eq!(text(&file), "second");
    }

    #[test]
    fn a_folder_is_filled_once() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(check_unused(folder.path()).is_ok() && check_unused(&folder.path().join("new")).is_ok());
        fs::write(folder.path().join("file"), "").expect("a file");
        assert!(check_unused(folder.path()).is_err());
        assert!(check_unused(&folder.path().join("file")).is_err());
    }
}
