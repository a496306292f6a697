//! Callers that record what they asked and were answered.

use std::f32::consts::PI;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::delete_entries_request::Selection;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    Candidate, DeleteEntriesRequest, Embedding, EnrollOutcome, EnrollRequest, Entry, EntryFilter, EntryIds,
    EntryUpdate, GetEntriesRequest, GroupBy, ListEntriesRequest, MatchQuery, MatchRequest,
    MergeVesselsRequest, Modality, Read, ReadyEmbedding, UpdateEntriesRequest,
};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tonic::{Code, Status};

use super::gallery::{Answer, Call, Gallery, Held, KEYS};
use super::linearizability::Event;
use super::recorder::Recorder;

const LABEL: &str = "note";
/// The micro model's.
const DIMENSION: usize = 16;

/// What happened in one gallery.
pub struct History {
    pub gallery: String,
    pub model: String,
    /// How current reads ask the gallery to be.
    read: Read,
    recorder: Recorder<Gallery>,
    notes: AtomicU32,
}

impl History {
    pub fn new(gallery: String, model: String, read: Read) -> Self {
        Self { gallery, model, read, recorder: Recorder::default(), notes: AtomicU32::new(1) }
    }

    /// A call to any server, recorded.
    ///
    /// # Errors
    /// It has failed, so that nobody knows whether it has happened.
    pub async fn call(&self, client: &Client, call: Call) -> Result<(), Status> {
        let number = self.recorder.begin(call.clone());
        let answer = self.perform(client, call).await?;
        self.recorder.answer(number, answer);
        Ok(())
    }

    /// A random call.
    ///
    /// # Errors
    /// Those of [`call`](Self::call).
    pub async fn call_something(&self, client: &Client, random: &mut ChaCha8Rng) -> Result<(), Status> {
        let note = self.notes.fetch_add(1, Ordering::Relaxed);
        self.call(client, Call::draw(random, note)).await
    }

    /// The gallery and all calls, in the order of their beginnings. Reads without an answer say nothing.
    pub fn into_events(self) -> (String, Vec<Event<Gallery>>) {
        let mut events = self.recorder.into_events();
        events.retain(|event| event.answered.is_some() || !event.call.is_read());
        (self.gallery, events)
    }

    async fn perform(&self, client: &Client, call: Call) -> Result<Answer, Status> {
        let (gallery, read) = (self.gallery.clone(), self.read.into());
        Ok(match call {
            Call::Enrol { key, held, overwrite } => self.enrol(client, key, held, overwrite).await?,
            Call::Update { keys, vessel, note } => {
                let update = |key: u8| EntryUpdate {
                    entry_id: name(key),
                    vessel_id: vessel_name(vessel),
                    labels: [(LABEL.to_owned(), note.to_string())].into(),
                    observation: None,
                };
                let (updates, paths) =
                    (keys.into_iter().map(update).collect(), vec!["vessel_id".into(), "labels".into()]);
                let update_mask = Some(prost_types::FieldMask { paths });
                let request = UpdateEntriesRequest { gallery, updates, update_mask };
                let answer = client.galleries().update_entries(request).await?.into_inner();
                Answer::Updated(
                    answer.updated,
                    answer.missing_entry_ids.iter().map(|id| key_of(id)).collect(),
                )
            }
            Call::Merge { vessels, into } => {
                let vessel_ids = vessels.into_iter().map(vessel_name).collect();
                let request = MergeVesselsRequest { gallery, vessel_ids, into: vessel_name(into) };
                Answer::Count(client.galleries().merge_vessels(request).await?.into_inner().moved_entries)
            }
            Call::DeleteKeys(keys) => {
                let entry_ids = keys.into_iter().map(name).collect();
                self.delete(client, Selection::Ids(EntryIds { entry_ids })).await?
            }
            Call::DeleteVessel(vessel) => {
                let vessel_ids = vec![vessel_name(vessel)];
                let filter = EntryFilter { vessel_ids, ..EntryFilter::default() };
                self.delete(client, Selection::Filter(filter)).await?
            }
            Call::Get(keys) => {
                let asked = keys.len();
                let entry_ids = keys.into_iter().map(name).collect();
                let request = GetEntriesRequest {
                    gallery,
                    entry_ids,
                    with_embeddings: true,
                    read,
                    ..Default::default()
                };
                let answer = client.galleries().get_entries(request).await?.into_inner();
                assert_eq!(answer.entries.len() + answer.missing_entry_ids.len(), asked);
                entries(answer.entries.iter().map(held_of))
            }
            Call::List => {
                let request = ListEntriesRequest {
                    gallery,
                    with_embeddings: true,
                    page_size: 1000,
                    read,
                    ..Default::default()
                };
                let page = client.galleries().list_entries(request).await?.into_inner();
                assert_eq!(page.next_page_token, "");
                entries(page.entries.iter().map(held_of))
            }
            Call::Match => self.match_all(client).await?,
        })
    }

