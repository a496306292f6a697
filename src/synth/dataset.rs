//! Synthetic data sets on disk: one in the layout of HOSS, one in that of OptiSar_Pair, and a contact sheet.

use std::fs;
use std::io;
use std::iter;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use image::{Rgb, RgbImage};

use super::optical::OpticalImage;
use super::sar::SarImage;
use super::ship::Ship;
use crate::sheet::{Mark, contact_sheet};

/// Ships and views of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynthPlan {
    /// Ships of the HOSS layout: the first half for training, the second half as the test set.
    pub ships: u64,
    /// Ships of the pair layout, one pair each; distinct from those of the HOSS layout.
    pub pairs: u64,
    /// Optical views per ship; the number of SAR views is the same.
    pub views: u64,
    pub seed: u64,
}

/// A data set could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error("{path}: {cause}")]
    Image { path: PathBuf, cause: String },
}

const HOSS: &str = "synthetic_hoss";
const PAIRS: &str = "synthetic_pairs";
/// Ships per folder of pairs, since whole folders are held out.
const PAIRS_PER_FOLDER: u64 = 100;
const SHEET: &str = "synthetic_ships.png";
/// On the contact sheet.
const SHEET_SHIPS: u64 = 10;

/// Views used as queries; the others are the gallery.
const QUERY_VIEWS: u64 = 1;

/// Writes `synthetic_hoss`, `synthetic_pairs` and `synthetic_ships.png` into `out`, replacing files with
/// these names. `wrote` is called for each ship. The same plan gives the same bytes.
///
/// # Errors
/// If a file cannot be written; the error names it.
pub fn write(plan: &SynthPlan, out: &Path, wrote: &mut dyn FnMut()) -> Result<(), SynthError> {
    let folder = |name: &str| -> Result<PathBuf, SynthError> {
        let path = out.join(name);
        fs::create_dir_all(&path).map_err(|cause| SynthError::Io { path: path.clone(), cause })?;
        Ok(path)
    };
    let train = folder(&format!("{HOSS}/bounding_box_train"))?;
    let query = folder(&format!("{HOSS}/query"))?;
    let gallery = folder(&format!("{HOSS}/bounding_box_test"))?;
    // Folder, beginning of the name and view of each picture of a ship.
    let files_of = |number: u64| -> Result<Vec<(PathBuf, String, u64)>, SynthError> {
        if number >= plan.ships {
            let pairs = folder(&format!("{PAIRS}/{:04}", (number - plan.ships) / PAIRS_PER_FOLDER))?;
            return Ok(vec![(pairs, format!("synthetic_{number:05}_0"), 0)]);
        }
        let of_view = |view| {
            let part = match (number < plan.ships / 2, view < QUERY_VIEWS) {
                (true, _) => &train,
                (false, true) => &query,
                (false, false) => &gallery,
            };
            (part.clone(), format!("{number:04}_s{view:02}c1"), view)
        };
        Ok((0..plan.views).map(of_view).collect())
    };
    let draw = |number: u64| -> Result<(), SynthError> {
        let ship = Ship::draw(plan.seed, number);
        for (part, name, view) in files_of(number)? {
            let path = |modality| part.join(format!("{name}_{modality}.tif"));
            write_file(&path("RGB"), &OpticalImage::of(&ship, plan.seed, number, view).to_tiff())?;
            write_file(&path("SAR"), &SarImage::of(&ship, plan.seed, number, view).to_tiff())?;
        }
        Ok(())
    };
    on_all_cores(plan.ships + plan.pairs, draw, wrote)?;
    let path = out.join(SHEET);
    let saved = sheet(plan).save(&path);
    saved.map_err(|cause| SynthError::Image { path, cause: cause.to_string() })
}

