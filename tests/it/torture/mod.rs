//! A server that is killed at a random moment, or whose disk fills up, while callers change all of its data:
//! galleries, their entries, models and jobs. No acknowledged change is lost, nothing deleted reappears, and
//! every call takes effect completely or not at all.

mod entries;
mod flips;
mod full;
mod galleries;
pub mod jobs;
pub mod models;
mod tally;

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::CreateGalleryRequest;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::Status;

use self::tally::{Tally, rounds};
use crate::program::{Server, imported};

/// Callers of the same gallery, whose operations share commits.
const SHARING: usize = 6;
const GALLERY: &str = "harbour";
/// Maximum number of rounds with real training, which is slow.
const TRAINED_MAX: usize = 60;

/// A caller, and the part of the server that only this caller changes.
trait Caller: Send + 'static {
    type Part: Clone + PartialEq + Debug + Send;
    type Call: Send;

    /// The caller's part as reported by the server.
    fn observe(&mut self, client: &Client) -> impl Future<Output = Self::Part> + Send;

    /// A valid call, and the caller's part after it.
    fn draw(&mut self, part: &Self::Part, random: &mut ChaCha8Rng) -> (Self::Call, Self::Part);

    fn perform(
        &mut self,
        client: &Client,
        call: Self::Call,
    ) -> impl Future<Output = Result<(), Status>> + Send;
}

/// A caller's knowledge: the acknowledged state, and a possible other state if the last call was
/// not answered.
struct Journal<C: Caller> {
    caller: C,
    name: String,
    acknowledged: Option<C::Part>,
    unanswered: Option<C::Part>,
}

impl<C: Caller> Journal<C> {
    fn new(name: impl Into<String>, caller: C) -> Self {
        Self { caller, name: name.into(), acknowledged: None, unanswered: None }
    }

    /// Compares the server with the known states, and determines whether an unanswered last call has taken
    /// effect.
    async fn check(&mut self, client: &Client, round: usize) -> Option<Fate> {
        let found = self.caller.observe(client).await;
        let unanswered = self.unanswered.take();
        let as_before = self.acknowledged.as_ref().is_none_or(|acknowledged| found == *acknowledged);
        if !as_before && Some(&found) != unanswered.as_ref() {
            panic!(
                "round {round}, {}: found {found:?}, acknowledged {:?}, perhaps {unanswered:?}",
                self.name, self.acknowledged
            );
        }
        self.acknowledged = Some(found);
        unanswered.map(|_| if as_before { Fate::NotDone } else { Fate::Done })
    }

    /// One call, and its result.
    async fn call_once(&mut self, client: &Client, random: &mut ChaCha8Rng) -> Result<(), Status> {
        let part = self.acknowledged.as_ref().expect("a check came before");
        let (call, after) = self.caller.draw(part, random);
        self.unanswered = Some(after);
        self.caller.perform(client, call).await?;
        self.acknowledged = self.unanswered.take();
        Ok(())
    }

    /// Calls until the server has died.
    async fn call(mut self, client: Client, countdown: Arc<Countdown>, mut random: ChaCha8Rng) -> Self {
        loop {
            let began = Instant::now();
            match self.call_once(&client, &mut random).await {
                Ok(()) => {}
                Err(_) if countdown.is_over() => return self,
                Err(status) => panic!("{}: {status}", self.name),
            }
            countdown.count(began.elapsed());
        }
    }
}

/// The outcome of a call that was not answered.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Done,
    NotDone,
}

impl Fate {
    fn text(self) -> &'static str {
        match self {
            Self::Done => "without answer: done",
            Self::NotDone => "without answer: not done",
        }
    }
}

/// Number of answers to all callers, and the one after which the server is killed.
struct Countdown {
    answers: AtomicUsize,
    last: usize,
    reached: Notify,
    /// The longest time that a caller has waited for an answer, in microseconds.
    longest: AtomicU64,
}

impl Countdown {
    fn new(last: usize) -> Arc<Self> {
        let (answers, longest) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { answers, last, reached: Notify::new(), longest })
    }

    fn count(&self, took: Duration) {
        self.longest.fetch_max(took.as_micros() as u64, Ordering::SeqCst);
        if self.answers.fetch_add(1, Ordering::SeqCst) + 1 == self.last {
            self.reached.notify_one();
        }
    }

    /// From this point the server may be dead.
    fn is_over(&self) -> bool {
        self.answers.load(Ordering::SeqCst) >= self.last
    }

    /// A random delay within a call after the last answer.
    fn moment(&self, random: &mut ChaCha8Rng) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::SeqCst)).mul_f64(small(random))
    }
}

/// Between 0 and 1, mostly small.
fn small(random: &mut ChaCha8Rng) -> f64 {
    random.random::<f64>().powi(3)
}

