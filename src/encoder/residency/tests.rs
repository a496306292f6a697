//! Models that are loaded and unloaded while chips are embedded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::arithmetic::Precision;
use crate::chip::{self, ChipForm, ImageLimits, Modality, SarStretch, SourceChip, View};
use crate::embedding::Embedding;
use crate::encoder::{
    Admission, Batch, Caller, Encoder, ForwardError, Pipeline, PixelProjection, Priority, QueueSettings,
};

const SIZE: ChipSize = ChipSize { height: 8, width: 4 };
const DIMENSION: usize = 8;
const LIMITS: ImageLimits = ImageLimits { bytes_max: 1 << 20, pixels_max: 1 << 20 };
const WORKERS: usize = 2;

/// A projection that reports on which thread it is dropped.
struct Probe {
    projection: PixelProjection,
    ended: mpsc::Sender<String>,
}

impl Encoder for Probe {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
        self.projection.forward(batch)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // The test may be over.
        let _ = self.ended.send(thread::current().name().unwrap_or_default().to_owned());
    }
}

fn digest(number: u8) -> ModelDigest {
    ModelDigest::new([number; 32])
}

/// A projection of seed `number`, and a receiver that reports where its encoders are dropped.
fn model(number: u8) -> (LoadedModel, mpsc::Receiver<String>) {
    let (ended, ends) = mpsc::channel();
    let factory: EncoderFactory = Arc::new(move |_| {
        let projection = PixelProjection::new(DIMENSION, u64::from(number));
        Ok(Box::new(Probe { projection, ended: ended.clone() }) as Box<dyn Encoder>)
    });
    (loaded(number, factory), ends)
}

fn loaded(number: u8, factory: EncoderFactory) -> LoadedModel {
    let card = ModelCard {
        digest: digest(number),
        dimension: DIMENSION,
        chip_size: SIZE,
        sar_stretch: SarStretch::default(),
        precision: Precision::F32,
        members: None,
    };
    LoadedModel { card, factory, workers: WORKERS, bytes: 100 }
}

fn residency(bytes_max: u64) -> Residency {
    let queue = EncodeQueue::start(QueueSettings { workers: WORKERS, batch_max: 4 }, Arc::new(|_| {}));
    Residency::new(queue, ResidencySettings { bytes_max, device: "cpu".into() })
}

fn source_chip() -> SourceChip {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/images/0001_a_33x97_RGB.tif");
    let image = std::fs::read(path).expect("recorded").into();
    SourceChip { image, view: View::plain(Modality::Optical) }
}

/// The embedding of the chip by the projection of seed `number`.
fn expected(number: u8) -> Embedding {
    let source = source_chip();
    let chip = chip::prepare(&source.image, &source.view, ChipForm::reference(SIZE), &LIMITS)
        .expect("recorded")
        .chip;
    let batch = Batch { model: digest(number), chips: vec![chip.into()] };
    PixelProjection::new(DIMENSION, number.into()).forward(&batch).expect("embeddings").remove(0)
}

fn caller() -> Caller {
    Caller { tenant: "t".into(), priority: Priority::Interactive, deadline: None }
}

