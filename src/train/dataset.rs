//! Data sets as folders in the layouts of HOSS and OptiSar_Pair; file names describe the images.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::chip::{Modality, View};
use crate::folder::{PassedOver, is_hidden};

/// A file, the ship in it, and how to interpret it.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub path: PathBuf,
    /// As in the file name; -1 is a distractor of HOSS.
    pub identity: i64,
    pub view: View,
}

impl Image {
    /// A whole image whose pixels have the default size of its modality.
    pub fn plain(path: PathBuf, identity: i64, modality: Modality) -> Self {
        Self { path, identity, view: View::reference(modality) }
    }

    pub fn modality(&self) -> Modality {
        self.view.modality
    }

    /// `None` for a distractor, which is a ship of its own.
    pub fn known_identity(&self) -> Option<i64> {
        (self.identity >= 0).then_some(self.identity)
    }
}

/// An optical image and a SAR image of one ship.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    pub optical: Image,
    pub sar: Image,
}

/// The parts of a HOSS folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HossPart {
    Train,
    Query,
    Gallery,
}

/// Why a folder is not a data set.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("{path}: {cause}")]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{0} has no identity in its name")]
    NoIdentity(PathBuf),
    #[error("{0} holds no image in the layout that was expected")]
    Empty(PathBuf),
    #[error("{folder} holds no image in the layout that was expected, but {others}")]
    OthersOnly { folder: PathBuf, others: PassedOver },
}

impl DatasetError {
    fn no_image(folder: &Path, others: PassedOver) -> Self {
        let folder = folder.to_owned();
        if others.is_empty() { Self::Empty(folder) } else { Self::OthersOnly { folder, others } }
    }
}

impl HossPart {
    fn folder(self) -> &'static str {
        match self {
            Self::Train => "bounding_box_train",
            Self::Query => "query",
            Self::Gallery => "bounding_box_test",
        }
    }
}

/// The `.tif` files of one part, ordered by path; the log names other files. A name is `IDENTITY_..._RGB.tif`; any
/// suffix other than RGB means SAR.
///
/// # Errors
/// If the folder cannot be read or is empty, or a name contains no identity.
pub fn hoss(root: &Path, part: HossPart) -> Result<Vec<Image>, DatasetError> {
    let folder = root.join(part.folder());
    let (images, passed_over) = hoss_images(&folder)?;
    passed_over.tell(&folder, OTHER_NAMES);
    Ok(images)
}

/// Whether a folder has the layout of HOSS.
pub fn is_hoss(root: &Path) -> bool {
    root.join(HossPart::Train.folder()).is_dir()
}

/// The class of each image: the index of its identity among all identities, ascending.
///
/// The reference numbers classes in another order. This only permutes the rows of a classifier that
/// is never read again.
pub fn classes(images: &[Image]) -> Vec<i64> {
    let identities: BTreeMap<i64, i64> = images.iter().map(|image| (image.identity, 0)).collect();
    let classes: BTreeMap<i64, i64> = identities.into_keys().zip(0..).collect();
    images.iter().map(|image| classes[&image.identity]).collect()
}

/// Every optical image of a HOSS part paired with every SAR image of the same ship, ordered by path; the log names
/// images without a partner.
pub fn hoss_pairs(images: &[Image]) -> Vec<Pair> {
    let named = images.iter().filter(|image| ends_in(&image.path, &["RGB.tif", "SAR.tif"]));
    let pairs = pairs(named.cloned().collect());
    let folder = images.first().and_then(|image| image.path.parent()).unwrap_or(Path::new(""));
    unpaired(images, &pairs).tell(folder, NO_PARTNER);
    pairs
}

/// The pairs of an OptiSar_Pair folder. Among `FOLDER/X_IDENTITY_..._{RGB,SAR}.{tif,png}`, every optical
/// image is paired with every SAR image of the same identity, also across folders. The log names images without a
/// partner, and files with other names.
///
/// # Errors
/// If a folder cannot be read, a name contains no identity, or there is no pair.
pub fn optisar_pairs(root: &Path) -> Result<Vec<Pair>, DatasetError> {
    let (images, passed_over) = optisar_images(root)?;
    let pairs = pairs(images.clone());
    if pairs.is_empty() {
        return Err(DatasetError::no_image(root, passed_over));
    }
    passed_over.tell(root, OTHER_NAMES);
    unpaired(&images, &pairs).tell(root, NO_PARTNER);
    Ok(pairs)
}

/// Splits off the last folders of a pair set, a `share` of all, at least one if it is above 0:
/// (left, held out).
///
/// Whole folders, since tiles of one scene resemble each other. A pair across folders belongs to
/// its optical image's folder.
pub fn hold_out(pairs: Vec<Pair>, share: f64) -> (Vec<Pair>, Vec<Pair>) {
    let folder = |pair: &Pair| pair.optical.path.parent().map(Path::to_owned).unwrap_or_default();
    let folders: BTreeSet<PathBuf> = pairs.iter().map(folder).collect();
    let count = (share * folders.len() as f64).ceil() as usize;
    let held: BTreeSet<PathBuf> = folders.into_iter().rev().take(count).collect();
    pairs.into_iter().partition(|pair| !held.contains(&folder(pair)))
}

