//! A short identifier of a data set: the same files give the same one wherever they are stored.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::dataset::{Image, Pair};
use super::inputs::DataSet;

/// The part of a file's path that counts as its name: the folder determines which part of a data
/// set it belongs to.
const NAME_PARTS: usize = 2;
const PIECE_BYTES: usize = 64 << 10;

/// SHA-256 over the names, identities and contents of all training images, as `sha256:` and 64
/// hexadecimal digits.
///
/// # Errors
/// If a file cannot be read; the error names it.
pub fn fingerprint(data: &DataSet) -> io::Result<String> {
    match data {
        DataSet::Identities(source) => fingerprint_of(source.images()),
        DataSet::Pairs(source) => {
            fingerprint_of(source.pairs().iter().flat_map(|Pair { optical, sar }| [optical, sar]))
        }
    }
}

/// [`fingerprint`] of images.
///
/// # Errors
/// If a file cannot be read; the error names it.
pub fn fingerprint_of<'i>(images: impl IntoIterator<Item = &'i Image>) -> io::Result<String> {
    let mut images: Vec<&Image> = images.into_iter().collect();
    images.sort_by_cached_key(|image| name(&image.path));
    let mut hash = Sha256::new();
    for Image { path, identity, .. } in images {
        let named = |cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", path.display()));
        let content = content(path).map_err(named)?;
        hash.update(name(path).as_os_str().as_encoded_bytes());
        // Names contain no zero byte, so different lists of images give different bytes.
        hash.update([0]);
        hash.update(identity.to_le_bytes());
        hash.update(content);
    }
    Ok(format!("sha256:{}", hex::encode(hash.finalize())))
}

fn name(file: &Path) -> PathBuf {
    let parts: Vec<_> = file.components().rev().take(NAME_PARTS).collect();
    parts.into_iter().rev().collect()
}

/// The hash of a file, computed in constant memory.
fn content(file: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hash) = (File::open(file)?, Sha256::new());
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&piece[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::dataset::{HossPart, hoss};
    use super::super::shard::Shard;
    use super::super::source::{IdentitySource, ImageReader};
    use super::*;
    use crate::chip::{ChipSize, Preprocessing};

    const FOLDER: &str = "bounding_box_train";

    fn data(root: &Path) -> DataSet {
        let images = hoss(root, HossPart::Train).expect("a data set");
        let preprocessing = Preprocessing::reference(ChipSize { height: 16, width: 16 });
        let reader = ImageReader::new(preprocessing, Default::default(), 0);
        DataSet::Identities(IdentitySource::new(images, 4, 2, Shard::default(), reader).expect("batches"))
    }

    fn write(root: &Path, name: &str, content: &str) {
        fs::create_dir_all(root.join(FOLDER)).expect("writable");
        fs::write(root.join(FOLDER).join(name), content).expect("writable");
    }

    #[test]
    fn a_fingerprint_depends_on_every_name_and_byte_and_not_on_the_place() {
        let places = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let roots = places.each_ref().map(|place| place.path());
        for root in roots {
            for ship in 1..=2 {
                for (modality, content) in [("RGB", "optical"), ("SAR", "radar")] {
                    write(root, &format!("000{ship}_s1c1_{modality}.tif"), content);
                }
            }
        }
        let of = |root: &Path| fingerprint(&data(root)).expect("readable");
        let whole = of(roots[0]);
        assert!(whole.starts_with("sha256:") && whole.len() == 71, "{whole}");
        assert_eq!(of(roots[1]), whole);

        write(roots[1], "0002_s1c1_SAR.tif", "raddr");
        assert_ne!(of(roots[1]), whole);
        write(roots[1], "0002_s1c1_SAR.tif", "radar");
        assert_eq!(of(roots[1]), whole);
        let folder = roots[1].join(FOLDER);
        fs::rename(folder.join("0002_s1c1_SAR.tif"), folder.join("0002_s2c1_SAR.tif")).expect("renamed");
        assert_ne!(of(roots[1]), whole);

        let known = data(roots[0]);
        fs::remove_file(roots[0].join(FOLDER).join("0001_s1c1_RGB.tif")).expect("removed");
        let gone = fingerprint(&known).expect_err("a file is gone");
        assert!(gone.to_string().contains("0001_s1c1_RGB.tif"), "{gone}");
    }
}
