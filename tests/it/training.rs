//! Training over gRPC with the real program: started, watched, killed in every way, and resumed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::chip::Modality;
use shipreid::client::{Client, chip, modality_of_name};
use shipreid::synth::{self, SynthPlan};
use shipreid::weights::family::{Family, Preset};
use shipreid::weights::native::tensor_bytes;
use shipreid::weights::seed::seeded;
use shipreid::weights::tensors::{HostTensor, NamedTensors};
use shipreid::wire::embed_result::Outcome;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::train_event::Event;
use shipreid::wire::{
    ActivateModelRequest, CancelTrainingJobRequest, CheckpointChoice, EmbedRequest, EnrollRequest,
    GetModelRequest, GetTrainingJobRequest, JobState, ResumeTrainingJobRequest, TrainEvent, TrainRequest,
    TrainingJob, WatchTrainingJobRequest,
};
use tempfile::TempDir;
use tokio_stream::StreamExt;

use crate::galleries::GALLERY;
use crate::program::{GOLDEN, Server, imported, shipreid};
use crate::storage::on_a_small_disk;

/// Steps of a run of `config`.
const STEPS: u64 = 20;

/// A data folder, a model to serve, and synthetic ships to learn from.
pub struct TrainingFolder {
    folder: TempDir,
}

impl TrainingFolder {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plan = SynthPlan { ships: 16, pairs: 1, views: 2, seed: 1 };
        synth::write(&plan, &folder.path().join("ships"), &mut || {}).unwrap();
        imported(folder.path());
        Self { folder }
    }

    pub async fn serve(&self, settings: &[&str]) -> (Server, Client) {
        self.serve_as(shipreid(), &self.data(), settings).await
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A server with a data folder of its own.
    pub async fn serve_from(&self, data: &Path, settings: &[&str]) -> (Server, Client) {
        self.serve_as(shipreid(), data, settings).await
    }

    async fn serve_as(&self, program: Command, data: &Path, settings: &[&str]) -> (Server, Client) {
        let data = format!("store.data_dir={}", data.display());
        let roots = format!("training.data_roots={}", self.folder.path().display());
        // In the idle class, jobs would wait for whatever else this machine does.
        let settings = [&[data.as_str(), roots.as_str(), "training.nice=0"], settings].concat();
        let server = Server::start_as(program, &self.folder.path().join("micro"), &settings);
        let client = Client::connect(&server.endpoint).await.unwrap();
        (server, client)
    }

    /// Two images per ship and modality of eight ships, four batches per epoch.
    pub fn config(&self, validation_epochs: u32) -> String {
        format!(
            r#"
            seed = 5
            objective = "fine_tune"
            data = {{ root = "{root}", loader_threads = 1 }}
            model = {{ preset = "tiny", size_token = true, drop_path = 0.1 }}
            start = {{ from = "scratch" }}
            batch = {{ images = 8, images_per_identity = 4 }}
            optimizer = {{ kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }}
            schedule = {{ base_rate = 1e-3, warm_up_epochs = 1, epochs = 5 }}
            validation = {{ epochs = {validation_epochs} }}
            checkpoint = {{ epochs = 1, keep = 2 }}
            "#,
            root = self.folder.path().join("ships/synthetic_hoss").display()
        )
    }

    /// The same from a ViT that lacks a tensor of its last block and has a head.
    fn config_from_a_vit(&self, validation_epochs: u32) -> String {
        let mut vit: NamedTensors = seeded(&Family::default().preset(Preset::Tiny), 7)
            .into_iter()
            .filter(|(name, _)| !name.contains("_embed") && !name.contains(".3.norm1.bias"))
            .filter_map(|(name, tensor)| Some((format!("model.{}", name.strip_prefix("base.")?), tensor)))
            .collect();
        vit.insert("model.head.bias".into(), HostTensor { shape: vec![2], values: vec![0.5; 2] });
        let path = self.folder.path().join("vit.safetensors");
        std::fs::write(&path, tensor_bytes(&vit)).unwrap();
        let start = format!("{{ from = \"imagenet\", path = \"{}\" }}", path.display());
        self.config(validation_epochs).replace("{ from = \"scratch\" }", &start)
    }

    /// The same without a training folder.
    pub fn config_without_root(&self) -> String {
        let root = self.folder.path().join("ships/synthetic_hoss");
        self.config(5).replace(&format!("root = \"{}\", ", root.display()), "")
    }

    /// The training images as sightings of vessels, named by the ship in the file name.
    pub fn sightings(&self) -> Vec<EnrollRequest> {
        let images = std::fs::read_dir(self.folder.path().join("ships/synthetic_hoss/bounding_box_train"));
        let sighting = |path: &Path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            EnrollRequest {
                gallery: GALLERY.into(),
                entry_id: name.into(),
                vessel_id: name.split('_').next().unwrap().into(),
                source: Some(Source::Chip(chip(
                    std::fs::read(path).unwrap(),
                    modality_of_name(path).unwrap(),
                ))),
                ..EnrollRequest::default()
            }
        };
        images.unwrap().map(|image| sighting(&image.unwrap().path())).collect()
    }

    /// The process that works in a job's folder, or the last one that did.
    pub fn process(&self, job_id: &str) -> i32 {
        let lock = self.data().join("jobs").join(job_id).join("lock");
        std::fs::read_to_string(lock).unwrap().trim().parse().unwrap()
    }
}

