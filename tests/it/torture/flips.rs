//! A byte changed anywhere in the data folder of a server. The affected data is refused with a specific
//! error, repaired, or unchanged. Everything else is served, and nothing panics.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::client::{Client, ClientError};
use shipreid::wire::{
    ActivateModelRequest, CancelTrainingJobRequest, CheckpointHints, EnrollRequest, Entry,
    ExportGalleryRequest, GetModelRequest, ListEntriesRequest, ListTrainingJobsRequest, Model, TrainEvent,
    TrainRequest, TrainingJob, WatchTrainingJobRequest,
};
use tokio_stream::StreamExt;
use tonic::{Status, Streaming};

use super::tally::{Tally, rounds};
use super::{entries, jobs, models};
use crate::galleries::{create, enroll};
use crate::program::Server;
use crate::server::{details, fixture};
use crate::training::TrainingFolder;

const SPOILT: &str = "harbour";
const SIBLING: &str = "offshore";
const ENTRIES: usize = 60;
/// Reasons with which a server may report damage.
const REFUSED: [&str; 2] = ["GALLERY_REFUSED", "JOB_STORE_DAMAGED"];
const NAMED: [&str; 3] = ["GALLERY_UNREADABLE", "GALLERY_READ_ONLY", "JOB_DAMAGED"];

/// A data folder as a server left it, and its contents.
struct Whole {
    place: TrainingFolder,
    files: BTreeMap<PathBuf, Vec<u8>>,
    idle: PathBuf,
    /// The model of its galleries.
    model: String,
    seen: Seen,
}

/// Everything that a server shows of its stored data, or why it does not.
struct Seen {
    entries: Result<Vec<Entry>, String>,
    export: Result<Vec<u8>, String>,
    jobs: Result<Vec<TrainingJob>, String>,
    events: Result<Vec<TrainEvent>, String>,
    models: Vec<Model>,
}

/// The part of the data to which a file belongs; damage to it must not affect the other parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Area {
    Gallery,
    Jobs,
    Models,
    Rest,
}

/// The worst observed consequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Unaffected,
    Named,
    Refused,
}

impl Outcome {
    fn text(self) -> &'static str {
        match self {
            Self::Unaffected => "unaffected or repaired",
            Self::Named => "named in use",
            Self::Refused => "refused",
        }
    }
}

impl Area {
    fn of(file: &Path) -> Self {
        let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
        match &*parts.iter().map(|part| &**part).collect::<Vec<_>>() {
            ["galleries", _, SPOILT, ..] => Self::Gallery,
            ["jobs", ..] => Self::Jobs,
            ["models", ..] => Self::Models,
            _ => Self::Rest,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Gallery => "a gallery",
            Self::Jobs => "jobs",
            Self::Models => "models",
            Self::Rest => "the rest of the data folder",
        }
    }
}

impl Whole {
    async fn new() -> Self {
        let place = TrainingFolder::new();
        let idle = jobs::idle_program(place.folder());
        let exported = models::exported(&place.folder().join("micro"), place.folder());
        let mut whole =
            Self { place, files: BTreeMap::new(), idle, model: String::new(), seen: Seen::nothing() };
        let (server, client) = whole.serve().await;
        let get = GetModelRequest::default();
        let configured = client.models().get_model(get).await.unwrap().into_inner().model.unwrap().digest;
        let (other, file) = exported.into_iter().next().unwrap();
        client.import_model(&file, CheckpointHints::default(), |_| {}).await.unwrap();
        whole.model.clone_from(&configured);
        for digest in [other, configured.clone()] {
            client.models().activate_model(ActivateModelRequest { digest }).await.unwrap();
        }
        create(&client, SIBLING).await;
        create(&client, SPOILT).await;
        for (gallery, count) in [(SPOILT, ENTRIES), (SIBLING, 1)] {
            let ready = (0..count).map(|number| entries::ready(gallery, number, &configured));
            let pictured = entries::pictured(gallery, "pictured", fixture("0001_a_33x97_RGB.tif"));
            let answers = enroll(&client, ready.chain([pictured]).collect()).await;
            assert!(answers.iter().all(|answer| answer.error.is_none()), "{answers:?}");
        }
        let job_id = whole.train(&client, "first").await.unwrap();
        client.training_jobs().cancel_training_job(CancelTrainingJobRequest { job_id }).await.unwrap();
        jobs::until_ended(&client, "job-1").await.unwrap();
        server.terminate();
        // The state that every later server finds.
        let (server, client) = whole.serve().await;
        whole.seen = Seen::through(&client).await;
        server.terminate();
        read(&whole.place.data(), Path::new(""), &mut whole.files);
        whole
    }