/// Embeds until stopped; every answer must come from the model that the call resolved.
async fn keep_embedding(pipeline: Arc<Pipeline>, stop: Arc<AtomicBool>) -> [usize; 2] {
    let expected = [expected(1), expected(2)];
    let mut answers = [0, 0];
    while !stop.load(Ordering::Relaxed) {
        let lease = pipeline.resolve(None).expect("there is always an active model");
        let embedded = pipeline.embed(&lease, &caller(), source_chip()).await.expect("no call fails");
        let model = usize::from(lease.digest == digest(2));
        assert_eq!(embedded.embedding, expected[model]);
        answers[model] += 1;
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn models_are_swapped_under_load_without_a_failed_or_wrong_answer() {
    let residency = residency(1000);
    let active = residency.admit(model(1).0).await.expect("room");
    let pipeline = Arc::new(Pipeline::new(Admission::new(64, 1 << 30), LIMITS, 2, residency.clone(), active));
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> =
        (0..8).map(|_| tokio::spawn(keep_embedding(Arc::clone(&pipeline), Arc::clone(&stop)))).collect();
    for round in 0..20 {
        let (next, former) = if round % 2 == 0 { (2, 1) } else { (1, 2) };
        drop(pipeline.activate(residency.admit(model(next).0).await.expect("room")));
        residency.gone(digest(former)).await;
        assert!(pipeline.resolve(Some(digest(former))).is_err());
        // A whole call on the new model before the next swap.
        let lease = pipeline.resolve(Some(digest(next))).expect("active");
        pipeline.embed(&lease, &caller(), source_chip()).await.expect("an embedding");
    }
    stop.store(true, Ordering::Relaxed);
    let mut answers = [0, 0];
    for caller in callers {
        let more = caller.await.expect("no caller panics");
        answers = [answers[0] + more[0], answers[1] + more[1]];
    }
    assert!(answers[0] > 0 && answers[1] > 0, "{answers:?}");
    residency.queue().close().await;
}

#[tokio::test]
async fn a_model_stays_for_its_last_lease_and_ends_on_the_device_threads() {
    let residency = residency(1000);
    let (loaded, ends) = model(1);
    let first = residency.admit(loaded).await.expect("room");
    let second = residency.lease(digest(1)).expect("resident");
    let again = residency.admit(model(1).0).await.expect("resident already");
    drop((first, again));
    assert!(ends.try_recv().is_err());
    drop(second);
    assert!(residency.lease(digest(1)).is_none(), "it is on its way out");
    residency.gone(digest(1)).await;
    let mut threads: Vec<_> = ends.try_iter().collect();
    threads.sort();
    assert_eq!(threads, ["device-0", "device-1"]);
    residency.queue().close().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_two_models_are_resident_within_the_memory() {
    let residency = residency(250);
    let first = residency.admit(model(1).0).await.expect("room");
    let second = residency.admit(model(2).0).await.expect("room");
    let refused = residency.admit(model(3).0).await.expect_err("the third");
    assert_eq!(refused, ResidencyError::Full { resident: vec![digest(1), digest(2)] });
    drop(second);
    let mut large = model(3).0;
    large.bytes = 151;
    let refused = residency.admit(large).await.expect_err("too large");
    let too_large = ResidencyError::TooLarge { model: digest(3), needed: 151, taken: 100, limit: 250 };
    assert_eq!(refused, too_large);
    drop(first);
    // Slots of models that are being unloaded are waited for.
    let leases = [residency.admit(model(4).0).await, residency.admit(model(5).0).await];
    assert!(leases.iter().all(Result::is_ok));
    residency.queue().close().await;
}

#[tokio::test]
async fn a_model_that_arrives_waits_for_calls_in_flight() {
    let residency = residency(1000);
    let _first = residency.admit(model(1).0).await.expect("room");
    let second = residency.admit(model(2).0).await.expect("room");
    let mut waits = Box::pin(residency.admit(model(3).0));
    assert!(futures_util::poll!(&mut waits).is_pending());
    drop(second);
    waits.await.expect("a place became free");
    residency.queue().close().await;
}

#[tokio::test]
async fn a_model_that_fails_on_one_thread_is_on_none() {
    let residency = residency(1000);
    let _active = residency.admit(model(1).0).await.expect("room");
    let (ended, ends) = mpsc::channel();
    let factory: EncoderFactory = Arc::new(move |worker| match worker {
        0 => {
            let projection = PixelProjection::new(DIMENSION, 2);
            Ok(Box::new(Probe { projection, ended: ended.clone() }) as Box<dyn Encoder>)
        }
        _ => Err("no memory".into()),
    });
    let refused = residency.admit(loaded(2, factory)).await.expect_err("it fails");
    assert_eq!(refused, LoadError("no memory".into()).into());
    assert_eq!(ends.try_iter().collect::<Vec<_>>(), ["device-0"]);
    assert!(residency.lease(digest(2)).is_none());
    drop(residency.admit(model(2).0).await.expect("its place is free"));
    residency.queue().close().await;
    let closed = residency.admit(model(3).0).await.expect_err("the threads have ended");
    assert!(matches!(closed, ResidencyError::Load(_)));
}

#[tokio::test]
async fn a_model_that_nobody_waits_for_any_more_leaves() {
    let residency = residency(1000);
    let (loaded, ends) = model(1);
    let abandoned = tokio::spawn({
        let residency = residency.clone();
        async move { residency.admit(loaded).await.map(drop) }
    });
    abandoned.abort();
    // Whether or not it was begun: the next one finds room, and nothing of the first remains.
    let _two = residency.admit(model(2).0).await.expect("room");
    let _three = residency.admit(model(3).0).await.expect("room");
    let started = ends.iter().collect::<Vec<_>>();
    assert!([0, WORKERS].contains(&started.len()), "{started:?}");
    residency.queue().close().await;
}
