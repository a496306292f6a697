//! Training data from a gallery: its kept chips, copied into the job's folder once.
//!
//! After an interruption a job continues with the same chips, whatever happens to the gallery in the meantime.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::panic::resume_unwind;
use std::path::Path;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::child::CHIPS;
use super::edit::Edit;
use super::failure::{Failure, io_reason};
use super::hold::Claimed;
use super::outcome::AttemptOutcome;
use super::slot::Slot;
use super::state::Refused;
use crate::cancellation::Cancellation;
use crate::durable::{PartialFolder, discard_folder, remove_partial};
use crate::gallery::{
    CatalogError, CatalogStore, Entry, Filter, Gallery, GalleryName, GalleryReader, RowId, StoreError,
};
use crate::reason::FailureReason;
use crate::train::{Census, GalleryDatasetWriter};

/// Entries that are read at once.
const PAGE: usize = 1000;

/// Why a gallery cannot be used for training.
#[derive(Debug, thiserror::Error)]
pub enum GalleryError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(
        "gallery \"{0}\" keeps no chips to learn from; enrol the chips again in a gallery that is made to keep them"
    )]
    NoChips(GalleryName),
}

impl From<StoreError> for GalleryError {
    fn from(cause: StoreError) -> Self {
        Self::Catalog(cause.into())
    }
}

/// Why the chips could not be copied into a job's folder.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error(transparent)]
    Gallery(#[from] GalleryError),
    #[error(transparent)]
    Unreadable(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("stopped")]
    Stopped,
}

/// Counts of what was copied and what was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Copied {
    chips: usize,
    /// Entries whose vessel is unknown.
    unnamed: usize,
    /// Entries with only an embedding.
    chipless: usize,
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chips, unnamed, chipless } = self;
        write!(
            f,
            "learning from {chips} chips of the gallery; left out: {unnamed} entries without a vessel id, {chipless} \
             without a chip"
        )
    }
}

impl CopyError {
    fn outcome(&self) -> AttemptOutcome {
        let reason = match self {
            Self::Stopped => return AttemptOutcome::Stopped,
            Self::Gallery(_) | Self::Unreadable(_) => FailureReason::DataMissing,
            Self::Io(cause) => io_reason(cause, FailureReason::NotStarted),
        };
        AttemptOutcome::Failed(Failure::new(reason, format!("the gallery's chips cannot be copied: {self}")))
    }
}

/// The gallery of this name, if it keeps chips.
///
/// # Errors
/// It does not exist, cannot be used, or keeps no chips.
pub async fn gallery(
    catalog: &dyn CatalogStore,
    tenant: &str,
    name: &GalleryName,
) -> Result<Gallery, GalleryError> {
    let gallery = catalog.get(tenant, name).await?;
    if gallery.info().about.keeps_chips { Ok(gallery) } else { Err(GalleryError::NoChips(name.clone())) }
}

/// The chips of every known vessel, counted without reading any. Blocking.
///
/// # Errors
/// The gallery cannot be read, or the work was cancelled.
pub fn census(snapshot: &dyn GalleryReader, cancellation: &Cancellation) -> Result<Census, StoreError> {
    let mut census = Census::default();
    for_each(snapshot, cancellation, |row, entry| {
        if let Some(vessel) = &entry.vessel
            && snapshot.keeps_chip(row)?
        {
            census.add(vessel.as_str(), entry.modality);
        }
        Ok::<_, StoreError>(())
    })?;
    Ok(census)
}

/// Ensures that the chips are in the folder of a job that learns from a gallery.
///
/// # Errors
/// The outcome of the attempt if they cannot be copied, or if it was stopped in the meantime.
pub async fn fetch(slot: &Slot, claimed: &Claimed, stop: &CancellationToken) -> Result<(), AttemptOutcome> {
    let Claimed { job, hold } = claimed;
    let Some(name) = job.order.gallery.clone() else { return Ok(()) };
    let gallery = gallery(&*slot.settings.galleries, &job.key.tenant, &name).await;
    let folder = slot.settings.job_folder(job.key.id);
    let stopped = stop.clone();
    let copying = spawn_blocking(move || copy(gallery, &folder, &stopped));
    match copying.await {
        // The stop came too late for the copy, which remains for the next attempt.
        Ok(Ok(_)) if stop.is_cancelled() => Err(AttemptOutcome::Stopped),
        Ok(Ok(None)) => Ok(()),
        Ok(Ok(Some(copied))) => {
            let line = copied.to_string();
            let logged = move |edit: &mut Edit| {
                edit.log(line.clone());
                Ok::<_, Refused>(())
            };
            slot.repository.update_surely(hold, logged).await;
            Ok(())
        }
        Ok(Err(cause)) => Err(cause.outcome()),
        Err(cause) if cause.is_panic() => resume_unwind(cause.into_panic()),
        // The runtime is being shut down, and this task with it.
        Err(_) => Err(AttemptOutcome::Stopped),
    }
}

