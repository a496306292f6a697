//! Entries and galleries for tests.

use std::sync::Arc;

use futures_util::future::join_all;
use tempfile::TempDir;

use crate::chip::Modality;
use crate::embedding::{Composition, Embedding, ModelDigest};
use crate::gallery::{
    Conflict, ContentHash, DetectionHash, EmbeddedCatalog, EmbeddedSettings, Enrolment, Entry, EntryId,
    GalleryName, GalleryReader, ImportBounds, Index, Labels, NewGallery, Observation, QueueSettings, Quotas,
    SceneNumber, Selector, Time,
};

/// An optical sighting with nothing else known.
pub fn entry(id: &str) -> Entry {
    Entry {
        id: EntryId::new(id).expect("an id"),
        vessel: None,
        modality: Modality::Optical,
        observation: Observation::default(),
        labels: Labels::default(),
        extent_m: None,
        enrolled_at: Time::from_nanos(0),
        precision: None,
        content: ContentHash::new([0; 32]),
    }
}

/// Detections, by scene id and detection id, as numbers of an index.
pub fn detections(index: &Index, of: &[(&str, &str)]) -> Vec<(SceneNumber, Option<DetectionHash>)> {
    let detection = |(scene, id): &(&str, &str)| Some((index.scene_number(scene)?, DetectionHash::of(id)));
    of.iter().filter_map(detection).collect()
}

/// The model of every gallery.
pub fn model() -> ModelDigest {
    ModelDigest::new([3; 32])
}

/// Closes a gallery and finally removes it.
pub struct FolderGuard {
    _catalog: EmbeddedCatalog,
    _folder: TempDir,
}

/// The content of a gallery after these entries were enrolled, and the guard that keeps it open.
pub fn gallery(dimension: usize, entries: &[(Entry, Embedding)]) -> (FolderGuard, Arc<dyn GalleryReader>) {
    let new = NewGallery { model: model(), dimension, composition: None, keeps_chips: false };
    made(new, entries, &[])
}

/// The same for a gallery of an ensemble, after entries were deleted again.
pub fn ensemble_gallery(
    composition: Composition,
    entries: &[(Entry, Embedding)],
    deleted: &[EntryId],
) -> (FolderGuard, Arc<dyn GalleryReader>) {
    let (dimension, composition) = (composition.dimension(), Some(composition));
    made(NewGallery { model: model(), dimension, composition, keeps_chips: false }, entries, deleted)
}

fn made(
    new: NewGallery,
    entries: &[(Entry, Embedding)],
    deleted: &[EntryId],
) -> (FolderGuard, Arc<dyn GalleryReader>) {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = EmbeddedSettings {
        cache_bytes: 1 << 20,
        queue: QueueSettings { operations_max: 1 << 16, bytes_max: 1 << 30 },
        quotas: Quotas { galleries_per_tenant: 1, entries_per_gallery: 1 << 20, bytes_per_tenant: 1 << 40 },
        imports: ImportBounds { image_bytes_max: 1 << 20, bytes_max: 8 << 20 },
    };
    let catalog = EmbeddedCatalog::open(folder.path(), settings).expect("a catalog");
    let name = GalleryName::new("ships").expect("a name");
    let gallery = catalog.create("default", &name, new).expect("a gallery");
    let enrolments = entries.iter().map(|(entry, embedding)| {
        gallery.enrol(Enrolment {
            entry: entry.clone(),
            embedding: embedding.clone(),
            model: model(),
            chip: None,
            conflict: Conflict::Refuse,
            shadow: None,
        })
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for enrolled in runtime.block_on(join_all(enrolments)) {
        enrolled.expect("an enrolment");
    }
    let count = runtime.block_on(gallery.delete(Selector::Ids(deleted.to_vec()))).expect("deleted");
    assert_eq!(count, deleted.len() as u64);
    (FolderGuard { _catalog: catalog, _folder: folder }, gallery.snapshot())
}