/// Kills the server `rounds` times. Each time, the number of answers before the kill is drawn from
/// `answers`, mostly small, and the kill follows at a random moment after them.
async fn torture<C: Caller>(
    what: &str,
    mut journals: Vec<Journal<C>>,
    rounds: usize,
    answers: Range<usize>,
    serve: impl AsyncFn() -> (Server, Client),
) {
    let random = &mut ChaCha8Rng::seed_from_u64(1);
    let mut tally = Tally::new(format!("kill -9, {what}"));
    for round in 0..rounds {
        let (server, client) = serve().await;
        check(&mut journals, &client, round, &mut tally).await;
        let drawn = answers.start + ((answers.len() as f64) * small(random)) as usize;
        let countdown = Countdown::new(drawn);
        let mut callers = JoinSet::new();
        for journal in journals.drain(..) {
            let random = ChaCha8Rng::from_rng(random);
            callers.spawn(journal.call(client.clone(), Arc::clone(&countdown), random));
        }
        countdown.reached.notified().await;
        let moment = countdown.moment(random);
        let kill = move || {
            // Not a synchronisation: the delay makes the moment random.
            thread::sleep(moment);
            server.kill();
        };
        tokio::task::spawn_blocking(kill).await.unwrap();
        while let Some(journal) = callers.join_next().await {
            journals.push(journal.unwrap());
        }
        tally.acknowledged += countdown.answers.load(Ordering::SeqCst);
        tally.round();
    }
    let (server, client) = serve().await;
    check(&mut journals, &client, rounds, &mut tally).await;
    server.terminate();
    tally.tell();
}

async fn check<C: Caller>(journals: &mut [Journal<C>], client: &Client, round: usize, tally: &mut Tally) {
    for journal in journals {
        if let Some(fate) = journal.check(client, round).await {
            tally.count(fate.text());
        }
    }
}

/// A model, and a data folder that outlives each server.
struct DataFolder {
    folder: TempDir,
    model: PathBuf,
}

impl DataFolder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = imported(folder.path());
        Self { folder, model }
    }

    async fn serve(&self) -> (Server, Client) {
        let data = format!("store.data_dir={}", self.folder.path().join("data").display());
        let server = Server::start(&self.model, &[&data]);
        let client = Client::connect(&server.endpoint).await.unwrap();
        (server, client)
    }
}

#[tokio::test]
async fn a_killed_server_has_kept_every_entry_that_it_acknowledged() {
    let place = DataFolder::new();
    let (server, client) = place.serve().await;
    let request = CreateGalleryRequest { name: GALLERY.into(), ..CreateGalleryRequest::default() };
    client.galleries().create_gallery(request).await.unwrap();
    server.kill();
    let callers =
        (0..SHARING).map(|number| Journal::new(format!("caller {number}"), entries::Sharer::new(number)));
    torture("entries", callers.collect(), rounds(9), 1..80, async || place.serve().await).await;
}

#[tokio::test]
async fn a_killed_server_has_kept_every_gallery_as_it_acknowledged_it() {
    let place = DataFolder::new();
    let owners = ["north", "south"].map(|name| Journal::new(name, galleries::Owner::new(name)));
    torture("galleries", owners.into(), rounds(7), 1..80, async || place.serve().await).await;
}

#[tokio::test]
async fn a_killed_server_has_kept_every_model_that_it_acknowledged() {
    let place = DataFolder::new();
    let owner = models::Owner::new(models::exported(&place.model, place.folder.path()));
    let owners = vec![Journal::new("models", owner)];
    torture("models", owners, rounds(7), 1..16, async || place.serve().await).await;
}

const JOB_SETTINGS: [&str; 2] = ["training.attempts_max=1000", "training.jobs_concurrent_max=2"];

#[tokio::test]
async fn a_killed_server_has_kept_every_job_that_it_acknowledged() {
    let place = crate::training::TrainingFolder::new();
    models::exported(&place.folder().join("micro"), place.folder());
    let program = jobs::stand_in(place.folder(), &place.folder().join(models::ELSEWHERE));
    let program = format!("training.program={}", program.display());
    let serve = async || place.serve(&[&JOB_SETTINGS[..], &[&program]].concat()).await;
    let owners = vec![Journal::new("jobs", jobs::Owner::new(&place.config(0)))];
    torture("jobs", owners, rounds(7), 1..16, serve).await;
}

#[tokio::test]
async fn a_killed_server_has_kept_every_job_whose_training_died_with_it() {
    let place = crate::training::TrainingFolder::new();
    let serve = async || {
        jobs::check_logs(&place.data());
        place.serve(&JOB_SETTINGS).await
    };
    let owners = vec![Journal::new("jobs", jobs::Owner::new(&place.config(0)))];
    torture("jobs that train", owners, rounds(2).min(TRAINED_MAX), 1..12, serve).await;
}
