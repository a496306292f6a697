//! A server that re-embeds galleries, with devices that wait where a test wants them to.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc as sync;

use futures_util::future::join_all;

use super::super::*;
use crate::arithmetic::Precision;
use crate::chip::{ChipForm, ImageLimits, Modality, View, prepare};
use crate::encoder::{
    Admission, Batch, EncodeQueue, Encoder, EncoderFactory, ForwardError, LoadedModel, ModelCard,
    PixelProjection, QueueSettings, Residency, ResidencySettings,
};
use crate::gallery::{
    Conflict, ContentHash, EmbeddedCatalog, EmbeddedSettings, Enrolment, Entry, EntryId, GalleryName,
    ImportBounds, Labels, NewGallery, Observation, PostgresCatalog, PostgresSettings,
    QueueSettings as StoreQueue, Quotas, Time,
};
use crate::holding::Holding;
use crate::postgres::trial::Trial;
use crate::registry::{ModelLoader, Provenance, Registry, RegistryLimits};
use crate::weights::any::AnyModel;
use crate::weights::family::FeaturePoint;
use crate::weights::family::transoss::TransOssArchitecture;
use crate::weights::open::OpenModel;
use crate::weights::{golden, seed::seeded};

const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 20, pixels_max: 1 << 20 };
/// Models of different widths, by seed.
pub const DIMENSIONS: [usize; 3] = [16, 32, 48];

fn model(seed: usize) -> AnyModel {
    let architecture =
        TransOssArchitecture { embed_dim: DIMENSIONS[seed], heads: 2, depth: 1, classes: 0, ..golden::MICRO }
            .into();
    OpenModel::new(architecture, FeaturePoint::BeforeNeck, seeded(&architecture, seed as u64)).into()
}

pub fn digest(seed: usize) -> ModelDigest {
    model(seed).digest()
}

/// What a device does with the chips of model 1 before it embeds them.
pub type Gate = Arc<dyn Fn(usize) + Send + Sync>;

struct Gated {
    projection: PixelProjection,
    warming: bool,
    gate: Gate,
}

impl Encoder for Gated {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
        if !std::mem::take(&mut self.warming) {
            (self.gate)(batch.chips.len());
        }
        self.projection.forward(batch)
    }
}

fn loaded(model: &AnyModel, gate: &Gate) -> LoadedModel {
    let dimension = model.dimension();
    let card = ModelCard {
        digest: model.digest(),
        dimension,
        chip_size: model.preprocessing().size,
        sar_stretch: model.preprocessing().sar_stretch,
        precision: Precision::F32,
        members: None,
    };
    let gate = if model.digest() == digest(1) { Arc::clone(gate) } else { Arc::new(|_| {}) };
    let factory: EncoderFactory = Arc::new(move |_| {
        let projection = PixelProjection::new(dimension, dimension as u64);
        Ok(Box::new(Gated { projection, warming: true, gate: Arc::clone(&gate) }) as Box<dyn Encoder>)
    });
    LoadedModel { card, factory, workers: 1, bytes: 1 }
}

/// One run of a server that embeds one chip at a time.
pub struct Life {
    pub reembedder: ReEmbedder,
    pub changes: mpsc::UnboundedReceiver<Activation>,
}

impl Life {
    pub async fn begin(folder: &Path, gate: Gate) -> Self {
        Self::with_models(folder, gate, [0, 1, 2]).await
    }

    /// With a registry that contains these models.
    pub async fn with_models<const N: usize>(folder: &Path, gate: Gate, kept: [usize; N]) -> Self {
        let catalog =
            EmbeddedCatalog::open(&folder.join("galleries"), catalog_settings()).expect("a catalog");
        Self::with_catalog(Arc::new(catalog), folder, gate, kept).await
    }

    /// A server that shares its galleries.
    pub async fn sharing(trial: &Trial, folder: &Path, gate: Gate) -> Self {
        let shared = PostgresSettings {
            cluster: trial.cluster().await,
            local_age_max: Duration::from_secs(1),
            holding: Holding::default(),
            resident_bytes_max: u64::MAX,
        };
        let catalog = PostgresCatalog::open(&shared, &folder.join("copies"), catalog_settings()).await;
        Self::with_catalog(Arc::new(catalog.expect("a catalog")), folder, gate, [0, 1, 2]).await
    }

    async fn with_catalog<const N: usize>(
        catalog: Catalog,
        folder: &Path,
        gate: Gate,
        kept: [usize; N],
    ) -> Self {
        let registry_limits = RegistryLimits { count_max: 9, bytes_max: 1 << 30 };
        let registry = Registry::open(&folder.join("models"), registry_limits).expect("a registry");
        for seed in kept {
            registry.add(&model(seed), &Provenance::now("test")).expect("room");
        }
        let queue = EncodeQueue::start(QueueSettings { workers: 1, batch_max: 1 }, Arc::new(|_| {}));
        let settings = ResidencySettings { bytes_max: 9, device: "cpu".into() };
        let residency = Residency::new(queue, settings);
        let active = registry.active().map_or(digest(0), |active| active.digest);
        let first = registry.load(active).unwrap_or_else(|_| model(0));
        let first = loaded(&first, &gate);
        let first = residency.admit(first).await.expect("room");
        let pipeline = Pipeline::new(Admission::new(99, 1 << 30), LIMITS, 1, residency, first);
        let pipeline = Arc::new(pipeline);
        let loader: ModelLoader = Arc::new(move |model| Ok(loaded(&model, &gate)));
        let (activator, changes) = Activator::new(Arc::new(registry), Arc::clone(&pipeline), loader, None);
        Self { reembedder: ReEmbedder::new(catalog, pipeline, activator), changes }
    }

