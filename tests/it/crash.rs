//! A server that is killed while it enrols and deletes: nothing acknowledged is lost, nothing deleted comes back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::delete_entries_request::Selection;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::{
    CreateGalleryRequest, DeleteEntriesRequest, Embedding, EnrollRequest, EntryIds, GetGalleryRequest,
    ListEntriesRequest, Modality, ReadyEmbedding,
};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::program::{Server, imported};

const GALLERY: &str = "harbour";
const CALLERS: usize = 8;
/// `make torture` asks for more.
const ROUNDS: &str = "SHIPREID_TORTURE_ROUNDS";
const ROUNDS_DEFAULT: usize = 5;

/// What a caller knows of an entry after the server's death.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    Present,
    Absent,
    /// The answer never came.
    Either,
}

/// Answers that all callers have had, and the one at which the server dies.
struct Countdown {
    answers: AtomicUsize,
    last: usize,
    reached: Notify,
}

impl Countdown {
    fn count(&self) {
        if self.answers.fetch_add(1, Ordering::Relaxed) + 1 == self.last {
            self.reached.notify_one();
        }
    }
}

#[tokio::test]
async fn a_killed_server_has_kept_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let model = imported(folder.path());
    let data = format!("store.data_dir={}", folder.path().join("data").display());
    let random = &mut ChaCha8Rng::seed_from_u64(1);
    let mut known: HashMap<String, Known> = HashMap::new();
    let rounds = std::env::var(ROUNDS).map_or(ROUNDS_DEFAULT, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let server = Server::start(&model, &[&data]);
        let client = Client::connect(&server.endpoint).await.unwrap();
        if round == 0 {
            let request = CreateGalleryRequest { name: GALLERY.into(), ..CreateGalleryRequest::default() };
            client.galleries().create_gallery(request).await.unwrap();
        }
        check(&client, &mut known, round).await;
        let request = GetGalleryRequest { name: GALLERY.into() };
        let gallery = client.galleries().get_gallery(request).await.unwrap().into_inner().gallery.unwrap();
        let last = random.random_range(50..600);
        let countdown = Arc::new(Countdown { answers: AtomicUsize::new(0), last, reached: Notify::new() });
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let caller = Caller {
                client: client.clone(),
                name: format!("{round}-{caller}"),
                model: gallery.model.clone(),
                random: ChaCha8Rng::seed_from_u64((round * CALLERS + caller) as u64),
                countdown: Arc::clone(&countdown),
            };
            callers.spawn(caller.call());
        }
        countdown.reached.notified().await;
        server.kill();
        while let Some(learnt) = callers.join_next().await {
            known.extend(learnt.unwrap());
        }
    }
    let server = Server::start(&model, &[&data]);
    check(&Client::connect(&server.endpoint).await.unwrap(), &mut known, rounds).await;
    server.kill();
}

struct Caller {
    client: Client,
    name: String,
    model: String,
    random: ChaCha8Rng,
    countdown: Arc<Countdown>,
}

impl Caller {
    /// Enrols, and deletes a part of it again, until the server is gone; returns what is known then.
    async fn call(mut self) -> HashMap<String, Known> {
        let mut known = HashMap::new();
        let (sender, requests) = mpsc::channel(1);
        // The server answers the call once it has read the gallery's name from the first request.
        let mut asked = format!("{}-0", self.name);
        known.insert(asked.clone(), Known::Either);
        sender.send(self.request(&asked)).await.unwrap();
        let Ok(mut answers) = self.client.enroll(ReceiverStream::new(requests)).await else { return known };
        for number in 1.. {
            let Some(Ok(answer)) = answers.next().await else { break };
            assert_eq!((answer.error, &answer.entry_id), (None, &asked));
            known.insert(asked, Known::Present);
            self.countdown.count();
            if number % 3 == 0 {
                let victim = format!("{}-{}", self.name, self.random.random_range(0..number));
                known.insert(victim.clone(), Known::Either);
                if !self.delete(&victim).await {
                    break;
                }
                known.insert(victim, Known::Absent);
                self.countdown.count();
            }
            asked = format!("{}-{number}", self.name);
            known.insert(asked.clone(), Known::Either);
            if sender.send(self.request(&asked)).await.is_err() {
                break;
            }
        }
        known
    }

    /// Whether the deletion was acknowledged.
    async fn delete(&self, id: &str) -> bool {
        let selection = Some(Selection::Ids(EntryIds { entry_ids: vec![id.into()] }));
        let request = DeleteEntriesRequest { gallery: GALLERY.into(), selection };
        self.client.galleries().delete_entries(request).await.is_ok()
    }

    fn request(&self, id: &str) -> EnrollRequest {
        // The micro model's dimension; which direction is of no interest here.
        let mut values = vec![0.0; 16];
        values[id.len() % 16] = 1.0;
        EnrollRequest {
            gallery: GALLERY.into(),
            entry_id: id.into(),
            source: Some(Source::Embedding(ReadyEmbedding {
                embedding: Some(Embedding { values }),
                model: self.model.clone(),
                modality: Modality::Sar.into(),
                observation: None,
            })),
            ..EnrollRequest::default()
        }
    }
}

/// Compares the server's entries with what callers know, and settles what they did not.
async fn check(client: &Client, known: &mut HashMap<String, Known>, round: usize) {
    let mut present = std::collections::HashSet::new();
    let mut request = ListEntriesRequest { gallery: GALLERY.into(), page_size: 1000, ..Default::default() };
    loop {
        let page = client.galleries().list_entries(request.clone()).await.unwrap().into_inner();
        present.extend(page.entries.into_iter().map(|entry| entry.entry_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    for (id, known) in known.iter_mut() {
        let found = if present.remove(id) { Known::Present } else { Known::Absent };
        assert!(
            *known == Known::Either || *known == found,
            "round {round}: {id} is {found:?}, not {known:?}"
        );
        *known = found;
    }
    assert!(present.is_empty(), "round {round}: nobody enrolled {present:?}");
}