const OPTICAL_ENDS: [&str; 2] = ["RGB.tif", "RGB.png"];
const SAR_ENDS: [&str; 2] = ["SAR.tif", "SAR.png"];

const OTHER_NAMES: &str = "their names are not those of the layout, which are told apart by case";
const NO_PARTNER: &str = "no image of the other sensor shows the same ship";

fn hoss_images(folder: &Path) -> Result<(Vec<Image>, PassedOver), DatasetError> {
    let is_image = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tif");
    let (named, others): (Vec<_>, Vec<_>) = files_in(folder)?.into_iter().partition(is_image);
    let passed_over = PassedOver::of(&others);
    let mut images = named.into_iter().map(hoss_image).collect::<Result<Vec<_>, _>>()?;
    images.sort_by(|a, b| a.path.cmp(&b.path));
    if images.is_empty() {
        return Err(DatasetError::no_image(folder, passed_over));
    }
    Ok((images, passed_over))
}

fn optisar_images(root: &Path) -> Result<(Vec<Image>, PassedOver), DatasetError> {
    let (folders, mut others): (Vec<_>, Vec<_>) = files_in(root)?.into_iter().partition(|path| path.is_dir());
    let mut images = Vec::new();
    for folder in folders {
        let is_image = |path: &PathBuf| ends_in(path, &OPTICAL_ENDS) || ends_in(path, &SAR_ENDS);
        let (named, unnamed): (Vec<_>, Vec<_>) = files_in(&folder)?.into_iter().partition(is_image);
        images.extend(named.into_iter().map(optisar_image).collect::<Result<Vec<_>, _>>()?);
        others.extend(unnamed);
    }
    Ok((images, PassedOver::of(&others)))
}

fn hoss_image(path: PathBuf) -> Result<Image, DatasetError> {
    let name = file_name(&path);
    let identity = name.split('_').next().and_then(|field| field.parse().ok());
    let modality = match name.rsplit('_').next() {
        Some("RGB.tif") => Modality::Optical,
        _ => Modality::Sar,
    };
    let identity = identity.ok_or_else(|| DatasetError::NoIdentity(path.clone()))?;
    Ok(Image::plain(path, identity, modality))
}

fn optisar_image(path: PathBuf) -> Result<Image, DatasetError> {
    let identity = file_name(&path).split('_').nth(1).and_then(|field| field.parse().ok());
    let identity = identity.ok_or_else(|| DatasetError::NoIdentity(path.clone()))?;
    let modality = if ends_in(&path, &OPTICAL_ENDS) { Modality::Optical } else { Modality::Sar };
    Ok(Image::plain(path, identity, modality))
}

/// Every optical image paired with every SAR image of the same identity, ordered by path.
pub(super) fn pairs(mut images: Vec<Image>) -> Vec<Pair> {
    images.sort_by(|a, b| a.path.cmp(&b.path));
    let (optical, sar): (Vec<_>, Vec<_>) =
        images.into_iter().partition(|image| image.modality() == Modality::Optical);
    let partners = |optical: &Image| {
        let identity = optical.identity;
        sar.iter().filter(move |sar| sar.identity == identity).cloned().collect::<Vec<_>>()
    };
    let each = optical.into_iter().flat_map(|optical| {
        partners(&optical).into_iter().map(move |sar| Pair { optical: optical.clone(), sar })
    });
    each.collect()
}

/// Images of `images` that are in none of `pairs`.
fn unpaired(images: &[Image], pairs: &[Pair]) -> PassedOver {
    let paired: BTreeSet<&Path> =
        pairs.iter().flat_map(|pair| [&*pair.optical.path, &*pair.sar.path]).collect();
    let alone = images.iter().map(|image| &image.path).filter(|path| !paired.contains(path.as_path()));
    PassedOver::of(&alone.cloned().collect::<Vec<_>>())
}