    async fn serve(&self) -> (Server, Client) {
        let program = format!("training.program={}", self.idle.display());
        self.place.serve(&[&program, "training.heartbeat_seconds_max=86400"]).await
    }

    async fn train(&self, client: &Client, name: &str) -> Result<String, String> {
        let request = TrainRequest {
            config_toml: self.place.config(0),
            display_name: name.into(),
            request_id: name.into(),
            ..TrainRequest::default()
        };
        let mut events = client.ship_re_id().train(request).await.map_err(reason)?.into_inner();
        Ok(events.message().await.map_err(reason)?.expect("an event").job_id)
    }

    /// Restores everything except for one changed byte, and describes that byte.
    fn spoil(&self, random: &mut ChaCha8Rng) -> (Area, String) {
        let data = self.place.data();
        fs::remove_dir_all(&data).unwrap();
        let is_sibling = |file: &Path| file.iter().any(|part| part == SIBLING);
        let files = self.files.iter().filter(|(file, bytes)| !bytes.is_empty() && !is_sibling(file));
        let spoilt = files.choose(random).unwrap().0;
        for (file, bytes) in &self.files {
            let path = data.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let mut bytes = self.files[spoilt].clone();
        // Most zero bytes are unused.
        let places = (0..bytes.len()).filter(|place| bytes[*place] != 0);
        let place = if random.random_bool(0.2) { None } else { places.choose(random) };
        let place = place.unwrap_or_else(|| random.random_range(0..bytes.len()));
        bytes[place] ^= random.random_range(1..=u8::MAX);
        fs::write(data.join(spoilt), &bytes).unwrap();
        (Area::of(spoilt), format!("byte {place} of {}", spoilt.display()))
    }

    /// Reads everything, and changes everything. Panics if something is silently wrong, or if damage spreads.
    async fn judge(&self, area: Area, told: &str) -> Outcome {
        let (server, client) = self.serve().await;
        let Seen { entries, export, jobs, events, models } = Seen::through(&client).await;
        let known = &self.seen;
        let mut outcomes = vec![
            (Area::Gallery, compared(entries, &known.entries, told)),
            (Area::Gallery, compared(export, &known.export, told)),
            (Area::Jobs, compared(jobs, &known.jobs, told)),
            (Area::Jobs, compared(events, &known.events, told)),
            (Area::Models, compared_models(&models, &known.models, told)),
        ];
        let is_model_lost = models.iter().any(|model| model.digest == self.model && !model.damage.is_empty());
        for (gallery, area) in [(SPOILT, Area::Gallery), (SIBLING, Area::Rest)] {
            let mut late = vec![entries::ready(gallery, ENTRIES, &self.model)];
            // Pictures are embedded by the gallery's model.
            if !is_model_lost {
                late.push(entries::pictured(gallery, "late", fixture("0001_a_33x97_RGB.tif")));
            }
            for request in late {
                outcomes.push((area, compared(enrolled(&client, request).await, &Ok(()), told)));
            }
        }
        let trained = self.train(&client, "second").await.map(drop);
        outcomes.push((Area::Jobs, compared(trained, &Ok(()), told)));
        server.terminate();
        for (of, outcome) in &outcomes {
            assert!(*of == area || *outcome == Outcome::Unaffected, "{told}: {of:?} {outcome:?}");
        }
        outcomes.into_iter().map(|(_, outcome)| outcome).max().unwrap()
    }
}

impl Seen {
    fn nothing() -> Self {
        let (entries, export, jobs, events) = (Ok(vec![]), Ok(vec![]), Ok(vec![]), Ok(vec![]));
        Self { entries, export, jobs, events, models: vec![] }
    }