/// What a watcher has received, across interruptions of the server and its connection.
#[derive(Default)]
pub struct Watcher {
    pub events: Vec<TrainEvent>,
}

impl Watcher {
    /// Watches until an event for which `until` holds, or the end of the job or of the server.
    pub async fn watch(&mut self, client: &Client, job_id: &str, until: impl Fn(&TrainEvent) -> bool) {
        let from_event = self.events.len() as u64 + 1;
        let request = WatchTrainingJobRequest { job_id: job_id.into(), from_event };
        let mut stream = client.training_jobs().watch_training_job(request).await.unwrap().into_inner();
        while let Some(Ok(event)) = stream.next().await {
            assert_eq!(event.number, self.events.len() as u64 + 1, "no gap and no double");
            let reached = until(&event);
            self.events.push(event);
            if reached {
                return;
            }
        }
    }

    pub fn states(&self) -> Vec<(u32, JobState)> {
        let states = self.events.iter().filter_map(|event| match &event.event {
            Some(Event::Job(job)) => Some((event.attempt, job.state())),
            _ => None,
        });
        states.collect()
    }

    /// By step, with all bits; repeated steps must have the same losses.
    pub fn losses(&self) -> BTreeMap<u64, Vec<(String, u64)>> {
        let mut losses = BTreeMap::new();
        for event in &self.events {
            if let Some(Event::Progress(progress)) = &event.event {
                let mut bits: Vec<_> =
                    progress.losses.iter().map(|(name, loss)| (name.clone(), loss.to_bits())).collect();
                bits.sort();
                let before = losses.insert(progress.step, bits.clone());
                assert!(before.is_none_or(|before| before == bits), "step {}", progress.step);
            }
        }
        losses
    }

    pub fn last_job(&self) -> &TrainingJob {
        let jobs = self.events.iter().rev().find_map(|event| match &event.event {
            Some(Event::Job(job)) => Some(job),
            _ => None,
        });
        jobs.expect("every job begins with its state")
    }
}

pub fn at_step(step: u64) -> impl Fn(&TrainEvent) -> bool {
    move |event| matches!(&event.event, Some(Event::Progress(progress)) if progress.step == step)
}

pub async fn start(client: &Client, config_toml: String) -> String {
    let request = TrainRequest { config_toml, ..TrainRequest::default() };
    let mut events = client.ship_re_id().train(request).await.unwrap().into_inner();
    let first = events.next().await.unwrap().unwrap();
    // A caller that starts a job and disconnects does not stop it.
    first.job_id
}

/// Gone, or dead and not yet waited for by its current parent.
pub fn is_gone(process: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|state| state.starts_with('Z')))
}

pub fn signal(process: i32, signal: i32) {
    // SAFETY: the process holds the lock of a job that is being watched at this step.
    assert_eq!(unsafe { libc::kill(process, signal) }, 0);
}

