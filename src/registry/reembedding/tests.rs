//! Galleries that move from one model to another.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc as sync;

use futures_util::future::join_all;

use super::*;
use crate::arithmetic::Precision;
use crate::cancellation::Cancellation;
use crate::chip::{ChipForm, ImageLimits, Modality, View, prepare};
use crate::encoder::{
    Admission, Batch, EncodeQueue, Encoder, EncoderFactory, ForwardError, LoadedModel, ModelCard,
    PixelProjection, QueueSettings, Residency, ResidencySettings,
};
use crate::gallery::{
    Chips, Conflict, ContentHash, EmbeddedCatalog, EmbeddedSettings, Enrolment, Entry, EntryId, Export,
    GalleryName, ImportBounds, Labels, NewGallery, Observation, PostgresCatalog, PostgresSettings,
    QueueSettings as StoreQueue, Quotas, Selector, Time,
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
const DIMENSIONS: [usize; 3] = [16, 32, 48];

fn model(seed: usize) -> AnyModel {
    let architecture =
        TransOssArchitecture { embed_dim: DIMENSIONS[seed], heads: 2, depth: 1, classes: 0, ..golden::MICRO }
            .into();
    OpenModel::new(architecture, FeaturePoint::BeforeNeck, seeded(&architecture, seed as u64)).into()
}

fn digest(seed: usize) -> ModelDigest {
    model(seed).digest()
}

/// What a device does with the chips of model 1 before it embeds them.
type Gate = Arc<dyn Fn(usize) + Send + Sync>;

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
struct Life {
    reembedder: ReEmbedder,
    changes: mpsc::UnboundedReceiver<Activation>,
}

impl Life {
    async fn begin(folder: &Path, gate: Gate) -> Self {
        Self::with_models(folder, gate, [0, 1, 2]).await
    }

    /// With a registry that contains these models.
    async fn with_models<const N: usize>(folder: &Path, gate: Gate, kept: [usize; N]) -> Self {
        let catalog =
            EmbeddedCatalog::open(&folder.join("galleries"), catalog_settings()).expect("a catalog");
        Self::with_catalog(Arc::new(catalog), folder, gate, kept).await
    }

    /// A server that shares its galleries.
    async fn sharing(trial: &Trial, folder: &Path, gate: Gate) -> Self {
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
    async fn gallery(&self, name: &str, count: u8, keeps_chips: bool) -> Gallery {
        let new = NewGallery { model: digest(0), dimension: DIMENSIONS[0], composition: None, keeps_chips };
        let name = GalleryName::new(name).expect("a name");
        let gallery = self.reembedder.catalog.create("t", &name, new).await.expect("made");
        join_all((0..count).map(|number| enrol(&gallery, number, Some(chip(number))))).await;
        gallery
    }

    /// Activates model `seed` and returns the target of re-embedding.
    async fn activate(&mut self, seed: usize) -> ReembeddingTarget {
        self.reembedder.activator.activate(digest(seed)).await.expect("activated");
        let Activation { active, former } = self.changes.recv().await.expect("told");
        ReembeddingTarget { former: vec![former], ..ReembeddingTarget::to(active) }
    }

    async fn end(self) {
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

fn open_gate() -> Gate {
    Arc::new(|_| {})
}

/// A gate that signals when a chip arrives, and passes it when told to; `None` leaves it open.
fn closed_gate() -> (Gate, sync::Receiver<()>, sync::Sender<()>) {
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

async fn arrival(comes: sync::Receiver<()>) -> sync::Receiver<()> {
    let waiting = tokio::task::spawn_blocking(move || {
        comes.recv().expect("a chip comes");
        comes
    });
    waiting.await.expect("no panic")
}

/// A chip with a shade of its own.
fn chip(number: u8) -> SourceChip {
    let mut image = image::RgbImage::new(6, 20);
    image.pixels_mut().enumerate().for_each(|(at, pixel)| *pixel = image::Rgb([number, at as u8, 7]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).expect("in memory");
    let view = View::plain(Modality::Optical);
    SourceChip { image: bytes.into_inner().into(), view }
}

/// The embedding of a chip by model `seed`.
fn embedding(seed: usize, chip: &SourceChip) -> Embedding {
    let form = ChipForm::reference(golden::MICRO.image);
    let chips = vec![prepare(&chip.image, &chip.view, form, &LIMITS).expect("decodable").chip.into()];
    let dimension = DIMENSIONS[seed];
    let mut projection = PixelProjection::new(dimension, dimension as u64);
    projection.forward(&Batch { model: digest(seed), chips }).expect("embeddings").remove(0)
}

fn id(number: u8) -> EntryId {
    EntryId::new(&format!("entry {number}")).expect("an id")
}

async fn enrol(gallery: &Gallery, number: u8, kept: Option<SourceChip>) {
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
fn check(gallery: &Gallery, seed: usize, count: u8) {
    let snapshot = gallery.snapshot();
    assert_eq!((snapshot.about().model, snapshot.about().shadow), (digest(seed), None));
    assert_eq!(snapshot.entries(), usize::from(count));
    for number in 0..count {
        let row = snapshot.find(&id(number)).expect("readable").expect("there");
        assert_eq!(snapshot.embedding(row), Ok(embedding(seed, &chip(number))));
    }
}

#[tokio::test]
async fn galleries_follow_while_the_former_model_stays_for_their_searches() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (gate, comes, go) = closed_gate();
    let mut life = Life::begin(folder.path(), gate).await;
    let (first, second) = (life.gallery("first", 3, true).await, life.gallery("second", 2, true).await);
    let bare = life.gallery("bare", 2, false).await;
    let mut target = life.activate(1).await;
    let reembedder = life.reembedder.clone();
    let following = tokio::spawn(async move { reembedder.settle(&mut target).await });
    let _comes = arrival(comes).await;
    assert_eq!(first.info().following.expect("on its way").model, digest(1));
    // This one has the former model's embedding only, as from a call that began before the activation.
    enrol(&first, 3, Some(chip(3))).await;
    assert!(life.reembedder.pipeline.resolve(Some(digest(0))).is_ok());
    drop(go);
    following.await.expect("no panic");
    check(&first, 1, 4);
    check(&second, 1, 2);
    check(&bare, 0, 2);
    life.reembedder.pipeline.residency().gone(digest(0)).await;
    life.end().await;
}

#[tokio::test]
async fn what_was_embedded_before_a_restart_is_not_embedded_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let count = PIECE as u8 + 10;
    let (passed, (told, stuck)) = (Arc::new(AtomicUsize::new(0)), sync::channel());
    let gate: Gate = Arc::new({
        let passed = Arc::clone(&passed);
        move |chips| {
            // The second piece never completes.
            if passed.fetch_add(chips, Ordering::Relaxed) == PIECE {
                told.send(()).expect("the test listens");
                std::thread::park();
            }
        }
    });
    let mut life = Life::begin(folder.path(), gate).await;
    let gallery = life.gallery("g", count, true).await;
    let mut target = life.activate(1).await;
    let reembedder = life.reembedder.clone();
    let following = tokio::spawn(async move { reembedder.settle(&mut target).await });
    tokio::task::spawn_blocking(move || stuck.recv()).await.expect("no panic").expect("it comes");
    following.abort();
    assert!(following.await.expect_err("ended").is_cancelled());
    assert_eq!(gallery.info().following.expect("on its way").embedded, PIECE as u64);
    life.reembedder.catalog.close().await;
    drop((life, gallery));

    let embedded = Arc::new(AtomicUsize::new(0));
    let gate: Gate = Arc::new({
        let embedded = Arc::clone(&embedded);
        move |chips| {
            embedded.fetch_add(chips, Ordering::Relaxed);
        }
    });
    let life = Life::begin(folder.path(), gate).await;
    let mut target = life.reembedder.resumed().await;
    assert!(life.reembedder.pipeline.resolve(Some(digest(0))).is_ok(), "searches need it");
    life.reembedder.settle(&mut target).await;
    let (_, gallery) = life.reembedder.catalog.served().remove(0);
    check(&gallery, 1, count);
    assert_eq!(embedded.load(Ordering::Relaxed), 10);
    drop(target);
    assert!(life.reembedder.resumed().await.former.is_empty(), "nobody needs it any more");
    life.end().await;
}

#[tokio::test]
async fn a_gallery_with_entries_that_cannot_be_embedded_says_so_and_follows_without_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut life = Life::begin(folder.path(), open_gate()).await;
    let gallery = life.gallery("g", 2, true).await;
    enrol(&gallery, 2, None).await;
    enrol(&gallery, 3, Some(SourceChip { image: b"no image".as_slice().into(), ..chip(3) })).await;
    let mut target = life.activate(1).await;
    life.reembedder.settle(&mut target).await;
    let following = gallery.info().following.expect("on its way");
    assert_eq!(following.embedded, 2);
    let reason = following.stalled.expect("stalled");
    assert!(reason.starts_with("2 entries have no chip"), "{reason}");
    assert_eq!(gallery.info().about.model, digest(0));
    assert!(life.reembedder.pipeline.resolve(Some(digest(0))).is_ok(), "it is still searched with it");
    let refused = life.reembedder.activator.activate(digest(2)).await.expect_err("there is no place");
    assert_eq!(refused.reason().name(), "MODEL_NEEDED");
    assert!(refused.to_string().ends_with("they are t-t/g"), "{refused}");
    let reembedder = life.reembedder.clone();
    let (_changes, changes) = mpsc::unbounded_channel();
    tokio::time::pause();
    let running = tokio::spawn(reembedder.run(changes));
    // Nothing is activated and nothing is restarted.
    gallery.delete(Selector::Ids(vec![id(2), id(3)])).await.expect("deleted");
    while gallery.info().about.model != digest(1) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    check(&gallery, 1, 2);
    running.abort();
    life.end().await;
}

#[tokio::test]
async fn no_gallery_is_left_behind_by_a_model_that_is_not_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Model 0 is a preset, not in the registry.
    let mut life = Life::with_models(folder.path(), open_gate(), [1, 2]).await;
    life.gallery("first", 2, true).await;
    life.activate(1).await;
    life.reembedder.catalog.close().await;
    drop(life);

    let mut life = Life::begin(folder.path(), open_gate()).await;
    drop(life.reembedder.resumed().await);
    let mut target = life.activate(2).await;
    life.reembedder.settle(&mut target).await;
    let (_, gallery) = life.reembedder.catalog.served().remove(0);
    check(&gallery, 2, 2);
    life.end().await;
}

#[tokio::test]
async fn a_gallery_that_comes_later_follows_as_well() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut life = Life::begin(folder.path(), open_gate()).await;
    let made = life.gallery("made", 2, true).await;
    let export: Vec<_> =
        Export::new(made.snapshot(), Chips::With).collect::<Result<_, _>>().expect("readable");
    let mut target = life.activate(1).await;
    life.reembedder.settle(&mut target).await;
    let name = GalleryName::new("imported").expect("a name");
    let mut import = life.reembedder.catalog.import("other", &name).await.expect("free");
    export.iter().try_for_each(|piece| import.push(piece, &Cancellation::default())).expect("in order");
    let imported = import.finish(&Cancellation::default()).expect("whole");
    life.reembedder.settle(&mut target).await;
    check(&imported, 1, 2);
    life.end().await;
}

#[tokio::test]
async fn a_tenant_that_does_not_get_on_holds_up_no_other() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (gate, comes, go) = closed_gate();
    let mut life = Life::begin(folder.path(), gate).await;
    let stuck = life.gallery("stuck", 3, true).await;
    let name = GalleryName::new("empty").expect("a name");
    let new = NewGallery { model: digest(0), dimension: DIMENSIONS[0], composition: None, keeps_chips: true };
    let other = life.reembedder.catalog.create("z", &name, new).await.expect("made");
    let mut target = life.activate(1).await;
    let reembedder = life.reembedder.clone();
    let following = tokio::spawn(async move { reembedder.settle(&mut target).await });
    let _comes = arrival(comes).await;
    while other.info().about.model != digest(1) {
        tokio::task::yield_now().await;
    }
    assert_eq!(stuck.info().about.model, digest(0));
    drop(go);
    following.await.expect("no panic");
    check(&stuck, 1, 3);
    life.end().await;
}

#[tokio::test]
async fn a_gallery_that_cannot_even_begin_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut life = Life::begin(folder.path(), open_gate()).await;
    let gallery = life.gallery("g", 1, true).await;
    let mut target = life.activate(1).await;
    life.reembedder.catalog.close().await;
    life.reembedder.settle(&mut target).await;
    let following = gallery.info().following.expect("it should be on its way");
    assert_eq!((following.model, following.embedded), (digest(1), 0));
    assert_eq!(following.stalled.as_deref(), Some("the gallery is closed"));
    assert_eq!(target.stalls.len(), 1);
    // Back at the model that it has, it has nothing left to do.
    let former = target.active.clone();
    target.turn_to(life.reembedder.activator.lease(digest(0)).await.expect("resident"), former);
    assert_eq!(gallery.info().following, None);
    life.end().await;
}

