//! The probe of idle device threads, and the health that comes of it.

use super::*;

/// Prevents the paused clock from advancing automatically while a device thread works, for as long as the sender lives.
fn held_clock() -> std::sync::mpsc::Sender<()> {
    let (held, until) = std::sync::mpsc::channel();
    tokio::task::spawn_blocking(move || until.recv());
    held
}

/// Lets the canaries begin to wait, then lets their period pass.
async fn idle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(PERIOD).await;
}

fn told(outcome: CanaryOutcome) -> EncoderEvent {
    EncoderEvent::Canary { worker: 0, model: digest(), outcome }
}

#[tokio::test(start_paused = true)]
async fn an_idle_device_is_tried_and_health_is_what_comes_of_it() {
    let _clock = held_clock();
    let (mut bench, pipeline) = piped().await;
    let health = bench.queue.health();
    let keeping = tokio::spawn(keep_canaries(pipeline, PERIOD));

    idle().await;
    assert_eq!(bench.seen.recv().await, Some(1));
    bench.act(Act::Answer);
    bench.wait_for(&told(CanaryOutcome::Passed)).await;
    assert_eq!(*health.borrow(), Health::Serving);

    idle().await;
    assert_eq!(bench.seen.recv().await, Some(1));
    bench.act(Act::Panic);
    bench.wait_for(&told(CanaryOutcome::Failed)).await;
    assert_eq!(*health.borrow(), Health::Failing);

    // A caller's chip that succeeds proves as much.
    bench.is_alive().await;
    assert_eq!((bench.seen.recv().await, *health.borrow()), (Some(1), Health::Serving));

    idle().await;
    assert_eq!(bench.seen.recv().await, Some(1));
    idle().await;
    bench.wait_for(&told(CanaryOutcome::Late)).await;
    assert_eq!(*health.borrow(), Health::Failing);
    bench.act(Act::Answer);
    let mut health = health;
    health.wait_for(|health| *health == Health::Serving).await.expect("the queue lives");

    bench.queue.close().await;
    keeping.abort();
}

/// Device threads, each of which acts as instructed, by each model.
struct Threads {
    queue: EncodeQueue,
    events: mpsc::UnboundedReceiver<EncoderEvent>,
    acts: HashMap<(u8, usize), std::sync::mpsc::Sender<Act>>,
    seen: mpsc::UnboundedReceiver<(u8, usize)>,
}

impl Threads {
    /// Loads models 1 to `models` on this many threads, and sends canaries.
    async fn start(workers: usize, models: u8) -> (Self, Arc<Pipeline>, Vec<ModelLease>) {
        let (told, events) = mpsc::unbounded_channel();
        let observe: Observe = Arc::new(move |event| drop(told.send(event)));
        let queue = EncodeQueue::start(QueueSettings { workers, batch_max: 1 }, observe);
        let residency =
            Residency::new(queue.clone(), ResidencySettings { bytes_max: 9, device: "cpu".into() });
        let (saw, seen) = mpsc::unbounded_channel();
        let (mut acts, mut leases) = (HashMap::new(), Vec::new());
        for number in 1..=models {
            let scripts = (0..workers).map(|worker| {
                let (act, script) = std::sync::mpsc::channel();
                acts.insert((number, worker), act);
                Mutex::new(Some(script))
            });
            let (scripts, saw): (Vec<_>, _) = (scripts.collect(), saw.clone());
            let factory: EncoderFactory = Arc::new(move |worker| {
                let acts = scripts[worker].lock().expect("one thread").take().expect("made once");
                let saw = saw.clone();
                let seen = Box::new(move |_| saw.send((number, worker)).expect("the test listens"));
                Ok(Box::new(Scripted { warming: 1, acts, seen }) as Box<dyn Encoder>)
            });
            let card = ModelCard {
                digest: ModelDigest::new([number; 32]),
                dimension: 1,
                chip_size: SIZE,
                sar_stretch: SarStretch::default(),
                precision: Precision::F32,
                members: None,
            };
            let model = LoadedModel { card, factory, workers, bytes: 1 };
            leases.push(residency.admit(model).await.expect("room"));
        }
        let limits = ImageLimits { bytes_max: 1, pixels_max: 1 };
        let active = leases[0].clone();
        let pipeline = Arc::new(Pipeline::new(Admission::new(9, 9), limits, 1, residency, active));
        (Self { queue, events, acts, seen }, pipeline, leases)
    }