    async fn through(client: &Client) -> Self {
        let list = ListEntriesRequest { gallery: SPOILT.into(), page_size: 1000, ..Default::default() };
        let listed = client.galleries().list_entries(list).await;
        let export = ExportGalleryRequest { gallery: SPOILT.into(), with_chips: true };
        let exported = all(client.galleries().export_gallery(export).await).await;
        let listed_jobs = client.training_jobs().list_training_jobs(ListTrainingJobsRequest::default()).await;
        let watch = WatchTrainingJobRequest { job_id: "job-1".into(), ..Default::default() };
        Self {
            entries: listed.map(|page| page.into_inner().entries).map_err(reason),
            export: exported.map(|pieces| pieces.into_iter().flat_map(|piece| piece.data).collect()),
            jobs: match listed_jobs.map(tonic::Response::into_inner) {
                Ok(page) if !page.damaged_job_ids.is_empty() => Err("JOB_DAMAGED".into()),
                Ok(page) => Ok(page.jobs),
                Err(status) => Err(reason(status)),
            },
            events: all(client.training_jobs().watch_training_job(watch).await).await,
            models: client.list_models().await.unwrap(),
        }
    }
}

async fn enrolled(client: &Client, request: EnrollRequest) -> Result<(), String> {
    let mut answers = match client.enroll(tokio_stream::once(request)).await {
        Err(ClientError::Refused(status)) => return Err(reason(*status)),
        answers => answers.unwrap(),
    };
    let answer = answers.next().await.expect("an answer").map_err(reason)?;
    answer.error.map_or(Ok(()), |error| Err(error.reason))
}

async fn all<T>(stream: Result<tonic::Response<Streaming<T>>, Status>) -> Result<Vec<T>, String> {
    let mut stream = stream.map_err(reason)?.into_inner();
    let mut all = Vec::new();
    while let Some(item) = stream.message().await.map_err(reason)? {
        all.push(item);
    }
    Ok(all)
}

fn reason(status: Status) -> String {
    details(&status).0
}

fn compared<T: PartialEq + Debug>(
    found: Result<T, String>,
    known: &Result<T, String>,
    told: &str,
) -> Outcome {
    match found {
        Err(reason) if REFUSED.contains(&&*reason) => Outcome::Refused,
        Err(reason) if NAMED.contains(&&*reason) => Outcome::Named,
        found => {
            assert_eq!(&found, known, "{told}");
            Outcome::Unaffected
        }
    }
}

fn compared_models(found: &[Model], known: &[Model], told: &str) -> Outcome {
    let by_digest =
        |models: &[Model]| -> Vec<String> { models.iter().map(|model| model.digest.clone()).collect() };
    let [mut found_digests, mut known_digests] = [found, known].map(by_digest);
    found_digests.sort();
    known_digests.sort();
    assert_eq!(found_digests, known_digests, "{told}");
    let outcome = |found: &Model| {
        let known = known.iter().find(|known| known.digest == found.digest).unwrap();
        if !found.damage.is_empty() {
            Outcome::Refused
        } else if found.origin.starts_with("unknown (") {
            Outcome::Named
        } else {
            assert_eq!(as_kept(found), as_kept(known), "{told}");
            Outcome::Unaffected
        }
    };
    found.iter().map(outcome).max().unwrap()
}

/// Without the fields that describe its use: if the active model is damaged, the previously active
/// one serves.
fn as_kept(model: &Model) -> Model {
    Model { active: false, resident: false, precision: String::new(), ..model.clone() }
}

fn read(folder: &Path, within: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder.join(within)).unwrap() {
        let entry = entry.unwrap();
        let path = within.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            read(folder, &path, files);
        } else {
            files.insert(path, fs::read(entry.path()).unwrap());
        }
    }
}

#[tokio::test]
async fn a_byte_that_changed_is_named_or_changes_nothing_and_everything_else_is_served() {
    let whole = Whole::new().await;
    let random = &mut ChaCha8Rng::seed_from_u64(17);
    let mut tallies: BTreeMap<Area, Tally> = BTreeMap::new();
    for _ in 0..rounds(6) {
        let (area, told) = whole.spoil(random);
        let outcome = whole.judge(area, &told).await;
        let tally = tallies
            .entry(area)
            .or_insert_with(|| Tally::new(format!("flip beneath a server, {}", area.text())));
        tally.count(outcome.text());
        tally.round();
    }
    tallies.values().for_each(Tally::tell);
}
