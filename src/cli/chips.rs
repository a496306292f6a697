//! Chips as arguments of a command: files, folders, modality and pixel size.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use shipreid::chip::Modality;
use shipreid::client;
use shipreid::folder::{PassedOver, is_hidden};
use shipreid::wire;

use super::Refusal;
use super::output::remark;

/// Image files and what is known about them.
#[derive(Args)]
pub struct ChipFlags {
    /// Images (PNG, JPEG, TIFF), or folders of images; - reads one image from standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Modality of all files; default: by HOSS names (..._RGB.tif, ..._SAR.tif).
    #[arg(long, value_parser = modality, value_name = "optical|sar")]
    modality: Option<Modality>,
    /// Metres per pixel, or along x (columns) and y (rows) where they differ: 1.25 or 1.702,1.124. Default: that
    /// of a georeferenced TIFF, else 0.75 for optical and 1 for SAR images.
    #[arg(long, value_name = "X[,Y]", value_parser = pixel_size)]
    pixel_size: Option<PixelSizeFlag>,
}

/// The metres that a pixel covers on the ground.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PixelSizeFlag {
    x_m: f64,
    y_m: f64,
}

/// An image file, and its path relative to the given folder, which identifies it wherever that folder is.
#[derive(Clone)]
pub struct FoundFile {
    pub name: String,
    pub path: PathBuf,
}

/// A file with its content.
pub struct ChipFile {
    pub name: String,
    pub path: PathBuf,
    pub modality: Modality,
    pub chip: wire::Chip,
}

/// Stands for standard input among paths.
const STANDARD_INPUT: &str = "-";
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "tif", "tiff"];

impl ChipFlags {
    /// Every chip, sorted within a folder.
    ///
    /// # Errors
    /// A file cannot be read, or its modality is unknown.
    pub fn read(&self) -> anyhow::Result<Vec<ChipFile>> {
        self.found()?.into_iter().map(|found| self.read_one(found)).collect()
    }

    /// The files, sorted within a folder, before any is read.
    ///
    /// # Errors
    /// A folder cannot be read, or there is no image at all.
    pub fn found(&self) -> anyhow::Result<Vec<FoundFile>> {
        let mut found = Vec::new();
        for path in &self.files {
            if is_standard_input(path) {
                if found.iter().any(|file: &FoundFile| is_standard_input(&file.path)) {
                    bail!(Refusal("standard input is given twice: it holds one image".to_owned()));
                }
                found.push(FoundFile { name: STANDARD_INPUT.to_owned(), path: path.clone() });
            } else if path.is_dir() {
                let (images, others) = images_in(path)?;
                if !others.is_empty() {
                    let others = PassedOver::of(&others);
                    remark(format_args!("{}: {others} passed over: no image by extension", path.display()));
                }
                for image in images {
                    let inside = image.strip_prefix(path).unwrap_or(&image);
                    found.push(FoundFile { name: inside.display().to_string(), path: image });
                }
            } else {
                let name = path.file_name().unwrap_or(path.as_os_str());
                found.push(FoundFile { name: name.to_string_lossy().into_owned(), path: path.clone() });
            }
        }
        if found.is_empty() {
            bail!(Refusal(format!("{} contains no images", self.files[0].display())));
        }
        Ok(found)
    }

    /// # Errors
    /// The file cannot be read, or its modality is unknown.
    pub fn read_one(&self, FoundFile { name, path }: FoundFile) -> anyhow::Result<ChipFile> {
        let modality = self.modality.or_else(|| client::modality_of_name(&path)).ok_or_else(|| {
            Refusal(format!("the modality of {} is not known: add --modality optical or sar", path.display()))
        })?;
        let image = contents(&path).map_err(|cause| unreadable(&path, &cause))?;
        let mut chip = client::chip(Bytes::from(image), modality);
        chip.pixel_size_x_m = self.pixel_size.map(|size| size.x_m);
        chip.pixel_size_y_m = self.pixel_size.map(|size| size.y_m);
        Ok(ChipFile { name, path, modality, chip })
    }
}

/// Whether a path stands for standard input.
pub fn is_standard_input(path: &Path) -> bool {
    path == Path::new(STANDARD_INPUT)
}

