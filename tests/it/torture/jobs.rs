//! Training jobs that are started, cancelled, resumed and deleted, that finish and fail, and the
//! resulting model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::{
    CancelTrainingJobRequest, DeleteModelRequest, DeleteTrainingJobRequest, JobState,
    ListTrainingJobsRequest, ResumeTrainingJobRequest, TrainRequest, TrainingJob, WatchTrainingJobRequest,
};
use tonic::Status;

use super::Caller;
use crate::program::check_log;
use crate::server::details;

/// Once there are this many jobs, another is started only after one has been deleted.
const JOBS_MAX: usize = 5;

/// How a job ends if it is not interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It never ends.
    Endless,
    /// It finishes with a model.
    Short,
    /// It diverges.
    Wild,
}

impl Kind {
    const EVERY: [Self; 3] = [Self::Endless, Self::Short, Self::Wild];

    /// The prefix of the names of such jobs.
    fn word(self) -> &'static str {
        match self {
            Self::Endless => "endless",
            Self::Short => "short",
            Self::Wild => "wild",
        }
    }

    fn of(name: &str) -> Self {
        Self::EVERY
            .into_iter()
            .find(|kind| name.starts_with(kind.word()))
            .expect("a name that was given here")
    }

    /// Changes a configuration of five epochs to one of this kind.
    fn config(self, config: &str) -> String {
        let epochs = |epochs: &str| config.replace("epochs = 5 ", epochs);
        match self {
            Self::Endless => epochs("epochs = 10000 "),
            Self::Short => epochs("epochs = 1 ").replace("warm_up_epochs = 1", "warm_up_epochs = 0"),
            Self::Wild => config.replace("base_rate = 1e-3", "base_rate = 10.0").replace("1e-4", "1.0"),
        }
    }
}

pub struct Owner {
    config_toml: String,
    /// Whether jobs can end as their kind specifies. Without disk space, that lack is the only way they end.
    has_room: bool,
    started: u32,
    /// All jobs that were ever observed as finished, with their models.
    finished: BTreeMap<String, String>,
    /// Models created by jobs that must exist, except those whose deletion was requested afterwards.
    due: BTreeSet<String>,
}

impl Owner {
    /// `config_toml` is the configuration of a job of five epochs.
    pub fn new(config_toml: &str) -> Self {
        let config_toml = config_toml.to_owned();
        Self { config_toml, has_room: true, started: 0, finished: BTreeMap::new(), due: BTreeSet::new() }
    }

    /// The same for a disk that may be full, which may also end jobs.
    pub fn without_room(config_toml: &str) -> Self {
        Self { has_room: false, ..Self::new(config_toml) }
    }

    fn kinds(&self) -> &'static [Kind] {
        if self.has_room { &Kind::EVERY } else { &[Kind::Endless] }
    }

    /// Waits until a job that is ending has ended, together with its process. Without space, this
    /// may take until there is some.
    async fn until_ended(&self, client: &Client, job_id: &str) -> Result<(), Status> {
        if self.has_room { until_ended(client, job_id).await } else { Ok(()) }
    }

    fn see(&mut self, job: &TrainingJob) -> Promise {
        let (name, kind) = (&job.display_name, Kind::of(&job.display_name));
        if job.state() == JobState::Finished {
            assert_eq!(kind, Kind::Short, "{name} has finished");
            match self.finished.insert(name.clone(), job.model.clone()) {
                None => drop(self.due.insert(job.model.clone())),
                Some(before) => assert_eq!(before, job.model, "{name} has another model"),
            }
        } else {
            assert!(!self.finished.contains_key(name), "{name} had finished and is {:?}", job.state());
        }
        match job.state() {
            JobState::Cancelled | JobState::Cancelling => Promise::Cancelled,
            JobState::Failed => match (kind, job.failure_reason.as_str()) {
                (Kind::Wild, "DIVERGED") => Promise::Works,
                (_, "DISK_FULL") if !self.has_room => Promise::Broken,
                (_, other) => panic!("{name} has failed: {other}, {}", job.failure_message),
            },
            _ => Promise::Works,
        }
    }
}

