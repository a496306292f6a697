//! Activations that succeed, fail, overlap and are abandoned.

use std::fs;
use std::path::Path;
use std::sync::mpsc as sync;

use super::*;
use crate::arithmetic::Precision;
use crate::chip::ImageLimits;
use crate::encoder::{
    Admission, EncodeQueue, Encoder, EncoderFactory, ModelCard, PixelProjection, QueueSettings, Residency,
    ResidencySettings,
};
use crate::registry::{Preset, Provenance, RegistryLimits};
use crate::weights::family::FeaturePoint;
use crate::weights::family::transoss::TransOssArchitecture;
use crate::weights::open::OpenModel;
use crate::weights::{golden, native, seed::seeded};

const BYTES: u64 = 100;

/// A registry with two models in addition to the one that serves, and what is needed to activate them.
struct Bench {
    activator: Activator,
    changes: mpsc::UnboundedReceiver<Activation>,
    pipeline: Arc<Pipeline>,
    folder: tempfile::TempDir,
}

fn model(seed: u64) -> AnyModel {
    let architecture = TransOssArchitecture { classes: 0, ..golden::MICRO }.into();
    OpenModel::new(architecture, FeaturePoint::BeforeNeck, seeded(&architecture, seed)).into()
}

fn digest(seed: u64) -> ModelDigest {
    model(seed).digest()
}

fn loaded(model: &AnyModel) -> LoadedModel {
    let dimension = model.dimension();
    let card = ModelCard {
        digest: model.digest(),
        dimension,
        chip_size: model.preprocessing().size,
        sar_stretch: model.preprocessing().sar_stretch,
        precision: Precision::F32,
        members: None,
    };
    let factory: EncoderFactory =
        Arc::new(move |_| Ok(Box::new(PixelProjection::new(dimension, 1)) as Box<dyn Encoder>));
    LoadedModel { card, factory, workers: 1, bytes: BYTES }
}

async fn bench(loader: ModelLoader) -> Bench {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let limits = RegistryLimits { count_max: 9, bytes_max: 1 << 30 };
    let registry = Registry::open(folder.path(), limits).expect("a registry");
    for seed in [1, 2] {
        registry.add(&model(seed), &Provenance::now("test")).expect("room");
    }
    let queue = EncodeQueue::start(QueueSettings { workers: 1, batch_max: 1 }, Arc::new(|_| {}));
    let settings = ResidencySettings { bytes_max: 2 * BYTES, device: "cpu".into() };
    let residency = Residency::new(queue, settings);
    let first = residency.admit(loaded(&model(0))).await.expect("room");
    let limits = ImageLimits { bytes_max: 1, pixels_max: 1 };
    let pipeline = Arc::new(Pipeline::new(Admission::new(9, 999), limits, 1, residency, first));
    let (activator, changes) =
        Activator::new(Arc::new(registry), Arc::clone(&pipeline), loader, Some(Preset::new(|| Ok(model(0)))));
    Bench { activator, changes, pipeline, folder }
}

fn projections() -> ModelLoader {
    Arc::new(|model| Ok(loaded(&model)))
}

/// A loader that signals when it has begun and waits to be released.
fn gated() -> (ModelLoader, sync::Receiver<()>, sync::Sender<()>) {
    let (begun, begins) = sync::channel();
    let (go, gate) = sync::channel();
    let gate = std::sync::Mutex::new(gate);
    let loader: ModelLoader = Arc::new(move |model| {
        begun.send(()).expect("the test listens");
        gate.lock().expect("no panic").recv().expect("the test lets it go");
        Ok(loaded(&model))
    });
    (loader, begins, go)
}

async fn begun(begins: sync::Receiver<()>) {
    tokio::task::spawn_blocking(move || begins.recv()).await.expect("no panic").expect("it begins");
}

fn flip_a_bit(folder: &Path, digest: ModelDigest) {
    let path = folder.join(digest.to_string()).join(native::TENSORS);
    let mut bytes = fs::read(&path).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("writable");
}

#[tokio::test]
async fn an_activation_is_remembered_and_the_former_model_leaves_when_nobody_follows() {
    let mut bench = bench(projections()).await;
    for (next, former) in [(1, 0), (2, 1), (1, 2)] {
        let active = bench.activator.activate(digest(next)).await.expect("activated");
        assert_eq!(active.digest, digest(next));
        assert_eq!(bench.pipeline.resolve(None).expect("active").digest, digest(next));
        let remembered = ActiveModel { digest: digest(next), former: digest(former) };
        assert_eq!(bench.activator.registry().active(), Some(remembered));
        let change = bench.changes.recv().await.expect("told");
        assert!(bench.pipeline.resolve(Some(digest(former))).is_ok(), "whoever follows needs it");
        drop(change);
        bench.pipeline.residency().gone(digest(former)).await;
    }
    bench.activator.activate(digest(1)).await.expect("active already");
    assert!(bench.changes.try_recv().is_err(), "nothing has changed");
    bench.pipeline.residency().queue().close().await;
}