/// Calls `work` with every number below `count`, and `done` after each, until one fails.
fn on_all_cores<E: Send>(
    count: u64,
    work: impl Fn(u64) -> Result<(), E> + Sync,
    done: &mut dyn FnMut(),
) -> Result<(), E> {
    let next = AtomicU64::new(0);
    let (sender, results) = mpsc::sync_channel(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            let (next, work, sender) = (&next, &work, sender.clone());
            scope.spawn(move || {
                let numbers = iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                for number in numbers.take_while(|number| *number < count) {
                    // Nobody listens after a failure.
                    if sender.send(work(number)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        // Moved, so that threads that would send more end with this closure, whatever its result.
        results.into_iter().try_for_each(|result| result.map(|()| done()))
    })
}

/// One row per ship: its optical views, then its SAR views.
fn sheet(plan: &SynthPlan) -> RgbImage {
    let views = 0..plan.views.min(5);
    let row = |number: u64| {
        let ship = Ship::draw(plan.seed, number);
        let optical = views.clone().map(|view| picture(OpticalImage::of(&ship, plan.seed, number, view)));
        let sar = views.clone().map(|view| grey(&SarImage::of(&ship, plan.seed, number, view)));
        optical.chain(sar).map(|picture| (Mark::Plain, picture)).collect()
    };
    let rows: Vec<_> = (0..plan.ships.min(SHEET_SHIPS)).map(row).collect();
    contact_sheet(&rows)
}

fn picture(image: OpticalImage) -> RgbImage {
    RgbImage::from_raw(image.width as u32, image.height as u32, image.pixels).expect("whole pixels")
}

/// Stretched to the largest amplitude, as the decoder does.
fn grey(image: &SarImage) -> RgbImage {
    let largest = image.amplitudes.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    RgbImage::from_fn(image.width as u32, image.height as u32, |x, y| {
        let amplitude = image.amplitudes[y as usize * image.width + x as usize];
        Rgb([(255.0 * amplitude / largest) as u8; 3])
    })
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), SynthError> {
    fs::write(path, bytes).map_err(|cause| SynthError::Io { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::synth::ship::SHIPS_PER_CLASS;

    const PLAN: SynthPlan = SynthPlan { ships: 4, pairs: 2, views: 2, seed: 5 };

    fn written(plan: &SynthPlan) -> BTreeMap<String, Vec<u8>> {
        let out = tempfile::tempdir().expect("a temporary folder");
        let mut ships = 0;
        write(plan, out.path(), &mut || ships += 1).expect("writable");
        assert_eq!(ships, plan.ships + plan.pairs);
        let mut files = BTreeMap::new();
        let mut folders = vec![out.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("readable") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(out.path()).expect("inside").display().to_string();
                    files.insert(name, fs::read(path).expect("readable"));
                }
            }
        }
        files
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_one_other_ships() {
        let first = written(&PLAN);
        assert_eq!(first.len(), 4 * 2 * 2 + 2 * 2 + 1);
        assert!(first == written(&PLAN));
        let other = written(&SynthPlan { seed: 6, ..PLAN });
        assert!(first.keys().eq(other.keys()) && first.iter().all(|(name, bytes)| other[name] != *bytes));
    }

    #[test]
    fn sister_ships_share_their_size_and_nothing_else() {
        let ships: Vec<_> = (0..SHIPS_PER_CLASS).map(|number| Ship::draw(1, number)).collect();
        let size = |ship: &Ship| (ship.length_m, ship.beam_m);
        assert!(ships.iter().all(|ship| size(ship) == size(&ships[0])));
        for (number, ship) in ships.iter().enumerate() {
            assert!(ships[..number].iter().all(|other| other.blocks != ship.blocks));
        }
        assert_ne!(size(&ships[0]), size(&Ship::draw(1, SHIPS_PER_CLASS)));
    }

    #[test]
    fn colour_alone_finds_few_of_the_sister_ships() {
        let colour = |number: u64, view: u64| {
            let image = OpticalImage::of(&Ship::draw(1, number), 1, number, view);
            let pixels = image.pixels.as_chunks::<3>().0;
            let mean = |channel: usize| {
                pixels.iter().map(|pixel| f64::from(pixel[channel])).sum::<f64>() / pixels.len() as f64
            };
            // Relative to their sum, so that the overall brightness does not matter.
            let sum = mean(0) + mean(1) + mean(2);
            [mean(0) / sum, mean(1) / sum]
        };
        let views =
            [0, 1].map(|view| (0..SHIPS_PER_CLASS).map(|number| colour(number, view)).collect::<Vec<_>>());
        let distance = |a: [f64; 2], b: [f64; 2]| (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
        let found = views[0].iter().enumerate().filter(|(number, query)| {
            let nearer = views[1]
                .iter()
                .filter(|other| distance(**query, **other) < distance(**query, views[1][*number]));
            nearer.count() == 0
        });
        let share = found.count() as f64 / SHIPS_PER_CLASS as f64;
        assert!(share < 0.2, "{share}");
    }

    #[test]
    fn views_differ_and_chips_are_tight_and_upright() {
        let ship = Ship::draw(1, 0);
        let views = [0, 1].map(|view| (OpticalImage::of(&ship, 1, 0, view), SarImage::of(&ship, 1, 0, view)));
        assert!(views[0].0 != views[1].0 && views[0].1 != views[1].1);
        for (optical, sar) in views {
            for (length, pixel) in [(optical.height, 0.75), (sar.height, 1.0)] {
                let share = length as f32 * pixel / ship.length_m;
                assert!((1.0..1.16).contains(&share), "{share}");
            }
            assert!(sar.amplitudes.iter().all(|amplitude| amplitude.is_finite() && *amplitude >= 0.0));
        }
    }
}
