//! The models that servers share, as callers know them, for the checker of histories; and callers that record what they
//! did with them.

use std::path::PathBuf;
use std::sync::Arc;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use shipreid::client::{Client, ClientError};
use shipreid::wire::{ActivateModelRequest, CheckpointHints, DeleteModelRequest};
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Status};

use super::linearizability::{Event, Object, Verdict, check};
use super::recorder::Recorder;
use crate::torture::models::Files;

/// Models that a history is about, by number.
pub const MODELS: usize = 3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Contents {
    pub kept: [bool; MODELS],
    /// The one that was activated last, if it is one of these.
    pub active: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Call {
    Import(usize),
    Activate(usize),
    Delete(usize),
    List,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Done,
    Missing,
    /// Nothing has changed, since a server uses the model or is changing another one.
    Refused,
    Models([bool; MODELS]),
}

impl Call {
    /// A random call; half of them read, since activations take long.
    pub fn draw(random: &mut ChaCha8Rng) -> Self {
        let model = random.random_range(0..MODELS);
        match random.random_range(0..10) {
            0 | 1 => Self::Import(model),
            2 => Self::Activate(model),
            3 | 4 => Self::Delete(model),
            _ => Self::List,
        }
    }
}

#[derive(Debug)]
pub struct Models;

impl Object for Models {
    type State = Contents;
    type Call = Call;
    type Answer = Answer;

    fn apply(contents: &Contents, call: &Call) -> (Contents, Answer) {
        let mut after = *contents;
        let answer = match *call {
            Call::Import(model) => {
                after.kept[model] = true;
                Answer::Done
            }
            Call::List => Answer::Models(contents.kept),
            Call::Activate(model) | Call::Delete(model) if !contents.kept[model] => Answer::Missing,
            Call::Activate(model) => {
                after.active = Some(model);
                Answer::Done
            }
            Call::Delete(model) if contents.active == Some(model) => Answer::Refused,
            Call::Delete(model) => {
                after.kept[model] = false;
                Answer::Done
            }
        };
        (after, answer)
    }

    /// Importing and activating are answered alike whether they change something or not.
    fn has_no_better_place(call: &Call) -> bool {
        *call == Call::List
    }

    fn mark(_: &Call) -> Option<u32> {
        None
    }

    fn marks(_: &Answer) -> Vec<u32> {
        vec![]
    }
}

/// What happened to the models.
pub struct History {
    models: Vec<(String, PathBuf)>,
    recorder: Recorder<Models>,
}

impl History {
    /// Of models of which there are files.
    pub fn new(files: &Files) -> Self {
        let models: Vec<_> = files.iter().map(|(digest, file)| (digest.clone(), file.clone())).collect();
        assert_eq!(models.len(), MODELS);
        Self { models, recorder: Recorder::default() }
    }

    /// A call to any server, recorded.
    ///
    /// # Errors
    /// It has failed, so that nobody knows whether it has happened.
    pub async fn call(&self, client: &Client, call: Call) -> Result<(), Status> {
        let number = self.recorder.begin(call);
        let answer = match self.perform(client, call).await {
            Ok(answer) => answer,
            Err(status) => refusal(status)?,
        };
        self.recorder.answer(number, answer);
        Ok(())
    }

    /// All calls that say something, in the order of their beginnings. A refused one has changed nothing, and why a server
    /// refuses is its own affair: it may still have the model in memory.
    pub fn into_events(self) -> Vec<Event<Models>> {
        let mut events = self.recorder.into_events();
        events.retain(|event| match &event.answered {
            Some((_, answer)) => *answer != Answer::Refused,
            None => event.call != Call::List,
        });
        events
    }

    async fn perform(&self, client: &Client, call: Call) -> Result<Answer, Status> {
        let digest = |model: usize| self.models[model].0.clone();
        match call {
            Call::Import(model) => {
                let file = &self.models[model].1;
                let imported = client.import_model(file, CheckpointHints::default(), |_| {}).await;
                assert_eq!(imported.map_err(status)?.model.unwrap().digest, digest(model));
            }
            Call::Activate(model) => {
                let request = ActivateModelRequest { digest: digest(model) };
                client.models().activate_model(request).await?;
            }
            Call::Delete(model) => {
                client.models().delete_model(DeleteModelRequest { digest: digest(model) }).await?;
            }
            Call::List => return Ok(Answer::Models(self.kept(client).await?)),
        }
        Ok(Answer::Done)
    }

    /// Which of the models a server lists as kept. One that was active may be listed for longer, without a family, by a
    /// server that still serves it.
    pub async fn kept(&self, client: &Client) -> Result<[bool; MODELS], Status> {
        let listed = client.list_models().await.map_err(status)?;
        let mut kept = [false; MODELS];
        for (kept, (digest, _)) in kept.iter_mut().zip(&self.models) {
            *kept = listed.iter().any(|model| model.digest == *digest && !model.family.is_empty());
        }
        Ok(kept)
    }

    /// The number of a model.
    pub fn number(&self, digest: &str) -> Option<usize> {
        self.models.iter().position(|(known, _)| known == digest)
    }
}

/// What is known after a call was refused.
///
/// # Errors
/// Nobody knows whether it has happened.
fn refusal(status: Status) -> Result<Answer, Status> {
    match status.code() {
        Code::NotFound => Ok(Answer::Missing),
        // Another activation is running, or the model is in use, active, or was just deleted here.
        Code::Aborted | Code::FailedPrecondition | Code::DataLoss => Ok(Answer::Refused),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Internal => {
            Err(status)
        }
        _ => panic!("{status}"),
    }
}

fn status(error: ClientError) -> Status {
    match error {
        ClientError::Refused(status) => *status,
        other => Status::unavailable(other.to_string()),
    }
}

/// Calls to one server, one after the other.
pub struct Caller {
    pub history: Arc<History>,
    /// The server, while it is there.
    pub server: watch::Receiver<Option<Client>>,
    /// Whether nothing fails.
    pub is_whole: watch::Receiver<bool>,
    /// How many calls this caller may still make. Closed when it is over.
    pub calls: Arc<Semaphore>,
    pub random: ChaCha8Rng,
}

impl Caller {
    pub async fn run(mut self) {
        while let Ok(permit) = self.calls.acquire().await {
            permit.forget();
            let server = self.server.wait_for(Option::is_some).await.expect("it comes back").clone();
            let server = server.expect("it is there");
            let call = Call::draw(&mut self.random);
            if self.history.call(&server, call).await.is_err() {
                self.is_whole.wait_for(|is_whole| *is_whole).await.expect("it ends");
            }
        }
    }
}

/// A call, when it begins, and when it is answered and what.
type Timed = (Call, usize, Option<(usize, Answer)>);

/// What the checker says of calls with no model at first.
fn check_calls(calls: &[Timed]) -> Verdict {
    let event =
        |(call, begun, answered): &Timed| Event { call: *call, begun: *begun, answered: answered.clone() };
    let events: Vec<Event<Models>> = calls.iter().map(event).collect();
    check(&Contents::default(), &events)
}

fn listed(model: usize) -> Answer {
    let mut kept = [false; MODELS];
    kept[model] = true;
    Answer::Models(kept)
}

#[test]
fn an_import_may_take_effect_at_any_moment_of_its_call_or_never_without_an_answer() {
    let nothing = Answer::Models([false; MODELS]);
    let begin = [
        (Call::Import(0), 1, Some((2, Answer::Done))),
        // At first it would change nothing.
        (Call::Import(0), 3, Some((8, Answer::Done))),
        (Call::Delete(0), 4, Some((5, Answer::Done))),
        (Call::List, 6, Some((7, nothing.clone()))),
    ];
    assert_eq!(
        check_calls(&[&begin[..], &[(Call::List, 9, Some((10, listed(0))))]].concat()),
        Verdict::Linearizable
    );
    for answer in [nothing, listed(1)] {
        let calls = [(Call::Import(1), 1, None), (Call::List, 2, Some((3, answer)))];
        assert_eq!(check_calls(&calls), Verdict::Linearizable);
    }
}

#[test]
fn lost_and_resurrected_models_and_deleted_active_ones_are_rejected() {
    let imported = (Call::Import(0), 1, Some((2, Answer::Done)));
    let nothing = Answer::Models([false; MODELS]);
    for rest in [
        vec![(Call::List, 3, Some((4, nothing.clone())))],
        vec![(Call::Delete(0), 3, Some((4, Answer::Missing)))],
        vec![(Call::Delete(0), 3, Some((4, Answer::Done))), (Call::List, 5, Some((6, listed(0))))],
        vec![(Call::Delete(0), 3, Some((4, Answer::Done))), (Call::Activate(0), 5, Some((6, Answer::Done)))],
        vec![(Call::Activate(0), 3, Some((4, Answer::Done))), (Call::Delete(0), 5, Some((6, Answer::Done)))],
        // A server that has not followed.
        vec![(Call::List, 3, Some((4, listed(0)))), (Call::List, 5, Some((6, nothing)))],
    ] {
        let verdict = check_calls(&[vec![imported.clone()], rest.clone()].concat());
        assert!(matches!(verdict, Verdict::Violated(_)), "{rest:?}");
    }
}