    async fn enrol(&self, client: &Client, key: u8, held: Held, overwrite: bool) -> Result<Answer, Status> {
        let request = EnrollRequest {
            gallery: self.gallery.clone(),
            entry_id: name(key),
            vessel_id: vessel_name(held.vessel),
            labels: [(LABEL.to_owned(), held.note.to_string())].into(),
            source: Some(Source::Embedding(ReadyEmbedding {
                embedding: Some(Embedding { values: direction(held.look) }),
                model: self.model.clone(),
                modality: Modality::Sar.into(),
                ..ReadyEmbedding::default()
            })),
            overwrite,
        };
        let answers = client.enroll(tokio_stream::once(request)).await;
        let mut answers = answers.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = answers.next().await.unwrap_or_else(|| Err(Status::unavailable("no answer")))?;
        match (answer.outcome(), answer.error) {
            (_, Some(error)) if error.code == Code::AlreadyExists as i32 => Ok(Answer::Exists),
            (_, Some(error)) => Err(Status::new(error.code.into(), error.message)),
            (EnrollOutcome::Created, None) => Ok(Answer::Created),
            (EnrollOutcome::Replaced, None) => Ok(Answer::Replaced),
            (EnrollOutcome::Unchanged, None) => Ok(Answer::Unchanged),
            (other, None) => panic!("{other:?}"),
        }
    }

    async fn delete(&self, client: &Client, selection: Selection) -> Result<Answer, Status> {
        let request = DeleteEntriesRequest { gallery: self.gallery.clone(), selection: Some(selection) };
        Ok(Answer::Count(client.galleries().delete_entries(request).await?.into_inner().deleted))
    }

    async fn match_all(&self, client: &Client) -> Result<Answer, Status> {
        let query = MatchQuery {
            subject: Some(Subject::Embedding(Embedding { values: direction(0) })),
            modality: Modality::Sar.into(),
            ..MatchQuery::default()
        };
        let request = MatchRequest {
            gallery: self.gallery.clone(),
            queries: vec![query],
            // One more than there can be.
            top_k: Some(u32::from(KEYS) + 1),
            group_by: GroupBy::Entry.into(),
            with_details: true,
            read: self.read.into(),
            ..MatchRequest::default()
        };
        let mut answer = client.ship_re_id().r#match(request).await?.into_inner();
        let result = answer.results.remove(0);
        if let Some(error) = result.error {
            return Err(Status::new(error.code.into(), error.message));
        }
        Ok(entries(result.candidates.iter().map(held_of_candidate)))
    }
}

/// Calls to one server, one after the other, until it is over.
pub struct Caller {
    pub history: Arc<History>,
    /// The server, while it is there.
    pub server: watch::Receiver<Option<Client>>,
    pub is_database_there: watch::Receiver<bool>,
    /// How many calls of all callers were answered.
    pub answered: watch::Sender<usize>,
    pub is_over: watch::Receiver<bool>,
    pub random: ChaCha8Rng,
}

impl Caller {
    /// Returns why calls have failed.
    pub async fn run(mut self) -> Vec<Status> {
        let mut failed = vec![];
        while !*self.is_over.borrow() {
            let server = self.server.wait_for(Option::is_some).await.expect("it comes back").clone();
            let server = server.expect("it is there");
            match self.history.call_something(&server, &mut self.random).await {
                Ok(()) => self.answered.send_modify(|answered| *answered += 1),
                Err(status) => {
                    let is_expected = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
                    assert!(is_expected.contains(&status.code()), "{status}");
                    failed.push(status);
                    self.is_database_there.wait_for(|is_there| *is_there).await.expect("it comes back");
                }
            }
        }
        failed
    }
}

fn name(key: u8) -> String {
    format!("entry-{key}")
}

fn vessel_name(vessel: u8) -> String {
    format!("vessel-{vessel}")
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
}

fn key_of(entry_id: &str) -> u8 {
    number(entry_id)
}

fn direction(look: u8) -> Vec<f32> {
    let (sine, cosine) = angle(look).sin_cos();
    let mut values = vec![0.0; DIMENSION];
    values[..2].copy_from_slice(&[cosine, sine]);
    values
}

fn angle(look: u8) -> f32 {
    f32::from(look) * PI / 128.0
}

fn look_of(angle: f32) -> u8 {
    let look = (angle * 128.0 / PI).round() as u8;
    assert!((angle - self::angle(look)).abs() < 1e-3, "{angle} is no direction of ours");
    look
}

fn held_of(entry: &Entry) -> (u8, Held) {
    let values = &entry.embedding.as_ref().expect("asked for").values;
    let held = Held {
        vessel: number(&entry.vessel_id),
        note: number(&entry.labels[LABEL]),
        look: look_of(values[1].atan2(values[0])),
    };
    (key_of(&entry.entry_id), held)
}

fn held_of_candidate(candidate: &Candidate) -> (u8, Held) {
    let held = Held {
        vessel: number(&candidate.vessel_id),
        note: number(&candidate.labels[LABEL]),
        look: look_of(candidate.similarity.acos()),
    };
    (key_of(&candidate.entry_id), held)
}

fn entries(found: impl Iterator<Item = (u8, Held)>) -> Answer {
    let mut found: Vec<_> = found.collect();
    found.sort();
    Answer::Entries(found)
}