/// Files and folders, without hidden ones.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let failed = |cause| DatasetError::Unreadable { path: folder.to_owned(), cause };
    let entries = fs::read_dir(folder).map_err(failed)?;
    let paths = entries.map(|entry| Ok(entry.map_err(failed)?.path()));
    paths.filter(|path| !path.as_ref().is_ok_and(|path| is_hidden(path))).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn ends_in(path: &Path, ends: &[&str]) -> bool {
    let name = file_name(path);
    ends.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::Value;

    use super::*;
    use crate::weights::golden;

    fn listing() -> Value {
        serde_json::from_slice(&golden::bytes("dataset_listing.json")).expect("recorded")
    }

    /// Empty files with the recorded names.
    fn folder(files: &Value) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (folder, names) in files.as_object().expect("folders") {
            fs::create_dir(root.path().join(folder)).expect("writable");
            for name in names.as_array().expect("names") {
                fs::write(root.path().join(folder).join(name.as_str().expect("text")), b"")
                    .expect("writable");
            }
        }
        root
    }

    fn row(root: &Path, image: &Image, label: i64) -> Value {
        let path = image.path.strip_prefix(root).expect("inside").to_str().expect("text");
        serde_json::json!([path, label, i64::from(image.modality() == Modality::Sar)])
    }

    fn pair_rows(root: &Path, pairs: &[Pair]) -> Value {
        let rows = pairs.iter().map(|Pair { optical, sar }| {
            serde_json::json!([row(root, optical, optical.identity), row(root, sar, sar.identity)])
        });
        rows.collect()
    }

    #[test]
    fn hoss_names_are_read_as_recorded() {
        let listing = &listing()["hoss"];
        let root = folder(&listing["files"]);
        let root = root.path();
        for (part, name) in [(HossPart::Query, "query"), (HossPart::Gallery, "gallery")] {
            let images = hoss(root, part).expect("images");
            let rows: Value = images.iter().map(|image| row(root, image, image.identity)).collect();
            assert_eq!(rows, listing[name]);
        }
        let train = hoss(root, HossPart::Train).expect("images");
        let (classes, expected) = (classes(&train), listing["train"].as_array().expect("rows"));
        assert_eq!(train.len(), expected.len());
        let mut renumbered = HashMap::new();
        for ((image, class), expected) in train.iter().zip(&classes).zip(expected) {
            let recorded = expected[1].as_i64().expect("a label");
            assert_eq!(*renumbered.entry(*class).or_insert(recorded), recorded);
            assert_eq!(row(root, image, recorded), *expected);
        }
        assert_eq!(renumbered.len() as u64, listing["num_classes"].as_u64().expect("a number"));
        assert_eq!(pair_rows(root, &hoss_pairs(&train)), listing["train_pair"]);
    }

    #[test]
    fn pretraining_pairs_are_the_recorded_ones() {
        let listing = &listing()["pretrain"];
        let root = folder(&listing["files"]);
        let pairs = optisar_pairs(root.path()).expect("pairs");
        assert_eq!(pair_rows(root.path(), &pairs), listing["pairs"]);
    }

    #[test]
    fn hidden_files_are_no_part_of_a_data_set_and_others_are_counted_by_name() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path();
        let touch = |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
            fs::write(path, b"").expect("writable");
        };
        for name in ["query/1_RGB.tif", "query/2_SAR.tif", "query/._1_RGB.tif", "query/.DS_Store"] {
            touch(name);
        }
        for name in ["query/3_RGB.TIF", "query/4_RGB.tiff", "query/5_RGB.Tif", "query/readme.txt"] {
            touch(name);
        }
        let (images, passed_over) = hoss_images(&root.join("query")).expect("images");
        let names: Vec<_> = images.iter().map(|image| file_name(&image.path)).collect();
        assert_eq!(names, ["1_RGB.tif", "2_SAR.tif"]);
        assert_eq!(passed_over.to_string(), "4 files (3_RGB.TIF, 4_RGB.tiff, 5_RGB.Tif, readme.txt)");

        for name in
            ["pairs/a/x_1_RGB.tif", "pairs/b/x_1_SAR.png", "pairs/a/x_2_RGB.tif", "pairs/a/x_3_SAR.tif"]
        {
            touch(name);
        }
        for name in
            ["pairs/a/._x_1_RGB.tif", "pairs/.Trash/x_1_SAR.tif", "pairs/list.csv", "pairs/a/x_4_SAR.TIF"]
        {
            touch(name);
        }
        let (images, passed_over) = optisar_images(&root.join("pairs")).expect("images");
        let pairs = optisar_pairs(&root.join("pairs")).expect("pairs");
        assert_eq!((images.len(), pairs.len()), (4, 1));
        assert_eq!(passed_over.to_string(), "2 files (list.csv, x_4_SAR.TIF)");
        assert_eq!(unpaired(&images, &pairs).to_string(), "2 files (x_2_RGB.tif, x_3_SAR.tif)");

        for name in ["bounding_box_test/1_RGB.TIF", "bounding_box_test/._1_RGB.tif"] {
            touch(name);
        }
        let error = hoss(root, HossPart::Gallery).expect_err("no image").to_string();
        assert!(
            error.ends_with("holds no image in the layout that was expected, but 1 file (1_RGB.TIF)"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_that_is_no_data_set_is_named() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let text = |error: DatasetError| error.to_string();
        assert!(
            text(hoss(root.path(), HossPart::Query).expect_err("absent")).contains("query: No such file")
        );
        fs::create_dir(root.path().join("query")).expect("writable");
        assert!(text(hoss(root.path(), HossPart::Query).expect_err("empty")).contains("holds no image"));
        fs::write(root.path().join("query/ship_RGB.tif"), b"").expect("writable");
        let error = text(hoss(root.path(), HossPart::Query).expect_err("no identity"));
        assert!(error.contains("ship_RGB.tif has no identity"), "{error}");
    }
}
