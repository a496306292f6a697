//! Chips kept by a gallery, as a data set: a folder of images as they were enrolled, and a list
//! that describes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dataset::{DatasetError, Image};
use crate::chip::{AskedPixelSize, Modality, OrientedBox, PixelSizeRule, SourceChip, View};

/// One JSON object per image, in the same folder as the images.
const LIST: &str = "manifest.jsonl";

/// A line of the list.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    file: String,
    /// The vessel's identifier as given at enrolment.
    identity: String,
    modality: String,
    /// As enrolled; where nothing was stated, the file's own value takes precedence, as in serving.
    pixel_size_m: [Option<f64>; 2],
    /// Column and row of the center, length, width, angle in degrees.
    oriented_box: Option<[f64; 5]>,
    /// SHA-256 over the rest of this line and the image, in hexadecimal digits. Absent in lists of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

/// Writes such a folder.
#[derive(Debug)]
pub struct GalleryDatasetWriter {
    folder: PathBuf,
    list: BufWriter<File>,
    count: usize,
}

/// The images of such a folder, with the names of their identities.
#[derive(Clone, Debug, PartialEq)]
pub struct GalleryDataset {
    images: Vec<Image>,
    /// The index of an image's identity in this list.
    identities: Vec<String>,
}

/// The number of chips of each identity, by name: enough to decide whether a run can learn from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census(BTreeMap<String, Count>);

/// Chips of one identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    optical: u32,
    sar: u32,
}

/// The training images and the held-out ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Division {
    pub train: Vec<Image>,
    /// One image of each held-out identity.
    pub queries: Vec<Image>,
    /// Its other images.
    pub gallery: Vec<Image>,
}

impl Line {
    fn digest(&self, image: &[u8]) -> io::Result<String> {
        let line = serde_json::to_vec(&Self { sha256: None, ..self.clone() })?;
        let digest = Sha256::new().chain_update(line).chain_update(image).finalize();
        Ok(hex::encode(digest))
    }

    /// # Errors
    /// The image cannot be read, or it or this line was modified.
    fn check(&self, folder: &Path) -> Result<(), DatasetError> {
        let Some(expected) = &self.sha256 else { return Ok(()) };
        let path = folder.join(&self.file);
        match fs::read(&path).and_then(|image| self.digest(&image)) {
            Ok(found) if found == *expected => Ok(()),
            Ok(_) => Err(DatasetError::Unreadable {
                path,
                cause: io::Error::other("it is not the chip that was copied: its digest is another one"),
            }),
            Err(cause) => Err(DatasetError::Unreadable { path, cause }),
        }
    }
}

impl GalleryDatasetWriter {
    /// Writes into an empty folder.
    ///
    /// # Errors
    /// If the list cannot be created.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let list = BufWriter::new(File::create_new(folder.join(LIST))?);
        Ok(Self { folder: folder.to_owned(), list, count: 0 })
    }

    /// # Errors
    /// If the chip cannot be written.
    pub fn add(&mut self, identity: &str, chip: &SourceChip) -> io::Result<()> {
        let file = format!("{:08}", self.count);
        fs::write(self.folder.join(&file), &chip.image)?;
        let View { modality, pixel_size, oriented_box } = chip.view;
        let mut line = Line {
            file,
            identity: identity.to_owned(),
            modality: modality.name().to_owned(),
            pixel_size_m: pixel_size.axes(),
            oriented_box: oriented_box.map(|cut| {
                let (x, y) = cut.center();
                [x, y, cut.length(), cut.width(), cut.angle_deg()]
            }),
            sha256: None,
        };
        line.sha256 = Some(line.digest(&chip.image)?);
        serde_json::to_writer(&mut self.list, &line)?;
        self.list.write_all(b"\n")?;
        self.count += 1;
        Ok(())
    }

    /// Returns the number of chips; all of them have been passed to the operating system.
    ///
    /// # Errors
    /// If the list cannot be written.
    pub fn finish(mut self) -> io::Result<usize> {
        self.list.flush()?;
        Ok(self.count)
    }
}

impl GalleryDataset {
    /// Whether a folder appears to be in this format.
    pub fn are_in(folder: &Path) -> bool {
        folder.join(LIST).is_file()
    }

