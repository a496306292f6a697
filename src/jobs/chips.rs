//! What a job learns from when it learns from a gallery: its kept chips, copied into the job's folder, once.
//!
//! A job goes on with the same chips after an interruption, whatever happens to the gallery meanwhile.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::child::CHIPS;
use super::failure::{Failure, Reason};
use crate::durable::PartialFolder;
use crate::gallery::{Filter, Gallery, GalleryName, RowId, Shelf, ShelfError, Snapshot, StoreError};
use crate::train::KeptWriter;

/// Entries that are read at once.
const PAGE: usize = 1000;

/// Why a gallery is nothing to learn from.
#[derive(Debug, thiserror::Error)]
pub enum GalleryError {
    #[error("this server keeps no galleries")]
    NoShelf,
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error("gallery {0} keeps no chips; make one with keep_chips, and enrol chips in it")]
    NoChips(GalleryName),
}

/// Why chips were not copied.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error(transparent)]
    Gallery(#[from] GalleryError),
    #[error("gallery {0} has no chip of a vessel that is known")]
    Empty(GalleryName),
    #[error(transparent)]
    Unreadable(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The gallery of this name, if it keeps chips.
///
/// # Errors
/// There is none, it cannot be used, or it keeps none.
pub fn gallery(shelf: Option<&Arc<Shelf>>, tenant: &str, name: &GalleryName) -> Result<Gallery, GalleryError> {
    let gallery = shelf.ok_or(GalleryError::NoShelf)?.get(tenant, name)?;
    if gallery.info().about.keeps_chips { Ok(gallery) } else { Err(GalleryError::NoChips(name.clone())) }
}

/// Copies the chips of every known vessel into the job's folder, unless they are there.
///
/// # Errors
/// The gallery is nothing to learn from any more, or the chips cannot be copied.
pub fn copy(
    shelf: Option<&Arc<Shelf>>,
    tenant: &str,
    name: &GalleryName,
    folder: &Path,
) -> Result<(), Failure> {
    let place = folder.join(CHIPS);
    if place.exists() {
        return Ok(());
    }
    let copied = gallery(shelf, tenant, name)
        .map_err(CopyError::from)
        .and_then(|gallery| copy_to(&gallery.snapshot(), name, &place));
    copied.map_err(|cause| {
        let reason = match &cause {
            CopyError::Gallery(_) | CopyError::Empty(_) | CopyError::Unreadable(_) => Reason::DataMissing,
            CopyError::Io(cause) => Reason::of_disk(cause),
        };
        Failure::new(reason, format!("the chips cannot be copied: {cause}"))
    })
}

fn copy_to(snapshot: &Snapshot, name: &GalleryName, place: &Path) -> Result<(), CopyError> {
    let partial = PartialFolder::new(place)?;
    let mut writer = KeptWriter::new(partial.path())?;
    let mut after: Option<RowId> = None;
    loop {
        let page = snapshot.list(&Filter::default(), after, PAGE)?;
        for (row, entry) in &page.entries {
            if let (Some(vessel), Some(chip)) = (&entry.vessel, snapshot.chip(*row)?) {
                writer.add(vessel.as_str(), &chip)?;
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if writer.finish()? == 0 {
        return Err(CopyError::Empty(name.clone()));
    }
    // Thousands of small files, one after the other, would take minutes to sync.
    rustix::fs::syncfs(std::fs::File::open(partial.path())?).map_err(io::Error::from)?;
    Ok(partial.publish()?)
}
