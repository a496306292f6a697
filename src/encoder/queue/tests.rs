//! What happens to chips when a batch fails, a caller leaves, or the queue closes.

mod canary;

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::arithmetic::Precision;
use crate::chip::{Chip, ImageLimits, Modality, SarStretch};
use crate::embedding::Embedding;
use crate::encoder::types::EncoderEvent;
use crate::encoder::{
    Admission, Batch, Caller, CanaryOutcome, Encoder, ForwardError, LoadedModel, ModelCard, ModelLease,
    Pipeline, Refusal, Rehearsal, Residency, ResidencySettings, keep_canaries,
};

const SIZE: ChipSize = ChipSize { height: 2, width: 2 };

/// What a scripted forward pass does.
enum Act {
    Answer,
    Panic,
    RunOut,
    Miscount,
}

struct Scripted {
    warming: usize,
    acts: std::sync::mpsc::Receiver<Act>,
    /// Called with the number of chips received.
    seen: Box<dyn Fn(usize) + Send>,
}

impl Encoder for Scripted {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
        let mut count = batch.chips.len();
        if self.warming > 0 {
            self.warming -= 1;
        } else {
            (self.seen)(count);
            match self.acts.recv().expect("the test acts") {
                Act::Answer => {}
                Act::Panic => panic!("scripted"),
                Act::RunOut => return Err(ForwardError::OutOfMemory),
                Act::Miscount => count += 1,
            }
        }
        Ok(vec![Embedding::from_feature(vec![1.0]).expect("a direction"); count])
    }
}

/// One device thread with batches of up to two, and all its events.
struct Bench {
    queue: EncodeQueue,
    acts: std::sync::mpsc::Sender<Act>,
    seen: mpsc::UnboundedReceiver<usize>,
    events: mpsc::UnboundedReceiver<EncoderEvent>,
}

fn digest() -> ModelDigest {
    ModelDigest::new([1; 32])
}

async fn bench() -> Bench {
    let (bench, factory) = empty_bench();
    bench.queue.load(digest(), SIZE, factory).await.expect("a scripted encoder");
    bench
}

fn empty_bench() -> (Bench, EncoderFactory) {
    let (told, events) = mpsc::unbounded_channel();
    let observe: Observe = Arc::new(move |event| drop(told.send(event)));
    let queue = EncodeQueue::start(QueueSettings { workers: 1, batch_max: 2 }, observe);
    let (acts, script) = std::sync::mpsc::channel();
    let (saw, seen) = mpsc::unbounded_channel();
    let script = Mutex::new(Some((script, saw)));
    let factory: EncoderFactory = Arc::new(move |_| {
        let (acts, saw) = script.lock().expect("one thread").take().expect("one worker");
        let seen = Box::new(move |count| saw.send(count).expect("the test listens"));
        Ok(Box::new(Scripted { warming: 2, acts, seen }) as Box<dyn Encoder>)
    });
    (Bench { queue, acts, seen, events }, factory)
}

impl Bench {
    fn send(&self) -> JoinHandle<Result<Encoded, EncodeError>> {
        self.send_until(None)
    }

    fn send_until(&self, deadline: Option<tokio::time::Instant>) -> JoinHandle<Result<Encoded, EncodeError>> {
        let queue = self.queue.clone();
        let job = EncodeJob {
            model: digest(),
            tenant: "t".into(),
            priority: Priority::Interactive,
            deadline,
            chip: Chip::new(vec![0; 12], SIZE, Modality::Sar, [0.0; 3]).into(),
        };
        tokio::spawn(async move { queue.encode(job).await })
    }

    fn act(&self, act: Act) {
        self.acts.send(act).expect("the encoder lives");
    }

    async fn wait_for(&mut self, wanted: &EncoderEvent) {
        while self.events.recv().await.as_ref() != Some(wanted) {}
    }

    /// Keeps the device busy until two more chips wait, which will form one batch.
    async fn pair(&mut self) -> [JoinHandle<Result<Encoded, EncodeError>>; 2] {
        let busy = self.send();
        assert_eq!(self.seen.recv().await, Some(1));
        let pair = [self.send(), self.send()];
        self.wait_for(&EncoderEvent::Depth(2)).await;
        self.act(Act::Answer);
        busy.await.expect("no panic").expect("an embedding");
        assert_eq!(self.seen.recv().await, Some(2));
        pair
    }