    /// Reads the list and reads every image once to verify that they are unmodified.
    ///
    /// # Errors
    /// If the list or an image cannot be read or was modified, or the list is invalid or empty.
    pub fn read(folder: &Path) -> Result<Self, DatasetError> {
        let path = folder.join(LIST);
        let unreadable = |cause| DatasetError::Unreadable { path: path.clone(), cause };
        let text = fs::read_to_string(&path).map_err(unreadable)?;
        let lines = text.lines().map(serde_json::from_str::<Line>).collect::<Result<Vec<_>, _>>();
        let lines = lines.map_err(|cause| unreadable(cause.into()))?;
        lines.iter().try_for_each(|line| line.check(folder))?;
        let names: BTreeSet<&str> = lines.iter().map(|line| line.identity.as_str()).collect();
        let numbers: BTreeMap<&str, i64> = names.iter().copied().zip(0..).collect();
        let image = |line: &Line| {
            let view = line.view().ok_or_else(|| unreadable(io::ErrorKind::InvalidData.into()))?;
            Ok(Image { path: folder.join(&line.file), identity: numbers[line.identity.as_str()], view })
        };
        let images = lines.iter().map(image).collect::<Result<Vec<_>, DatasetError>>()?;
        if images.is_empty() {
            return Err(DatasetError::Empty(folder.to_owned()));
        }
        Ok(Self { images, identities: names.into_iter().map(str::to_owned).collect() })
    }

    pub fn images(&self) -> &[Image] {
        &self.images
    }

    pub fn census(&self) -> Census {
        let mut census = Census::default();
        self.images
            .iter()
            .for_each(|image| census.add(&self.identities[image.identity as usize], image.modality()));
        census
    }

    /// Holds out the identities of [`Census::held_out`].
    pub fn divide(self, share: f64) -> Division {
        let census = self.census();
        let held = census.held_out(share);
        let mut division = Division::default();
        let mut asked = BTreeSet::new();
        for image in self.images {
            if !held.contains(self.identities[image.identity as usize].as_str()) {
                division.train.push(image);
            } else if asked.insert(image.identity) {
                division.queries.push(image);
            } else {
                division.gallery.push(image);
            }
        }
        division
    }
}

impl Census {
    pub fn add(&mut self, identity: &str, modality: Modality) {
        if !self.0.contains_key(identity) {
            self.0.insert(identity.to_owned(), Count::default());
        }
        if let Some(count) = self.0.get_mut(identity) {
            match modality {
                Modality::Optical => count.optical += 1,
                Modality::Sar => count.sar += 1,
            }
        }
    }

    /// A `share` of the identities with at least two chips, at least one identity if it is above 0. The
    /// selection depends only on their names.
    pub fn held_out(&self, share: f64) -> BTreeSet<&str> {
        let found = self.0.iter().filter(|(_, count)| count.chips() > 1);
        let mut found: Vec<&str> = found.map(|(name, _)| name.as_str()).collect();
        found.sort_by_cached_key(|name| Sha256::digest(name));
        let count = (share * found.len() as f64).ceil() as usize;
        found.into_iter().take(count).collect()
    }

    /// The training identities when a `share` is held out.
    pub fn learned(&self, share: f64) -> Vec<Count> {
        let held = self.held_out(share);
        let learned = self.0.iter().filter(|(name, _)| !held.contains(name.as_str()));
        learned.map(|(_, count)| *count).collect()
    }
}

impl Count {
    pub fn chips(self) -> u32 {
        self.optical + self.sar
    }

    pub fn is_of_both_modalities(self) -> bool {
        self.optical > 0 && self.sar > 0
    }
}