    fn act(&self, model: u8, worker: usize, act: Act) {
        self.acts[&(model, worker)].send(act).expect("the encoder lives");
    }

    /// Waits until canaries of two models or on two threads are on their devices.
    async fn see_two(&mut self) -> [(u8, usize); 2] {
        let mut seen = [self.seen.recv().await, self.seen.recv().await].map(|seen| seen.expect("they live"));
        seen.sort_unstable();
        seen
    }

    async fn told(&mut self, model: u8, worker: usize, outcome: CanaryOutcome) {
        let model = ModelDigest::new([model; 32]);
        let wanted = EncoderEvent::Canary { worker, model, outcome };
        while self.events.recv().await.as_ref() != Some(&wanted) {}
    }
}

#[tokio::test(start_paused = true)]
async fn each_device_thread_is_tried_and_one_that_hangs_is_named_whatever_the_others_do() {
    let _clock = held_clock();
    let (mut threads, pipeline, _leases) = Threads::start(2, 1).await;
    let mut health = threads.queue.health();
    let keeping = tokio::spawn(keep_canaries(pipeline, PERIOD));
    idle().await;
    assert_eq!(threads.see_two().await, [(1, 0), (1, 1)]);
    threads.act(1, 0, Act::Answer);
    threads.told(1, 0, CanaryOutcome::Passed).await;
    assert_eq!(*health.borrow(), Health::Serving);
    idle().await;
    threads.told(1, 1, CanaryOutcome::Late).await;
    assert_eq!(*health.borrow(), Health::Failing);

    // A success on another thread proves nothing about this one.
    threads.act(1, 0, Act::Answer);
    threads.told(1, 0, CanaryOutcome::Passed).await;
    assert_eq!(*health.borrow(), Health::Failing);
    threads.act(1, 1, Act::Answer);
    health.wait_for(|health| *health == Health::Serving).await.expect("the queue lives");
    threads.queue.close().await;
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn each_resident_model_is_tried_and_what_failed_leaves_with_it() {
    let _clock = held_clock();
    let (mut threads, pipeline, mut leases) = Threads::start(1, 2).await;
    let mut health = threads.queue.health();
    let keeping = tokio::spawn(keep_canaries(pipeline, PERIOD));
    idle().await;
    for (model, act) in [(1, Act::Answer), (2, Act::Panic)] {
        threads.act(model, 0, act);
    }
    assert_eq!(threads.see_two().await, [(1, 0), (2, 0)]);
    threads.told(2, 0, CanaryOutcome::Failed).await;
    assert_eq!(*health.borrow_and_update(), Health::Failing);
    drop(leases.pop());
    health.wait_for(|health| *health == Health::Serving).await.expect("the queue lives");
    threads.queue.close().await;
    keeping.abort();
}

#[tokio::test]
async fn a_canary_waits_until_no_callers_chip_does_and_shares_no_batch() {
    let mut bench = bench().await;
    let busy = bench.send();
    assert_eq!(bench.seen.recv().await, Some(1));
    bench.wait_for(&EncoderEvent::Depth(0)).await;
    let queue = bench.queue.clone();
    let mut canary = Box::pin(queue.send_canary(0, digest(), SIZE));
    assert!(futures_util::poll!(&mut canary).is_pending());
    let chip = bench.send();
    bench.wait_for(&EncoderEvent::Depth(1)).await;
    bench.act(Act::Answer);
    bench.act(Act::Answer);
    busy.await.expect("no panic").expect("an embedding");
    assert_eq!(chip.await.expect("no panic").expect("an embedding").batch_size, 1);
    assert!(futures_util::poll!(&mut canary).is_pending(), "it is on the device by itself");
    bench.act(Act::Answer);
    assert_eq!(canary.await, Ok(()));
    assert_eq!([bench.seen.recv().await, bench.seen.recv().await], [Some(1), Some(1)]);
    bench.queue.close().await;
}

#[tokio::test]
async fn a_canary_that_nobody_waits_for_does_not_cost_the_device() {
    let mut bench = bench().await;
    let busy = bench.send();
    assert_eq!(bench.seen.recv().await, Some(1));
    {
        let canary = std::pin::pin!(bench.queue.send_canary(0, digest(), SIZE));
        assert!(futures_util::poll!(canary).is_pending());
    }
    bench.act(Act::Answer);
    busy.await.expect("no panic").expect("an embedding");
    bench.queue.close().await;
    assert_eq!(bench.seen.recv().await, None);
}
