//! A model folder as a single file, for transport: an uncompressed zip of its files, with checksums.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::native::{self, Contents, NativeError};

/// A file of a model folder, under its name in the folder, which may be a path.
#[derive(Debug)]
pub struct Part {
    pub name: String,
    pub file: File,
}

/// Writes `parts` one after the other, front to back.
///
/// # Errors
/// If a part cannot be read, or `out` cannot be written.
pub fn pack(parts: Vec<Part>, out: impl Write) -> io::Result<()> {
    // File times are omitted, so that equal models give equal bytes.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    let mut zip = ZipWriter::new_stream(out);
    for Part { name, mut file } in parts {
        zip.start_file(name, options)?;
        io::copy(&mut file, &mut zip)?;
    }
    zip.finish()?.into_inner().flush()
}

/// Whether a file is a packed model, intact or not. A PyTorch checkpoint is also a zip but is not a
/// packed model.
///
/// # Errors
/// If the file cannot be read.
pub fn is_packed(path: &Path) -> io::Result<bool> {
    let archive = ZipArchive::new(BufReader::new(File::open(path)?));
    Ok(archive.is_ok_and(|archive| archive.index_for_name(native::DESCRIPTION).is_some()))
}

/// Reads a packed model; the caller verifies the tensors against architecture and digest.
///
/// # Errors
/// If a part is missing, damaged, malformed, too large or of another format.
pub fn read(path: &Path) -> Result<Contents, NativeError> {
    let file = File::open(path).map_err(|cause| NativeError::Io { path: path.to_owned(), cause })?;
    read_from(path, BufReader::new(file))
}

/// [`read`] for a file that is already open, or in memory; errors name `path`.
///
/// # Errors
/// See [`read`].
pub fn read_from(path: &Path, mut reader: impl Read + Seek) -> Result<Contents, NativeError> {
    let description = read_part_from(path, &mut reader, native::DESCRIPTION, native::DESCRIPTION_BYTES_MAX)?;
    let description = native::parse_description(path, &description)?;
    let tensors = read_part_from(path, &mut reader, native::TENSORS, native::TENSOR_BYTES_MAX)?;
    native::parse(path, description, &tensors)
}

/// The bytes of one part, whose checksum has been verified.
///
/// # Errors
/// If the part is missing, damaged or larger than `bytes_max`.
pub fn read_part(path: &Path, name: &str, bytes_max: u64) -> Result<Vec<u8>, NativeError> {
    let file = File::open(path).map_err(|cause| NativeError::Io { path: path.join(name), cause })?;
    read_part_from(path, BufReader::new(file), name, bytes_max)
}

/// [`read_part`] for a part that may be missing.
///
/// # Errors
/// If the part is damaged or larger than `bytes_max`.
pub fn find_part(path: &Path, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, NativeError> {
    match read_part(path, name, bytes_max) {
        Err(NativeError::Packed { cause: ZipError::FileNotFound, .. }) => Ok(None),
        read => read.map(Some),
    }
}

/// [`read_part`] for a file that is already open, or in memory; errors name `path`.
fn read_part_from(
    path: &Path,
    reader: impl Read + Seek,
    name: &str,
    bytes_max: u64,
) -> Result<Vec<u8>, NativeError> {
    let packed = |cause| NativeError::Packed { path: path.to_owned(), cause };
    let failed = |cause| NativeError::Io { path: path.join(name), cause };
    let mut archive = ZipArchive::new(reader).map_err(packed)?;
    let part = archive.by_name(name).map_err(packed)?;
    let mut bytes = Vec::new();
    part.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(NativeError::TooLarge { path: path.join(name), max: bytes_max });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::weights::family::FeaturePoint;
    use crate::weights::family::transoss::TransOssArchitecture;
    use crate::weights::golden;
    use crate::weights::open::{Hints, OpenModel};
    use crate::weights::seed::seeded;

    fn model() -> OpenModel {
        let architecture = TransOssArchitecture { classes: 0, ..golden::MICRO }.into();
        OpenModel::new(architecture, FeaturePoint::AfterNeck, seeded(&architecture, 3))
    }

    fn packed(folder: &Path) -> Vec<u8> {
        let place = folder.join("model");
        model().save(&place, "test").expect("written");
        let part =
            |name: &str| Part { name: name.to_owned(), file: File::open(place.join(name)).expect("there") };
        let mut bytes = Vec::new();
        pack(vec![part(native::DESCRIPTION), part(native::TENSORS)], &mut bytes).expect("in memory");
        bytes
    }

    fn file(folder: &Path, bytes: &[u8]) -> PathBuf {
        let path = folder.join("model.zip");
        fs::write(&path, bytes).expect("writable");
        path
    }

    #[test]
    fn a_packed_model_is_the_model() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = file(folder.path(), &packed(folder.path()));
        assert!(is_packed(&path).expect("readable"));
        assert_eq!(OpenModel::open(&path, &Hints::default()).expect("a model"), model());
        assert!(!is_packed(&golden::path("ckpt_plain.pth")).expect("readable"));
    }

    #[test]
    fn a_changed_or_shortened_file_is_never_another_model() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bytes = packed(folder.path());
        for at in (0..bytes.len()).step_by(2503).chain((bytes.len() - 300..bytes.len()).step_by(11)) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            for changed in [&flipped[..], &bytes[..at]] {
                let path = file(folder.path(), changed);
                // Some bytes, such as a time, do not affect the model.
                if let Ok(opened) = OpenModel::open(&path, &Hints::default()) {
                    assert!(opened == model(), "byte {at}");
                }
            }
        }
        let path = file(folder.path(), &bytes[..bytes.len() - 1]);
        assert!(OpenModel::open(&path, &Hints::default()).is_err());
    }

    #[test]
    fn a_part_may_not_be_larger_than_expected() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = file(folder.path(), &packed(folder.path()));
        let description = read_part(&path, native::DESCRIPTION, 1000).expect("short");
        let at_most = description.len() as u64;
        assert!(read_part(&path, native::DESCRIPTION, at_most).is_ok());
        let error = read_part(&path, native::DESCRIPTION, at_most - 1).expect_err("too long");
        assert!(matches!(error, NativeError::TooLarge { .. }), "{error}");
        assert_eq!(find_part(&path, native::DESCRIPTION, at_most).expect("short"), Some(description));
        assert_eq!(find_part(&path, "more.toml", 1).expect("a whole file"), None);
    }
}