impl Line {
    fn view(&self) -> Option<View> {
        let modality = match self.modality.as_str() {
            "optical" => Modality::Optical,
            "sar" => Modality::Sar,
            _ => return None,
        };
        let [x_m, y_m] = self.pixel_size_m;
        let pixel_size = PixelSizeRule::Asked(AskedPixelSize::new(x_m, y_m).ok()?);
        let cut = self
            .oriented_box
            .map(|[x, y, length, width, angle]| OrientedBox::new(x, y, length, width, angle));
        Some(View { modality, pixel_size, oriented_box: cut.transpose().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn chip(number: u8, modality: Modality) -> SourceChip {
        let view = View {
            modality,
            pixel_size: PixelSizeRule::Asked(AskedPixelSize::new(Some(0.1 + 0.2), None).expect("a size")),
            oriented_box: (number > 0)
                .then(|| OrientedBox::new(1.0 / 3.0, 4.0, 30.0, 10.0, -12.5).expect("a box")),
        };
        SourceChip { image: Bytes::from(vec![number; 3]), view }
    }

    fn written(chips: &[(&str, SourceChip)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut writer = GalleryDatasetWriter::new(folder.path()).expect("writable");
        chips.iter().for_each(|(identity, chip)| writer.add(identity, chip).expect("writable"));
        assert_eq!(writer.finish().expect("writable"), chips.len());
        folder
    }

    #[test]
    fn chips_are_read_as_they_were_enrolled() {
        let chips = [
            ("b \"quoted\"\n", chip(0, Modality::Optical)),
            ("a", chip(1, Modality::Sar)),
            ("b \"quoted\"\n", chip(2, Modality::Sar)),
        ];
        let folder = written(&chips);
        assert!(GalleryDataset::are_in(folder.path()));
        let kept = GalleryDataset::read(folder.path()).expect("readable");
        assert_eq!(kept.identities, ["a", "b \"quoted\"\n"]);
        let images = kept.images();
        assert_eq!(images.iter().map(|image| image.identity).collect::<Vec<_>>(), [1, 0, 1]);
        for (image, (_, chip)) in images.iter().zip(&chips) {
            assert_eq!(image.view, chip.view);
            assert_eq!(fs::read(&image.path).expect("readable"), chip.image);
        }
    }

    #[test]
    fn identities_are_held_out_by_their_names_and_only_where_they_can_be_found_again() {
        let fleet = |ships: &[usize]| {
            let names: Vec<String> = ships.iter().map(|ship| format!("ship {ship}")).collect();
            let one = |name: &String| vec![(name.clone(), chip(1, Modality::Sar)); 3];
            let mut chips: Vec<_> = names.iter().flat_map(one).collect();
            chips.push(("seen once".to_owned(), chip(1, Modality::Sar)));
            let chips: Vec<_> = chips.iter().map(|(name, chip)| (name.as_str(), chip.clone())).collect();
            let kept = GalleryDataset::read(written(&chips).path()).expect("readable");
            let names = kept.identities.clone();
            let division = kept.divide(0.2);
            let held: BTreeSet<String> =
                division.queries.iter().map(|image| names[image.identity as usize].clone()).collect();
            (division, held)
        };
        let (division, held) = fleet(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!((division.train.len(), division.queries.len(), division.gallery.len()), (25, 2, 4));
        assert!(!held.contains("seen once"));
        assert_eq!(fleet(&[3, 9, 0, 7, 1, 8, 2, 6, 4, 5]).1, held);
        let (none, _) = fleet(&[]);
        assert_eq!((none.train.len(), none.queries.len()), (1, 0));
    }

    #[test]
    fn a_census_says_beforehand_what_is_learned_from() {
        let mut census = Census::default();
        for (name, modality) in [("a", Modality::Sar), ("b", Modality::Sar), ("b", Modality::Optical)] {
            census.add(name, modality);
        }
        assert_eq!(census.held_out(0.01), ["b"].into());
        assert_eq!(census.learned(0.01), [Count { optical: 0, sar: 1 }]);
        assert_eq!(census.learned(0.0).iter().map(|count| count.chips()).collect::<Vec<_>>(), [1, 2]);
        let kept: Vec<_> = [("b", 1), ("a", 2), ("b", 3)]
            .map(|(name, number)| {
                (name, chip(number, if number == 1 { Modality::Optical } else { Modality::Sar }))
            })
            .into();
        assert_eq!(GalleryDataset::read(written(&kept).path()).expect("readable").census(), census);
    }

    #[test]
    fn what_is_no_list_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(!GalleryDataset::are_in(folder.path()));
        for text in [
            "",
            "{\"file\": 1}\n",
            "{\"file\":\"0\",\"identity\":\"a\",\"modality\":\"x\",\"pixel_size_m\":[1,1],\"oriented_box\":null}",
        ] {
            fs::write(folder.path().join(LIST), text).expect("writable");
            let error = GalleryDataset::read(folder.path()).expect_err("no list").to_string();
            assert!(error.contains(&folder.path().display().to_string()), "{error}");
        }
    }

    #[test]
    fn whichever_byte_of_kept_chips_is_flipped_no_other_chips_are_learned_from() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut writer = GalleryDatasetWriter::new(folder.path()).expect("writable");
        for (identity, modality) in [("a", Modality::Sar), ("b", Modality::Optical)] {
            let chip = SourceChip { image: vec![7; 5].into(), view: View::plain(modality) };
            writer.add(identity, &chip).expect("writable");
        }
        writer.finish().expect("writable");
        let whole = GalleryDataset::read(folder.path()).expect("readable");
        for file in [LIST, "00000000", "00000001"] {
            let path = folder.path().join(file);
            let bytes = fs::read(&path).expect("readable");
            for place in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[place] ^= 1 << (place % 8);
                fs::write(&path, flipped).expect("writable");
                match GalleryDataset::read(folder.path()) {
                    Ok(found) => assert!(file == LIST && found == whole, "{file}, byte {place}"),
                    Err(cause) => assert!(cause.to_string().contains("0000") || file == LIST, "{cause}"),
                }
            }
            fs::write(&path, bytes).expect("writable");
        }
    }
}
