//! A server that is killed at a random moment, or whose disk fills up, while callers change all that it keeps: galleries,
//! their entries, models and jobs. Nothing acknowledged is lost, nothing deleted comes back, and a call is done whole or
//! not at all.

mod entries;
mod full;
mod galleries;
mod jobs;
mod models;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::CreateGalleryRequest;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::Status;

use crate::program::{Server, imported};

/// `make torture` asks for more.
const ROUNDS: &str = "SHIPREID_TORTURE_ROUNDS";

/// Callers of the same gallery, whose operations share commits.
const SHARING: usize = 6;
const GALLERY: &str = "harbour";

fn rounds(default: usize) -> usize {
    std::env::var(ROUNDS).map_or(default, |rounds| rounds.parse().unwrap())
}

/// A caller, and the part of the server that nobody but him changes.
trait Caller: Send + 'static {
    type Part: Clone + PartialEq + Debug + Send;
    type Call: Send;

    /// His part as the server shows it.
    fn observe(&mut self, client: &Client) -> impl Future<Output = Self::Part> + Send;

    /// A call that is valid, and what it makes of his part.
    fn draw(&mut self, part: &Self::Part, random: &mut ChaCha8Rng) -> (Self::Call, Self::Part);

    fn perform(
        &mut self,
        client: &Client,
        call: Self::Call,
    ) -> impl Future<Output = Result<(), Status>> + Send;
}

/// What a caller knows: what was acknowledged, and what may be as well, because the last call had no answer.
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

    /// Compares the server with what is known, and settles what was not.
    async fn check(&mut self, client: &Client, round: usize) {
        let found = self.caller.observe(client).await;
        let unanswered = self.unanswered.take();
        if let Some(acknowledged) = &self.acknowledged {
            assert!(
                found == *acknowledged || Some(&found) == unanswered.as_ref(),
                "round {round}, {}: found {found:?}, acknowledged {acknowledged:?}, perhaps {unanswered:?}",
                self.name
            );
        }
        self.acknowledged = Some(found);
    }

    /// One call, and what came of it.
    async fn call_once(&mut self, client: &Client, random: &mut ChaCha8Rng) -> Result<(), Status> {
        let part = self.acknowledged.as_ref().expect("a check came before");
        let (call, after) = self.caller.draw(part, random);
        self.unanswered = Some(after);
        self.caller.perform(client, call).await?;
        self.acknowledged = self.unanswered.take();
        Ok(())
    }

    /// Calls until the server is gone.
    async fn call(mut self, client: Client, countdown: Arc<Countdown>, mut random: ChaCha8Rng) -> Self {
        loop {
            match self.call_once(&client, &mut random).await {
                Ok(()) => {}
                Err(_) if countdown.is_over() => return self,
                Err(status) => panic!("{}: {status}", self.name),
            }
            countdown.count();
        }
    }
}

/// Answers that all callers have had, and the one at which the server dies.
struct Countdown {
    answers: AtomicUsize,
    last: usize,
    reached: Notify,
}

impl Countdown {
    fn new(last: usize) -> Arc<Self> {
        Arc::new(Self { answers: AtomicUsize::new(0), last, reached: Notify::new() })
    }

    fn count(&self) {
        if self.answers.fetch_add(1, Ordering::SeqCst) + 1 == self.last {
            self.reached.notify_one();
        }
    }

    /// From here on the server may be dead.
    fn is_over(&self) -> bool {
        self.answers.load(Ordering::SeqCst) >= self.last
    }
}

/// Kills the server `rounds` times, each time after as many answers as `answers` draws.
async fn torture<C: Caller>(
    mut journals: Vec<Journal<C>>,
    rounds: usize,
    answers: std::ops::Range<usize>,
    serve: impl AsyncFn() -> (Server, Client),
) {
    let random = &mut ChaCha8Rng::seed_from_u64(1);
    let mut total = 0;
    for round in 0..rounds {
        let (server, client) = serve().await;
        for journal in &mut journals {
            journal.check(&client, round).await;
        }
        let countdown = Countdown::new(random.random_range(answers.clone()));
        total += countdown.last;
        let mut callers = JoinSet::new();
        for journal in journals.drain(..) {
            let random = ChaCha8Rng::from_rng(random);
            callers.spawn(journal.call(client.clone(), Arc::clone(&countdown), random));
        }
        countdown.reached.notified().await;
        server.kill();
        while let Some(journal) = callers.join_next().await {
            journals.push(journal.unwrap());
        }
    }
    let (server, client) = serve().await;
    for journal in &mut journals {
        journal.check(&client, rounds).await;
    }
    server.kill();
    println!("{rounds} rounds, {total} acknowledged calls");
}

/// A model, and a data folder that outlives each server.
struct Place {
    folder: TempDir,
    model: PathBuf,
}

impl Place {
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
    let place = Place::new();
    let (server, client) = place.serve().await;
    let request = CreateGalleryRequest { name: GALLERY.into(), ..CreateGalleryRequest::default() };
    client.galleries().create_gallery(request).await.unwrap();
    server.kill();
    let callers =
        (0..SHARING).map(|number| Journal::new(format!("caller {number}"), entries::Sharer::new(number)));
    torture(callers.collect(), rounds(5), 50..600, async || place.serve().await).await;
}

#[tokio::test]
async fn a_killed_server_has_kept_every_gallery_as_it_acknowledged_it() {
    let place = Place::new();
    let owners = ["north", "south"].map(|name| Journal::new(name, galleries::Owner::new(name)));
    torture(owners.into(), rounds(3), 5..60, async || place.serve().await).await;
}

#[tokio::test]
async fn a_killed_server_has_kept_every_model_that_it_acknowledged() {
    let place = Place::new();
    let owner = models::Owner::new(models::exported(&place.model, place.folder.path()));
    torture(vec![Journal::new("models", owner)], rounds(3), 1..12, async || place.serve().await).await;
}

#[tokio::test]
async fn a_killed_server_has_kept_every_job_that_it_acknowledged() {
    let place = crate::training::Place::new();
    let endless = place.config(0).replace("epochs = 5 ", "epochs = 10000 ");
    let serve = async || place.serve(&["training.attempts_max=1000"]).await;
    torture(vec![Journal::new("jobs", jobs::Owner::new(endless))], rounds(3), 1..10, serve).await;
}