    async fn is_alive(&mut self) {
        let chip = self.send();
        self.act(Act::Answer);
        assert_eq!(chip.await.expect("no panic").expect("an embedding").batch_size, 1);
    }
}

/// Tells which sizes it runs, and has a part that stands for a large share of a forward pass.
struct Rehearsed {
    name: &'static str,
    ran: std::sync::mpsc::Sender<(&'static str, usize)>,
    part: Option<Box<Rehearsed>>,
}

const TIMES: u32 = 10_000_000;

impl Encoder for Rehearsed {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Embedding>, ForwardError> {
        self.ran.send((self.name, batch.chips.len())).expect("the test listens");
        Ok(vec![Embedding::from_feature(vec![1.0]).expect("a direction"); batch.chips.len()])
    }

    fn rehearsal(&mut self) -> Option<Rehearsal<'_>> {
        let part = self.part.as_mut()?;
        Some(Rehearsal { part: part.as_mut(), times: TIMES })
    }
}

#[tokio::test]
async fn a_part_of_a_forward_pass_warms_every_size_but_the_first_and_tells_its_time() {
    let (ran, running) = std::sync::mpsc::channel();
    let ran = Mutex::new(ran);
    let factory: EncoderFactory = Arc::new(move |_| {
        let ran = ran.lock().expect("no panic");
        let part = Box::new(Rehearsed { name: "part", ran: ran.clone(), part: None });
        Ok(Box::new(Rehearsed { name: "whole", ran: ran.clone(), part: Some(part) }) as Box<dyn Encoder>)
    });
    let queue = EncodeQueue::start(QueueSettings { workers: 1, batch_max: 4 }, Arc::new(drop));
    queue.load(digest(), SIZE, factory).await.expect("a model");
    assert_eq!(running.try_iter().collect::<Vec<_>>(), [("whole", 1), ("part", 2), ("part", 4)]);
    // The part takes no less than some nanoseconds.
    assert!(queue.least_time(digest(), 4) > Duration::from_millis(50));
    queue.close().await;
}

#[tokio::test]
async fn chips_that_arrive_while_the_device_is_busy_become_one_batch() {
    let mut bench = bench().await;
    let pair = bench.pair().await;
    bench.act(Act::Answer);
    for chip in pair {
        assert_eq!(chip.await.expect("no panic").expect("an embedding").batch_size, 2);
    }
    bench.queue.close().await;
}

#[tokio::test]
async fn a_batch_that_panics_or_miscounts_fails_only_its_chips() {
    let mut bench = bench().await;
    for act in [Act::Panic, Act::Miscount] {
        let pair = bench.pair().await;
        bench.act(act);
        for chip in pair {
            assert_eq!(chip.await.expect("no panic").expect_err("failed"), EncodeError::Failed);
        }
        bench.is_alive().await;
        assert_eq!(bench.seen.recv().await, Some(1));
    }
    bench.queue.close().await;
}

#[tokio::test]
async fn a_batch_too_large_for_memory_is_split_once_and_a_half_may_fail_alone() {
    let mut bench = bench().await;
    let [first, second] = bench.pair().await;
    for act in [Act::RunOut, Act::Answer, Act::RunOut] {
        bench.act(act);
    }
    assert_eq!(first.await.expect("no panic").expect("an embedding").batch_size, 1);
    assert_eq!(second.await.expect("no panic").expect_err("half"), EncodeError::OutOfMemory);
    assert_eq!([bench.seen.recv().await, bench.seen.recv().await], [Some(1), Some(1)]);
    bench.is_alive().await;
    bench.queue.close().await;
}