/// Removes the chips of a job that no longer needs them. Blocking.
pub fn discard(folder: &Path) {
    let place = folder.join(CHIPS);
    if place.exists()
        && let Err(cause) = discard_folder(&place)
    {
        tracing::warn!(%cause, place = %place.display(), "chips stay with the job that learned from them");
    }
}

/// Copies the chips of every known vessel as they are now, unless an earlier attempt has done so, whatever has happened
/// to the gallery since. Either all are copied or none.
fn copy(
    gallery: Result<Gallery, GalleryError>,
    folder: &Path,
    stop: &CancellationToken,
) -> Result<Option<Copied>, CopyError> {
    let place = folder.join(CHIPS);
    if place.exists() {
        return Ok(None);
    }
    let gallery = gallery?;
    fs::create_dir_all(folder)?;
    // Left by a server that was killed while it copied; no process has worked here yet.
    remove_partial(folder)?;
    let partial = PartialFolder::new(&place)?;
    let copied = write(&*gallery.snapshot(), partial.path(), stop)?;
    // Syncing thousands of small files one by one would take minutes.
    rustix::fs::syncfs(File::open(partial.path())?).map_err(io::Error::from)?;
    partial.publish()?;
    Ok(Some(copied))
}

/// Writes chips one at a time, so that at most one is in memory.
fn write(snapshot: &dyn GalleryReader, place: &Path, stop: &CancellationToken) -> Result<Copied, CopyError> {
    let mut writer = GalleryDatasetWriter::new(place)?;
    let mut copied = Copied::default();
    for_each(snapshot, &Cancellation::default(), |row, entry| {
        if stop.is_cancelled() {
            return Err(CopyError::Stopped);
        }
        match (&entry.vessel, snapshot.keeps_chip(row)?) {
            (None, _) => copied.unnamed += 1,
            (Some(_), false) => copied.chipless += 1,
            (Some(vessel), true) => {
                snapshot.chip(row)?.iter().try_for_each(|chip| writer.add(vessel.as_str(), chip))?;
            }
        }
        Ok(())
    })?;
    copied.chips = writer.finish()?;
    Ok(copied)
}