#[tokio::test]
async fn a_server_that_stays_full_stalls_galleries_until_it_has_room() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut life = Life::begin(folder.path(), open_gate()).await;
    let gallery = life.gallery("g", 1, true).await;
    let mut target = life.activate(1).await;
    let pipeline = Arc::clone(&life.reembedder.pipeline);
    let caller = Caller { tenant: "t".into(), priority: Priority::Interactive, deadline: None };
    let everything = pipeline.admit(&target.active, &caller, 99, 0).expect("it is empty");
    tokio::time::pause();
    life.reembedder.settle(&mut target).await;
    let following = gallery.info().following.expect("on its way");
    assert_eq!(following.stalled.as_deref(), Some("the server had no room for its chips for 60 s"));
    drop(everything);
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
    life.reembedder.settle(&mut target).await;
    check(&gallery, 1, 1);
    life.end().await;
}

#[tokio::test]
async fn what_stalls_is_tried_ever_later_and_sooner_once_it_was_written_to() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let life = Life::begin(folder.path(), open_gate()).await;
    let gallery = life.gallery("g", 1, true).await;
    let (place, _) = life.reembedder.catalog.served().remove(0);
    tokio::time::pause();
    let mut stalls = Stalls::default();
    assert!(stalls.may_go_on(&place, &gallery));
    let mut waits = Vec::new();
    for _ in 0..11 {
        stalls.tell(place.clone(), &gallery, digest(1), Err(Stall::Panicked));
        let stalled = tokio::time::Instant::now();
        while !stalls.may_go_on(&place, &gallery) {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        waits.push(stalled.elapsed().as_secs());
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
    stalls.tell(place.clone(), &gallery, digest(1), Err(Stall::Panicked));
    gallery.delete(Selector::Ids(vec![id(0)])).await.expect("deleted");
    tokio::time::advance(Duration::from_secs(9)).await;
    assert!(!stalls.may_go_on(&place, &gallery));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(stalls.may_go_on(&place, &gallery));
    tokio::time::resume();
    life.end().await;
}

#[tokio::test]
async fn a_gallery_stays_when_its_model_becomes_active_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (gate, comes, go) = closed_gate();
    let mut life = Life::begin(folder.path(), gate).await;
    let gallery = life.gallery("g", 3, true).await;
    let (_, unused) = mpsc::unbounded_channel();
    let changes = std::mem::replace(&mut life.changes, unused);
    let running = tokio::spawn(life.reembedder.clone().run(changes));
    life.reembedder.activator.activate(digest(1)).await.expect("activated");
    let _comes = arrival(comes).await;
    life.reembedder.activator.activate(digest(0)).await.expect("activated again");
    drop(go);
    life.reembedder.pipeline.residency().gone(digest(1)).await;
    while gallery.info().following.is_some() {
        tokio::task::yield_now().await;
    }
    check(&gallery, 0, 3);
    running.abort();
    life.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_share_galleries_re_embed_different_ones_and_take_over_from_a_silent_one() {
    let Some(trial) = Trial::new().await else { return };
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let (gate, comes, go) = closed_gate();
    let mut silent = Life::sharing(&trial, folders[0].path(), gate).await;
    let mut other = Life::sharing(&trial, folders[1].path(), open_gate()).await;
    let first = silent.gallery("first", 3, true).await;
    silent.gallery("second", 2, true).await;
    let of_other = async |name: &str| {
        let name = GalleryName::new(name).expect("a name");
        other.reembedder.catalog.get("t", &name).await.expect("there")
    };
    let (first_there, second_there) = (of_other("first").await, of_other("second").await);

    let mut target = silent.activate(1).await;
    silent.reembedder.announce(digest(1), true).await;
    let reembedder = silent.reembedder.clone();
    let following = tokio::spawn(async move { reembedder.settle(&mut target).await });
    let _comes = arrival(comes).await;
    let mut target = other.activate(1).await;
    other.reembedder.settle(&mut target).await;
    check(&second_there, 1, 2);
    assert_eq!(first_there.info().about.model, digest(0), "the other one has it");

    // It may claim the gallery again just before the other server does.
    while first_there.info().about.model == digest(0) {
        trial.execute("update moves set held_until = now() - interval '1 second'").await;
        other.reembedder.settle(&mut target).await;
    }
    check(&first_there, 1, 3);
    drop(go);
    following.await.expect("no panic");
    let name = GalleryName::new("first").expect("a name");
    silent.reembedder.catalog.get("t", &name).await.expect("there");
    check(&first, 1, 3);
    silent.end().await;
    other.end().await;
}