/// The guaranteed state of a job, regardless of its own progress.
#[derive(Clone, Copy, Debug)]
pub enum Promise {
    /// It is running, queued, or has ended as its kind specifies.
    Works,
    /// It remains cancelled.
    Cancelled,
    /// A full disk has ended it, which overrides the other states.
    Broken,
}

impl PartialEq for Promise {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Broken, _) | (_, Self::Broken) => true,
            (Self::Works, Self::Works) | (Self::Cancelled, Self::Cancelled) => true,
            (Self::Works, Self::Cancelled) | (Self::Cancelled, Self::Works) => false,
        }
    }
}

/// By display name.
pub type Jobs = BTreeMap<String, Promise>;

pub enum Call {
    Start(String),
    Cancel(String),
    Resume(String),
    Delete(String),
    DeleteModel(String),
}

impl Caller for Owner {
    type Part = Jobs;
    type Call = Call;

    async fn observe(&mut self, client: &Client) -> Jobs {
        let mut jobs = Jobs::new();
        for job in listed(client).await.unwrap() {
            let promise = self.see(&job);
            assert_eq!(jobs.insert(job.display_name, promise), None, "a job is there once");
        }
        let models = client.list_models().await.unwrap();
        assert!(models.iter().all(|model| model.damage.is_empty()), "{models:?}");
        let kept: BTreeSet<_> = models.into_iter().map(|model| model.digest).collect();
        assert!(self.due.is_subset(&kept), "models of finished jobs: {:?}, there are {kept:?}", self.due);
        jobs
    }

    fn draw(&mut self, jobs: &Jobs, random: &mut ChaCha8Rng) -> (Call, Jobs) {
        let mut after = jobs.clone();
        let one = |random: &mut ChaCha8Rng, fits: &dyn Fn(Kind, Promise) -> bool| {
            let fitting = jobs.iter().filter(|(name, promise)| fits(Kind::of(name), **promise));
            fitting.map(|(name, _)| name.clone()).choose(random)
        };
        let works = one(random, &|kind, promise| matches!((kind, promise), (Kind::Endless, Promise::Works)));
        let rests = one(random, &|_, promise| matches!(promise, Promise::Cancelled | Promise::Broken));
        let wild = one(random, &|kind, _| kind == Kind::Wild);
        let ends = one(random, &|kind, promise| kind != Kind::Endless || !matches!(promise, Promise::Works));
        // While a model may still be created, it is unknown whether that happens after the deletion.
        let is_final = |name: &String| Kind::of(name) != Kind::Short || self.finished.contains_key(name);
        let model = self.due.iter().filter(|_| jobs.keys().all(is_final)).choose(random).cloned();
        // At most one endless job runs at a time, which leaves a slot for jobs that end.
        let kinds = self.kinds().iter().filter(|kind| **kind != Kind::Endless || works.is_none());
        let kind = kinds.choose(random);
        let call = match (random.random_range(0..8), works, rests, wild, ends, model) {
            (4, _, _, _, _, Some(model)) => {
                self.due.remove(&model);
                Call::DeleteModel(model)
            }
            (3, _, _, Some(name), ..) => Call::Resume(name),
            (2, None, Some(name), ..) => {
                after.insert(name.clone(), Promise::Works);
                Call::Resume(name)
            }
            (choice, _, _, _, Some(name), _) if choice == 5 || jobs.len() >= JOBS_MAX => {
                after.remove(&name);
                Call::Delete(name)
            }
            (choice, Some(name), ..) if choice < 2 || kind.is_none() => {
                after.insert(name.clone(), Promise::Cancelled);
                Call::Cancel(name)
            }
            _ => {
                let kind = kind.expect("an endless one where none works");
                self.started += 1;
                let name = format!("{} {}", kind.word(), self.started);
                after.insert(name.clone(), Promise::Works);
                Call::Start(name)
            }
        };
        (call, after)
    }