#[tokio::test]
async fn a_model_that_serves_by_configuration_is_remembered_once_it_is_activated() {
    let bench = bench(projections()).await;
    let registry = bench.activator.registry();
    bench.activator.activate(digest(0)).await.expect("a preset serves");
    assert_eq!(registry.active(), None, "it is not kept");
    registry.add(&model(0), &Provenance::now("test")).expect("room");
    bench.activator.activate(digest(0)).await.expect("active already");
    assert_eq!(registry.active(), Some(ActiveModel { digest: digest(0), former: digest(0) }));
    registry.set_active(ActiveModel { digest: digest(1), former: digest(2) }).expect("there");
    bench.activator.activate(digest(0)).await.expect("active already");
    assert_eq!(registry.active(), Some(ActiveModel { digest: digest(0), former: digest(1) }));
    bench.pipeline.residency().queue().close().await;
}

#[tokio::test]
async fn a_preset_that_served_can_be_activated_again() {
    let mut bench = bench(projections()).await;
    bench.activator.activate(digest(1)).await.expect("activated");
    // It is still resident, so it need not be able to serve again.
    bench.activator.activate(digest(0)).await.expect("activated again");
    for _ in 0..2 {
        drop(bench.changes.recv().await.expect("told"));
    }
    bench.pipeline.residency().gone(digest(1)).await;
    for (next, former) in [(1, 0), (0, 1), (2, 0), (0, 2)] {
        let active = bench.activator.activate(digest(next)).await.expect("activated");
        assert_eq!(active.digest, digest(next));
        let remembered = ActiveModel { digest: digest(next), former: digest(former) };
        assert_eq!(bench.activator.registry().active(), Some(remembered));
        drop(bench.changes.recv().await.expect("told"));
        bench.pipeline.residency().gone(digest(former)).await;
    }
    assert_eq!(
        bench.activator.activate(digest(9)).await.expect_err("unknown").reason().name(),
        "MODEL_NOT_FOUND"
    );
    bench.pipeline.residency().queue().close().await;
}

#[tokio::test]
async fn a_model_that_cannot_serve_leaves_the_active_one_alone() {
    let bench = bench(Arc::new(|model| match model.digest() {
        bad if bad == digest(1) => Err(LoadError("no such device".into())),
        _ => Ok(LoadedModel { bytes: 2 * BYTES, ..loaded(&model) }),
    }))
    .await;
    let check = async |model, reason: &str| {
        let refused = bench.activator.activate(model).await.expect_err("it cannot serve");
        assert_eq!(refused.reason().name(), reason, "{refused}");
        assert_eq!(bench.pipeline.active().digest, digest(0));
        assert_eq!(bench.activator.registry().active(), None);
    };
    check(digest(7), "MODEL_NOT_FOUND").await;
    check(digest(1), "MODEL_NOT_RUNNABLE").await;
    check(digest(2), "MODEL_TOO_LARGE").await;
    flip_a_bit(bench.folder.path(), digest(2));
    check(digest(2), "MODEL_DAMAGED").await;
    bench.pipeline.residency().queue().close().await;
}

#[tokio::test]
async fn an_activation_that_cannot_be_remembered_does_not_happen() {
    let bench = bench(projections()).await;
    fs::create_dir(bench.folder.path().join("active.toml.new")).expect("writable");
    let refused = bench.activator.activate(digest(1)).await.expect_err("not writable");
    assert_eq!(refused.reason().name(), "MODEL_STORE_FAILED");
    assert_eq!(bench.pipeline.active().digest, digest(0));
    bench.pipeline.residency().gone(digest(1)).await;
    bench.pipeline.residency().queue().close().await;
}

#[tokio::test]
async fn one_model_is_activated_at_a_time() {
    let (loader, begins, go) = gated();
    let bench = bench(loader).await;
    let activator = bench.activator.clone();
    let first = tokio::spawn(async move { activator.activate(digest(1)).await });
    begun(begins).await;
    let refused = bench.activator.activate(digest(2)).await.expect_err("one is on its way");
    assert!(matches!(refused, ActivationError::Busy));
    go.send(()).expect("it waits");
    first.await.expect("no panic").expect("activated");
    assert_eq!(bench.pipeline.active().digest, digest(1));
    bench.pipeline.residency().queue().close().await;
}

#[tokio::test]
async fn an_activation_goes_on_when_its_caller_leaves() {
    let (loader, begins, go) = gated();
    let mut bench = bench(loader).await;
    let activator = bench.activator.clone();
    let caller = tokio::spawn(async move { activator.activate(digest(1)).await.map(drop) });
    begun(begins).await;
    caller.abort();
    assert!(caller.await.expect_err("it left").is_cancelled());
    go.send(()).expect("it waits");
    let change = bench.changes.recv().await.expect("it happened");
    assert_eq!((change.active.digest, bench.pipeline.active().digest), (digest(1), digest(1)));
    bench.pipeline.residency().queue().close().await;
}