#[tokio::test]
async fn a_chip_whose_caller_left_is_not_embedded() {
    let mut bench = bench().await;
    let busy = bench.send();
    assert_eq!(bench.seen.recv().await, Some(1));
    bench.wait_for(&EncoderEvent::Depth(0)).await;
    let leaving = bench.send();
    bench.wait_for(&EncoderEvent::Depth(1)).await;
    leaving.abort();
    bench.wait_for(&EncoderEvent::Dropped { reason: "CANCELLED" }).await;
    assert_eq!(bench.queue.depth(), 0);
    bench.act(Act::Answer);
    busy.await.expect("no panic").expect("an embedding");
    bench.queue.close().await;
    assert_eq!(bench.seen.recv().await, None);
    let late = bench.send().await.expect("no panic");
    assert_eq!(late.expect_err("closed"), EncodeError::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_chip_is_given_up_at_its_deadline_and_never_costs_the_device() {
    let mut bench = bench().await;
    let busy = bench.send();
    assert_eq!(bench.seen.recv().await, Some(1));
    bench.wait_for(&EncoderEvent::Depth(0)).await;
    let started = tokio::time::Instant::now();
    let hurried = bench.send_until(Some(started + Duration::from_secs(5)));
    let outcome = hurried.await.expect("no panic").expect_err("too late");
    assert_eq!((outcome, started.elapsed()), (EncodeError::DeadlineExceeded, Duration::from_secs(5)));
    bench.wait_for(&EncoderEvent::Dropped { reason: "DEADLINE" }).await;
    assert_eq!(bench.queue.depth(), 0);
    bench.act(Act::Answer);
    busy.await.expect("no panic").expect("an embedding");
    bench.queue.close().await;
    assert_eq!(bench.seen.recv().await, None);
}

/// A bench whose model is the active one of a pipeline.
async fn piped() -> (Bench, Arc<Pipeline>) {
    let (bench, factory) = empty_bench();
    let card = ModelCard {
        digest: digest(),
        dimension: 1,
        chip_size: SIZE,
        sar_stretch: SarStretch::default(),
        precision: Precision::F32,
        members: None,
    };
    let settings = ResidencySettings { bytes_max: 1, device: "cpu".into() };
    let residency = Residency::new(bench.queue.clone(), settings);
    let loaded = LoadedModel { card, factory, workers: 1, bytes: 1 };
    let model = residency.admit(loaded).await.expect("a scripted encoder");
    let limits = ImageLimits { bytes_max: 1, pixels_max: 1 };
    let pipeline = Pipeline::new(Admission::new(9, 999), limits, 1, residency, model);
    (bench, Arc::new(pipeline))
}

#[tokio::test(start_paused = true)]
async fn a_call_that_the_queue_would_keep_too_long_is_refused_at_once() {
    let (mut bench, pipeline) = piped().await;
    let model = pipeline.active();
    for size in [1, 2].repeat(200) {
        bench.queue.state.record_time(digest(), size, Duration::from_secs(5 * size as u64));
    }
    let busy = bench.send();
    assert_eq!(bench.seen.recv().await, Some(1));
    bench.wait_for(&EncoderEvent::Depth(0)).await;
    let waits = bench.send();
    bench.wait_for(&EncoderEvent::Depth(1)).await;

    let admit = |seconds: Option<u64>| {
        let deadline = seconds.map(|seconds| tokio::time::Instant::now() + Duration::from_secs(seconds));
        let caller = Caller { tenant: "t".into(), priority: Priority::Interactive, deadline };
        pipeline.admit(&model, &caller, 1, 1).map(drop)
    };
    // The running batch, and one with the waiting chip: 20 seconds, and a quarter more as a margin.
    assert!(
        matches!(admit(Some(24)), Err(Refusal::Deadline { expected, .. }) if expected.as_secs_f64().round() == 20.0)
    );
    assert_eq!(admit(Some(26)), Ok(()));
    assert_eq!(admit(None), Ok(()));

    bench.act(Act::Answer);
    bench.act(Act::Answer);
    for chip in [busy, waits] {
        chip.await.expect("no panic").expect("an embedding");
    }
    bench.queue.close().await;
}

#[tokio::test]
async fn an_unloaded_model_takes_no_new_chips_but_does_those_that_wait() {
    let mut bench = bench().await;
    let busy = bench.send();
    assert_eq!(bench.seen.recv().await, Some(1));
    bench.wait_for(&EncoderEvent::Depth(0)).await;
    let waits = bench.send();
    bench.wait_for(&EncoderEvent::Depth(1)).await;
    let queue = bench.queue.clone();
    let mut unloading = Box::pin(queue.unload(digest()));
    assert!(futures_util::poll!(&mut unloading).is_pending());
    assert_eq!(bench.send().await.expect("no panic").expect_err("unloaded"), EncodeError::UnknownModel);
    bench.act(Act::Answer);
    bench.act(Act::Answer);
    for chip in [busy, waits] {
        chip.await.expect("no panic").expect("an embedding");
    }
    unloading.await;
    assert_eq!([bench.seen.recv().await, bench.seen.recv().await], [Some(1), None], "the encoder is gone");
    bench.queue.close().await;
}

const PERIOD: Duration = Duration::from_secs(30);