/// Visits every entry, by ascending row.
fn for_each<E: From<StoreError>>(
    snapshot: &dyn GalleryReader,
    cancellation: &Cancellation,
    mut visit: impl FnMut(RowId, &Entry) -> Result<(), E>,
) -> Result<(), E> {
    let mut after = None;
    loop {
        let page = snapshot.list(&Filter::default(), after, PAGE, cancellation)?;
        page.entries.iter().try_for_each(|(row, entry)| visit(*row, entry))?;
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::chip::{Modality, SourceChip, View};
    use crate::embedding::{Embedding, ModelDigest};
    use crate::gallery::{
        Conflict, ContentHash, EmbeddedCatalog, EmbeddedSettings, Enrolment, EntryId, ImportBounds, Labels,
        NewGallery, Observation, QueueSettings, Quotas, Time, VesselId,
    };
    use crate::train::GalleryDataset;

    const TENANT: &str = "default";

    fn catalog(folder: &Path) -> EmbeddedCatalog {
        let settings = EmbeddedSettings {
            cache_bytes: 1 << 20,
            queue: QueueSettings { operations_max: 64, bytes_max: 1 << 20 },
            quotas: Quotas {
                galleries_per_tenant: 10,
                entries_per_gallery: 10_000,
                bytes_per_tenant: 1 << 30,
            },
            imports: ImportBounds { image_bytes_max: 1 << 20, bytes_max: 8 << 20 },
        };
        EmbeddedCatalog::open(&folder.join("galleries"), settings).expect("a catalog")
    }

    fn name() -> GalleryName {
        GalleryName::new("harbour").expect("a name")
    }

    fn made(catalog: &EmbeddedCatalog, keeps_chips: bool) -> Gallery {
        let new =
            NewGallery { model: ModelDigest::new([7; 32]), dimension: 2, composition: None, keeps_chips };
        catalog.create(TENANT, &name(), new).expect("made")
    }

    async fn enrol(gallery: &Gallery, number: u8, vessel: Option<&str>, modality: Option<Modality>) {
        let entry = Entry {
            id: EntryId::new(&format!("entry {number}")).expect("an id"),
            vessel: vessel.map(|vessel| VesselId::new(vessel).expect("an id")),
            modality: modality.unwrap_or(Modality::Sar),
            observation: Observation::default(),
            labels: Labels::default(),
            extent_m: Some([30.0, 200.0]),
            enrolled_at: Time::from_nanos(0),
            precision: None,
            content: ContentHash::new([number; 32]),
        };
        let enrolment = Enrolment {
            entry,
            embedding: Embedding::from_feature(vec![1.0, f32::from(number)]).expect("a direction"),
            model: ModelDigest::new([7; 32]),
            shadow: None,
            chip: modality.map(|modality| chip(number, modality)),
            conflict: Conflict::Refuse,
        };
        gallery.enrol(enrolment).await.expect("enrolled");
    }

    fn chip(number: u8, modality: Modality) -> SourceChip {
        SourceChip { image: Bytes::from(vec![number; 9]), view: View::plain(modality) }
    }

    async fn copy_in(catalog: &EmbeddedCatalog, folder: &Path) -> Result<Option<Copied>, CopyError> {
        let gallery = gallery(catalog, TENANT, &name()).await;
        copy(gallery, &folder.join("job-1"), &CancellationToken::new())
    }

    fn files(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("readable");
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
    }

    #[tokio::test]
    async fn chips_of_known_vessels_are_copied_with_identities_in_the_order_of_their_names() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let catalog = catalog(place.path());
        let gallery = made(&catalog, true);
        enrol(&gallery, 1, Some("b"), Some(Modality::Optical)).await;
        enrol(&gallery, 2, None, Some(Modality::Optical)).await;
        enrol(&gallery, 3, Some("c"), None).await;
        enrol(&gallery, 4, Some("a"), Some(Modality::Sar)).await;
        enrol(&gallery, 5, Some("b"), Some(Modality::Sar)).await;
        let copied = copy_in(&catalog, place.path()).await.expect("copied");
        assert_eq!(copied, Some(Copied { chips: 3, unnamed: 1, chipless: 1 }));
        let kept = GalleryDataset::read(&place.path().join("job-1").join(CHIPS)).expect("readable");
        let found: Vec<_> = kept
            .images()
            .iter()
            .map(|image| (image.identity, fs::read(&image.path).expect("readable"), image.view))
            .collect();
        let expected = [(1, 1, Modality::Optical), (0, 4, Modality::Sar), (1, 5, Modality::Sar)]
            .map(|(identity, number, modality)| (identity, vec![number; 9], View::plain(modality)));
        assert_eq!(found, expected);
        assert_eq!(kept.census(), census(&*gallery.snapshot(), &Cancellation::default()).expect("readable"));
    }

    #[tokio::test]
    async fn a_second_attempt_has_the_chips_of_the_first_whatever_became_of_the_gallery() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let catalog = catalog(place.path());
        enrol(&made(&catalog, true), 1, Some("a"), Some(Modality::Sar)).await;
        assert!(copy_in(&catalog, place.path()).await.expect("copied").is_some());
        catalog.delete(TENANT, &name()).expect("deleted");
        assert_eq!(copy_in(&catalog, place.path()).await.expect("there"), None);
    }

    #[tokio::test]
    async fn a_copy_that_does_not_come_to_its_end_leaves_nothing() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let catalog = catalog(place.path());
        enrol(&made(&catalog, true), 1, Some("a"), Some(Modality::Sar)).await;
        let job = place.path().join("job-1");
        let stop = CancellationToken::new();
        stop.cancel();
        let kept = gallery(&catalog, TENANT, &name()).await;
        let stopped = copy(kept, &job, &stop).expect_err("stopped");
        assert_eq!(stopped.outcome(), AttemptOutcome::Stopped);
        assert!(files(&job).is_empty());
        // A server that is killed removes nothing.
        std::mem::forget(PartialFolder::new(&job.join(CHIPS)).expect("writable"));
        assert!(copy_in(&catalog, place.path()).await.expect("copied").is_some());
        assert_eq!(files(&job), [CHIPS]);
    }

    #[tokio::test]
    async fn a_gallery_that_cannot_be_learned_from_says_what_to_do() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let catalog = catalog(place.path());
        let refusal =
            async || gallery(&catalog, TENANT, &name()).await.expect_err("nothing to learn from").to_string();
        assert_eq!(refusal().await, "there is no gallery \"harbour\"");
        made(&catalog, false);
        assert!(refusal().await.ends_with("enrol the chips again in a gallery that is made to keep them"));
        let AttemptOutcome::Failed(failure) =
            copy_in(&catalog, place.path()).await.expect_err("no chips").outcome()
        else {
            panic!("no failure")
        };
        assert_eq!(failure.reason, FailureReason::DataMissing);
    }
}