#[tokio::test]
async fn a_job_is_started_watched_to_its_end_and_its_model_can_be_activated() {
    let place = TrainingFolder::new();
    let (server, client) = place.serve(&[]).await;
    let config = place.config_from_a_vit(2);
    let request = TrainRequest { config_toml: config.clone(), ..TrainRequest::default() };
    let (_, start) = client.validate_training(request.clone()).await.unwrap();
    let start = start.expect("not from scratch");
    let untaken: Vec<_> = start.untaken.iter().map(|tensor| (&*tensor.name, &*tensor.reason)).collect();
    assert_eq!(untaken, [("head.bias", "a head, which the run learns itself")]);
    assert_eq!((start.blocks_taken, start.blocks_total, start.prefix.as_str()), (3, 4, "model."));
    assert!(start.warning.starts_with("only 3 of 4 blocks"), "{}", start.warning);
    let mut stream = client.ship_re_id().train(request).await.unwrap().into_inner();
    let mut watcher = Watcher::default();
    while let Some(event) = stream.next().await {
        watcher.events.push(event.unwrap());
    }
    assert_eq!(watcher.states(), [(1, JobState::Queued), (1, JobState::Running), (1, JobState::Finished)]);
    assert_eq!(watcher.losses().len() as u64, STEPS);
    let told =
        watcher.events.iter().position(|event| event.event == Some(Event::StartingPoint(start.clone())));
    let first = watcher.events.iter().position(|event| matches!(event.event, Some(Event::Progress(_))));
    assert!(told.is_some() && told < first, "{told:?} {first:?}");
    let logged = |event: &TrainEvent| matches!(&event.event, Some(Event::LogLine(line)) if line.contains("not taken: head.bias [2] (a head"));
    assert_eq!(watcher.events.iter().filter(|event| logged(event)).count(), 1);
    let job = watcher.last_job();
    let evaluated: Vec<_> =
        job.evaluations.iter().map(|result| (result.epoch, result.protocol.as_str())).collect();
    assert_eq!(evaluated[0], (5, "all"));
    let begun = job.starting_point.as_ref().expect("it had one");
    assert_eq!(begun, &start);
    assert!(begun.kept.len() as u32 == begun.tensors_kept && !begun.kept.is_empty(), "{:?}", begun.kept);
    let delivered = job.delivered_checkpoint.clone().expect("it has a model");
    let told = Event::DeliveredCheckpoint(delivered.clone());
    assert_eq!(watcher.events.iter().filter(|event| event.event.as_ref() == Some(&told)).count(), 1);
    let best = match delivered.choice() {
        CheckpointChoice::Last => (5, STEPS),
        choice => {
            assert_eq!((choice, delivered.metric.as_str()), (CheckpointChoice::Best, "map"));
            assert_eq!(delivered.evaluation.as_ref(), job.evaluations.first());
            (job.evaluations[0].epoch, STEPS / 5 * u64::from(job.evaluations[0].epoch))
        }
    };
    assert_eq!((delivered.epoch, delivered.step), best);
    let shown = watcher.events.iter().filter_map(|event| match &event.event {
        Some(Event::Rankings(rankings)) => Some((rankings.epoch, image::load_from_memory(&rankings.png))),
        _ => None,
    });
    let shown: Vec<_> = shown.map(|(epoch, picture)| (epoch, picture.unwrap().width())).collect();
    assert_eq!(shown, [0, 2, 4, 5].map(|epoch| (epoch, 7 * 70)));
    let progress = job.progress.as_ref().unwrap();
    assert_eq!((progress.step, progress.steps_total, progress.epochs_total), (STEPS, STEPS, 5));
    let saved = watcher.events.iter().filter(|event| matches!(event.event, Some(Event::Checkpoint(_))));
    assert_eq!(saved.count(), 5);
    let get = GetModelRequest { digest: job.model.clone() };
    let model = client.models().get_model(get).await.unwrap().into_inner().model.unwrap();
    assert_eq!(model.config_toml, config);
    assert_eq!(model.evaluations, job.evaluations);
    assert!(model.data_fingerprint.starts_with("sha256:"), "{}", model.data_fingerprint);
    let folder = place.folder.path().join("data/jobs").join(&job.job_id);
    assert!(!folder.join("model").exists(), "it is there once");

    let activate = ActivateModelRequest { digest: job.model.clone() };
    client.models().activate_model(activate).await.unwrap();
    let models = client.list_models().await.unwrap();
    assert_eq!(models.iter().find(|model| model.active).map(|model| &model.digest), Some(&job.model));

    let get = GetTrainingJobRequest { job_id: job.job_id.clone() };
    let found = client.training_jobs().get_training_job(get).await.unwrap().into_inner().job.unwrap();
    assert_eq!(&found, job);
    server.terminate();
}