/// Checks, before the work, whether a file or a folder can be read.
///
/// # Errors
/// It does not exist, or may not be read.
pub fn check_readable(path: &Path) -> Result<(), Refusal> {
    File::open(path).map(drop).map_err(|cause| unreadable(path, &cause))
}

/// A file that the arguments name cannot be read.
pub fn unreadable(path: &Path, cause: &io::Error) -> Refusal {
    Refusal(format!("cannot read {}: {cause}", path.display()))
}

/// The bytes of a file, or of standard input.
pub fn contents(path: &Path) -> io::Result<Vec<u8>> {
    if !is_standard_input(path) {
        return fs::read(path);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The images in a folder and its subfolders, and the other files; hidden ones are neither.
fn images_in(folder: &Path) -> anyhow::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut entries = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    entries.retain(|path| !is_hidden(path));
    entries.sort();
    let (mut images, mut others) = (Vec::new(), Vec::new());
    for path in entries {
        if path.is_dir() {
            let inside = images_in(&path)?;
            images.extend(inside.0);
            others.extend(inside.1);
        } else if is_image(&path) {
            images.push(path);
        } else {
            others.push(path);
        }
    }
    Ok((images, others))
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}

fn pixel_size(text: &str) -> Result<PixelSizeFlag, String> {
    let metres = |text: &str| {
        let number = text.trim().parse().ok().filter(|metres: &f64| metres.is_finite() && *metres > 0.0);
        number.ok_or_else(|| {
            "expected metres per pixel above 0, as 1.25, or along x and y, as 1.702,1.124".to_owned()
        })
    };
    let (x, y) = text.split_once(',').unwrap_or((text, text));
    Ok(PixelSizeFlag { x_m: metres(x)?, y_m: metres(y)? })
}

fn modality(text: &str) -> Result<Modality, String> {
    let known = [Modality::Optical, Modality::Sar];
    let named = known.into_iter().find(|modality| modality.name() == text);
    named.ok_or_else(|| "expected optical or sar".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_has_one_size_or_two() {
        for (text, expected) in [
            ("1.25", Some([1.25, 1.25])),
            ("1.702,1.124", Some([1.702, 1.124])),
            ("1.702, 1.124", Some([1.702, 1.124])),
            ("", None),
            ("0", None),
            ("-1", None),
            ("1,", None),
            ("1,2,3", None),
            ("1,nan", None),
            ("inf", None),
        ] {
            let found = pixel_size(text).ok().map(|size| [size.x_m, size.y_m]);
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_chip_is_sent_with_both_sizes_of_its_pixels() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x_SAR.tif");
        fs::write(&path, b"").expect("writable");
        for (pixel_size, expected) in [
            (None, (None, None)),
            (Some("1.702,1.124"), (Some(1.702), Some(1.124))),
            (Some("2"), (Some(2.0), Some(2.0))),
        ] {
            let pixel_size = pixel_size.map(|text| super::pixel_size(text).expect("valid"));
            let flags = ChipFlags { files: vec![path.clone()], modality: None, pixel_size };
            let chip = flags.read().expect("readable").remove(0).chip;
            assert_eq!((chip.pixel_size_x_m, chip.pixel_size_y_m), expected);
        }
    }

    #[test]
    fn every_image_of_a_folder_is_found_and_hidden_files_are_not() {
        let root = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir_all(root.path().join("inner/.cache")).expect("writable");
        for name in [
            "a.TIF",
            "b.tiff",
            "c.tif",
            "inner/d.JPG",
            "inner/e.jpeg",
            "inner/f.Png",
            "g.txt",
            "inner/h.csv",
            "._a.TIF",
            ".hidden.png",
            "inner/._d.JPG",
            "inner/.cache/i.png",
        ] {
            fs::write(root.path().join(name), b"").expect("writable");
        }
        let (images, others) = images_in(root.path()).expect("readable");
        let names = |paths: Vec<PathBuf>| -> Vec<String> {
            let inside =
                |path: PathBuf| path.strip_prefix(root.path()).expect("inside").display().to_string();
            paths.into_iter().map(inside).collect()
        };
        assert_eq!(names(images), ["a.TIF", "b.tiff", "c.tif", "inner/d.JPG", "inner/e.jpeg", "inner/f.Png"]);
        assert_eq!(names(others), ["g.txt", "inner/h.csv"]);
    }
}