    /// A gallery of model 0 with `count` chips.
    pub async fn gallery(&self, name: &str, count: u8, keeps_chips: bool) -> Gallery {
        let new = NewGallery { model: digest(0), dimension: DIMENSIONS[0], composition: None, keeps_chips };
        let name = GalleryName::new(name).expect("a name");
        let gallery = self.reembedder.catalog.create("t", &name, new).await.expect("made");
        join_all((0..count).map(|number| enrol(&gallery, number, Some(chip(number))))).await;
        gallery
    }

    /// Activates model `seed` and returns the target of re-embedding.
    pub async fn activate(&mut self, seed: usize) -> ReembeddingTarget {
        self.reembedder.activator.activate(digest(seed)).await.expect("activated");
        let Activation { active, former } = self.changes.recv().await.expect("told");
        ReembeddingTarget { former: vec![former], ..ReembeddingTarget::to(active) }
    }

    pub async fn end(self) {
        self.reembedder.catalog.close().await;
        self.reembedder.pipeline.residency().queue().close().await;
    }
}

fn catalog_settings() -> EmbeddedSettings {
    EmbeddedSettings {
        cache_bytes: 1 << 20,
        queue: StoreQueue { operations_max: 64, bytes_max: 1 << 20 },
        quotas: Quotas { galleries_per_tenant: 9, entries_per_gallery: 999, bytes_per_tenant: 1 << 30 },
        imports: ImportBounds { image_bytes_max: 1 << 20, bytes_max: 8 << 20 },
    }
}

pub fn open_gate() -> Gate {
    Arc::new(|_| {})
}

/// A gate that signals when a chip arrives, and passes it when told to; `None` leaves it open.
pub fn closed_gate() -> (Gate, sync::Receiver<()>, sync::Sender<()>) {
    let (came, comes) = sync::channel();
    let (go, goes) = sync::channel();
    let goes = Mutex::new(goes);
    let gate: Gate = Arc::new(move |_| {
        // At the end of the test the receiver is gone.
        let _ = came.send(());
        let _ = goes.lock().expect("no panic").recv();
    });
    (gate, comes, go)
}

pub async fn arrival(comes: sync::Receiver<()>) -> sync::Receiver<()> {
    let waiting = tokio::task::spawn_blocking(move || {
        comes.recv().expect("a chip comes");
        comes
    });
    waiting.await.expect("no panic")
}

/// A chip with a shade of its own.
pub fn chip(number: u8) -> SourceChip {
    let mut image = image::RgbImage::new(6, 20);
    image.pixels_mut().enumerate().for_each(|(at, pixel)| *pixel = image::Rgb([number, at as u8, 7]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).expect("in memory");
    let view = View::plain(Modality::Optical);
    SourceChip { image: bytes.into_inner().into(), view }
}

/// The embedding of a chip by model `seed`.
pub fn embedding(seed: usize, chip: &SourceChip) -> Embedding {
    let form = ChipForm::reference(golden::MICRO.image);
    let chips = vec![prepare(&chip.image, &chip.view, form, &LIMITS).expect("decodable").chip.into()];
    let dimension = DIMENSIONS[seed];
    let mut projection = PixelProjection::new(dimension, dimension as u64);
    projection.forward(&Batch { model: digest(seed), chips }).expect("embeddings").remove(0)
}

pub fn id(number: u8) -> EntryId {
    EntryId::new(&format!("entry {number}")).expect("an id")
}

pub async fn enrol(gallery: &Gallery, number: u8, kept: Option<SourceChip>) {
    let entry = Entry {
        id: id(number),
        vessel: None,
        modality: Modality::Optical,
        observation: Observation::default(),
        labels: Labels::default(),
        extent_m: None,
        enrolled_at: Time::from_nanos(0),
        precision: None,
        content: ContentHash::new([number; 32]),
    };
    let enrolment = Enrolment {
        entry,
        embedding: embedding(0, &chip(number)),
        model: digest(0),
        shadow: None,
        chip: kept,
        conflict: Conflict::Refuse,
    };
    gallery.enrol(enrolment).await.expect("enrolled");
}

/// Checks that the gallery is of model `seed`, with its embedding of every chip.
pub fn check(gallery: &Gallery, seed: usize, count: u8) {
    let snapshot = gallery.snapshot();
    assert_eq!((snapshot.about().model, snapshot.about().shadow), (digest(seed), None));
    assert_eq!(snapshot.entries(), usize::from(count));
    for number in 0..count {
        let row = snapshot.find(&id(number)).expect("readable").expect("there");
        assert_eq!(snapshot.embedding(row), Ok(embedding(seed, &chip(number))));
    }
}