#[tokio::test]
async fn a_job_delivers_the_best_of_its_checkpoints_and_says_which() {
    let place = TrainingFolder::new();
    let (server, client) = place.serve(&[]).await;
    let mut watcher = Watcher::default();
    let job = start(&client, place.config(1)).await;
    watcher.watch(&client, &job, |_| false).await;
    let said = |event: &TrainEvent| match &event.event {
        Some(Event::LogLine(line)) if line.starts_with("delivers ") => Some(line.clone()),
        _ => None,
    };
    let at = watcher.events.iter().position(|event| said(event).is_some()).expect("it says which");
    let measured: Vec<(u32, f64)> = watcher.events[..at]
        .iter()
        .filter_map(|event| match &event.event {
            Some(Event::Evaluation(found)) if found.protocol == "all" && found.epoch > 0 => {
                Some((found.epoch, found.map))
            }
            _ => None,
        })
        .collect();
    assert_eq!(measured.len(), 5, "{measured:?}");
    let (last, map_of_last) = measured[4];
    let best = measured.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let map_of_best = measured.iter().map(|(_, map)| *map).fold(0.0, f64::max);
    let (epoch, begins) = if map_of_last >= map_of_best {
        (last, "delivers the last weights, those after epoch 5".to_owned())
    } else {
        (best, format!("delivers the checkpoint after epoch {best} (step {}), the best", 4 * best))
    };
    let line = said(&watcher.events[at]).unwrap();
    assert!(line.starts_with(&begins), "{line}: {measured:?}");
    let job = watcher.last_job();
    assert!(job.evaluations.iter().all(|found| found.epoch == epoch), "{:?}", job.evaluations);
    let get = GetModelRequest { digest: job.model.clone() };
    let model = client.models().get_model(get).await.unwrap().into_inner().model.unwrap();
    assert_eq!(model.evaluations, job.evaluations);
    server.terminate();
}

#[tokio::test]
async fn a_job_that_is_killed_with_or_without_its_server_goes_on_as_if_nothing_had_happened() {
    let place = TrainingFolder::new();
    let (server, client) = place.serve(&[]).await;
    let mut undisturbed = Watcher::default();
    let job = start(&client, place.config(0)).await;
    undisturbed.watch(&client, &job, |_| false).await;

    let random = &mut ChaCha8Rng::seed_from_u64(7);
    let (first, second) = (random.random_range(1..STEPS / 2), random.random_range(STEPS / 2 + 1..STEPS));
    let mut watcher = Watcher::default();
    let job = start(&client, place.config(0)).await;
    watcher.watch(&client, &job, at_step(first)).await;
    let killed = place.process(&job);
    signal(killed, libc::SIGKILL);
    watcher.watch(&client, &job, at_step(second)).await;
    let orphan = place.process(&job);
    assert_ne!(killed, orphan);
    server.kill();

    let (server, client) = place.serve(&[]).await;
    watcher.watch(&client, &job, |_| false).await;
    assert!(is_gone(killed) && is_gone(orphan));
    use JobState::{Finished, Interrupted, Queued, Running};
    let expected = [
        (1, Queued),
        (1, Running),
        (2, Queued),
        (2, Running),
        (2, Interrupted),
        (3, Queued),
        (3, Running),
        (3, Finished),
    ];
    assert_eq!(watcher.states(), expected);
    assert_eq!(watcher.losses(), undisturbed.losses());
    assert_eq!(watcher.losses().len() as u64, STEPS);
    assert_eq!(watcher.last_job().model, undisturbed.last_job().model);
    server.terminate();
    assert!(is_gone(place.process(&job)));
}

