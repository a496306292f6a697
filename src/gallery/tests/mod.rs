//! Galleries as their callers use them.

mod archive;
mod catalog;
mod catalog_conformance;
mod conformance;
mod embedded;
mod faults;
mod generator;
mod memory;
mod memory_catalog;
mod model;
mod postgres;
mod reopening;
mod rot;
mod shadow;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::arithmetic::Precision;
use crate::cancellation::{Cancellation, Stopped};
use crate::chip::{AskedPixelSize, Modality, PixelSizeRule, SourceChip, View};
use crate::embedding::{Embedding, ModelDigest};

pub const DIMENSION: usize = 24;

/// In memory where possible, since the tests request thousands of syncs.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

/// A file that a release has written.
pub fn released(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn model() -> ModelDigest {
    ModelDigest::new([7; 32])
}

pub fn other_model() -> ModelDigest {
    ModelDigest::new([8; 32])
}

pub fn settings() -> EmbeddedSettings {
    EmbeddedSettings {
        cache_bytes: 1 << 20,
        queue: QueueSettings { operations_max: 64, bytes_max: 1 << 20 },
        quotas: Quotas { galleries_per_tenant: 10, entries_per_gallery: 1000, bytes_per_tenant: 1 << 30 },
        imports: ImportBounds { image_bytes_max: 1 << 20, bytes_max: 8 << 20 },
    }
}

pub fn new_gallery() -> NewGallery {
    NewGallery { model: model(), dimension: DIMENSION, composition: None, keeps_chips: true }
}

pub fn id(text: &str) -> EntryId {
    EntryId::new(text).expect("an id")
}

pub fn name(text: &str) -> GalleryName {
    GalleryName::new(text).expect("a name")
}

pub fn embedding(seed: u64) -> Embedding {
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    let values = (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect();
    Embedding::from_feature(values).expect("a direction")
}

pub fn chip(seed: u64) -> SourceChip {
    // As in stores that were written before a pixel size could be left out.
    let asked = AskedPixelSize::new(Some(1.0), Some(1.0)).expect("a size");
    let view = View { pixel_size: PixelSizeRule::Asked(asked), ..View::plain(Modality::Sar) };
    SourceChip { image: Bytes::from(seed.to_le_bytes().repeat(20)), view }
}

/// A shadow that is computed in f32.
pub fn target(model: ModelDigest, dimension: usize) -> ShadowTarget {
    ShadowTarget { model, dimension, composition: None, precision: Precision::F32 }
}

/// A whole gallery as an export.
pub fn export(gallery: &Gallery, chips: Chips) -> Vec<u8> {
    let pieces = Export::new(gallery.snapshot(), chips);
    pieces.flat_map(|piece| piece.expect("readable")).collect()
}

/// An enrolment whose content is derived from `seed`.
pub fn enrolment(name: &str, seed: u64) -> Enrolment {
    let mut content = [0; 32];
    content[..8].copy_from_slice(&seed.to_le_bytes());
    let entry = Entry {
        id: id(name),
        vessel: None,
        modality: Modality::Sar,
        observation: Observation::default(),
        labels: Labels::default(),
        extent_m: Some([30.0, 200.0]),
        enrolled_at: Time::from_nanos(seed as i64),
        precision: None,
        content: ContentHash::new(content),
    };
    Enrolment {
        entry,
        embedding: embedding(seed),
        model: model(),
        shadow: None,
        chip: Some(chip(seed)),
        conflict: Conflict::Refuse,
    }
}