    async fn perform(&mut self, client: &Client, call: Call) -> Result<(), Status> {
        match call {
            Call::Start(display_name) => {
                let request_id = display_name.clone();
                let config_toml = Kind::of(&display_name).config(&self.config_toml);
                let request =
                    TrainRequest { config_toml, request_id, display_name, ..TrainRequest::default() };
                let mut events = client.ship_re_id().train(request).await?.into_inner();
                events.message().await?.ok_or_else(|| Status::unavailable("no event"))?;
            }
            Call::Cancel(name) => {
                let job_id = job_id(client, &name).await?;
                let request = CancelTrainingJobRequest { job_id };
                match client.training_jobs().cancel_training_job(request).await {
                    Err(status) if !self.has_room && details(&status).0 == "JOB_FAILED" => {}
                    answer => drop(answer?),
                }
            }
            Call::Resume(name) => {
                let job_id = job_id(client, &name).await?;
                self.until_ended(client, &job_id).await?;
                client.training_jobs().resume_training_job(ResumeTrainingJobRequest { job_id }).await?;
            }
            Call::Delete(name) => {
                let job_id = job_id(client, &name).await?;
                self.until_ended(client, &job_id).await?;
                client.training_jobs().delete_training_job(DeleteTrainingJobRequest { job_id }).await?;
            }
            Call::DeleteModel(digest) => {
                client.models().delete_model(DeleteModelRequest { digest }).await?;
            }
        }
        Ok(())
    }
}

async fn listed(client: &Client) -> Result<Vec<TrainingJob>, Status> {
    let request = ListTrainingJobsRequest { page_size: 1000, ..ListTrainingJobsRequest::default() };
    Ok(client.training_jobs().list_training_jobs(request).await?.into_inner().jobs)
}

async fn job_id(client: &Client, name: &str) -> Result<String, Status> {
    let found = listed(client).await?.into_iter().find(|job| job.display_name == name);
    Ok(found.unwrap_or_else(|| panic!("{name} is gone")).job_id)
}

pub async fn until_ended(client: &Client, job_id: &str) -> Result<(), Status> {
    let request = WatchTrainingJobRequest { job_id: job_id.to_owned(), ..WatchTrainingJobRequest::default() };
    let mut events = client.training_jobs().watch_training_job(request).await?.into_inner();
    while events.message().await?.is_some() {}
    Ok(())
}

/// A replacement for the training process that immediately prints the final output of the job's kind, with
/// one of the models in `models`, so that a thousand servers can be killed while it runs.
pub fn stand_in(folder: &Path, models: &Path) -> PathBuf {
    let script = r#"#!/bin/sh
        cd "$3" || exit 1
        # As a training process, it waits until an earlier one has left the folder.
        exec 9>>stand-in.lock 3<&0 && flock 9 || exit 1
        echo '{"begun":{"steps":0}}'
        if grep -q 'epochs = 10000' job.toml; then
            stop() {
                kill $!
                echo '{"saved":{"step":5,"best":false}}'
                echo '"stopped"'
                exit 0
            }
            trap stop TERM
            cat <&3 >/dev/null &
            wait
        elif grep -q 'base_rate = 10.0' job.toml; then
            echo '{"failed":{"reason":"DIVERGED","message":"as planned"}}'
            exit 1
        else
            set -- MODELS/*/provenance.toml
            shift $((${PWD##*-} % $#))
            made=${1%/*}
            rm -rf model && cp -r "$made" model
            printf '{"finished":{"model":"%s"}}\n' "${made##*/}"
        fi
    "#;
    program(folder.join("stand_in.sh"), &script.replace("MODELS", &models.display().to_string()))
}

/// A replacement for the training process that runs forever and needs no space.
pub fn idle_program(folder: &Path) -> PathBuf {
    program(folder.join("idle.sh"), "#!/bin/sh\nexec cat\n")
}

/// A script that can be run.
pub fn program(path: PathBuf, script: &str) -> PathBuf {
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// A training process must never panic.
pub fn check_logs(data: &Path) {
    // Before the first start there are no jobs.
    for job in std::fs::read_dir(data.join("jobs")).into_iter().flatten() {
        if let Ok(log) = std::fs::read(job.unwrap().path().join("log.txt")) {
            check_log(&String::from_utf8_lossy(&log));
        }
    }
}