#[tokio::test]
async fn a_job_that_is_cancelled_or_whose_server_goes_down_keeps_every_step() {
    let place = TrainingFolder::new();
    let (server, client) = place.serve(&[]).await;
    let job = start(&client, place.config(0)).await;
    let mut watcher = Watcher::default();
    watcher.watch(&client, &job, at_step(2)).await;
    let cancel = CancelTrainingJobRequest { job_id: job.clone() };
    let cancelled = client.training_jobs().cancel_training_job(cancel).await.unwrap().into_inner();
    assert_eq!(cancelled.job.unwrap().state(), JobState::Cancelling);
    watcher.watch(&client, &job, |_| false).await;
    assert_eq!(watcher.last_job().state(), JobState::Cancelled);
    let resume = ResumeTrainingJobRequest { job_id: job.clone() };
    client.training_jobs().resume_training_job(resume).await.unwrap();
    watcher.watch(&client, &job, at_step(11)).await;
    server.terminate();

    let (server, client) = place.serve(&[]).await;
    watcher.watch(&client, &job, |_| false).await;
    use JobState::{Cancelled, Cancelling, Finished, Interrupted, Queued, Running};
    let expected = [
        (1, Queued),
        (1, Running),
        (1, Cancelling),
        (1, Cancelled),
        (2, Queued),
        (2, Running),
        (2, Interrupted),
        (3, Queued),
        (3, Running),
        (3, Finished),
    ];
    assert_eq!(watcher.states(), expected);
    // Each resumed from the state of the previous one: no step was repeated.
    let steps = watcher.events.iter().filter_map(|event| match &event.event {
        Some(Event::Progress(progress)) => Some(progress.step),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());
    server.terminate();
}

/// The error reported by a job that cannot be done, while the server continues unaffected.
async fn failure(
    (server, client): (Server, Client),
    config: String,
    disturb: impl AsyncFnOnce(&Client, &str),
) -> (String, String) {
    let job = start(&client, config).await;
    disturb(&client, &job).await;
    let mut watcher = Watcher::default();
    watcher.watch(&client, &job, |_| false).await;
    let image = std::fs::read(format!("{GOLDEN}/images/0001_a_33x97_RGB.tif")).unwrap();
    let request = EmbedRequest { chips: vec![chip(image, Modality::Optical)], ..EmbedRequest::default() };
    let answer = client.embed(request, None).await.unwrap();
    assert!(matches!(answer.results[0].outcome, Some(Outcome::Embedding(_))));
    server.terminate();
    let job = watcher.last_job();
    assert_eq!(job.state(), JobState::Failed);
    (job.failure_reason.clone(), job.failure_message.clone())
}

#[tokio::test]
async fn a_job_that_fails_says_truly_why() {
    let place = TrainingFolder::new();
    let memory = place.serve(&["training.memory_bytes_max=83886080"]).await;
    let (reason, message) = failure(memory, place.config(0), async |_, _| {}).await;
    assert_eq!(reason, "OUT_OF_MEMORY", "{message}");

    let wild = place.config(0).replace("base_rate = 1e-3", "base_rate = 10.0").replace("1e-4", "1.0");
    let (reason, message) = failure(place.serve(&[]).await, wild, async |_, _| {}).await;
    assert_eq!(reason, "DIVERGED", "{message}");

    let stop = async |client: &Client, job: &str| {
        Watcher::default().watch(client, job, at_step(1)).await;
        signal(place.process(job), libc::SIGSTOP);
    };
    let cancelled = place.serve(&["training.heartbeat_seconds_max=2", "training.attempts_max=1"]).await;
    let (reason, message) = failure(cancelled, place.config(0), stop).await;
    assert_eq!(reason, "HUNG", "{message}");

    let disk = place.folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let small = place.serve_as(on_a_small_disk(&disk, "6m"), &disk, &[]).await;
    let (reason, message) = failure(small, place.config(0), async |_, _| {}).await;
    assert_eq!(reason, "DISK_FULL", "{message}");

    let ships = place.folder.path().join("ships");
    let gone = async |_: &Client, _: &str| std::fs::remove_dir_all(ships).unwrap();
    let (reason, message) = failure(place.serve(&[]).await, place.config(1), gone).await;
    assert_eq!(reason, "DATA_MISSING", "{message}");
}
