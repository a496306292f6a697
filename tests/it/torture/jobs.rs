//! Training jobs that are started, cancelled, resumed and deleted.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::{
    CancelTrainingJobRequest, DeleteTrainingJobRequest, JobState, ListTrainingJobsRequest,
    ResumeTrainingJobRequest, TrainRequest, TrainingJob, WatchTrainingJobRequest,
};
use tonic::Status;

use super::Caller;

pub struct Owner {
    config_toml: String,
    started: u32,
}

impl Owner {
    pub fn new(config_toml: String) -> Self {
        Self { config_toml, started: 0 }
    }
}

/// What callers are promised of a job, whatever it has come to by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Promise {
    /// It works, or waits for its turn; none is so short that it ends.
    Works,
    /// It stays as it is.
    Cancelled,
}

/// By display name.
pub type Jobs = BTreeMap<String, Promise>;

pub enum Call {
    Start(String),
    Cancel(String),
    Resume(String),
    Delete(String),
}

impl Caller for Owner {
    type Part = Jobs;
    type Call = Call;

    async fn observe(&mut self, client: &Client) -> Jobs {
        let mut jobs = Jobs::new();
        for job in listed(client).await.unwrap() {
            assert_ne!(job.state(), JobState::Failed, "{}: {}", job.failure_reason, job.failure_message);
            let promise = match job.state() {
                JobState::Cancelled | JobState::Cancelling => Promise::Cancelled,
                _ => Promise::Works,
            };
            assert_eq!(jobs.insert(job.display_name, promise), None, "a job is there once");
        }
        jobs
    }

    fn draw(&mut self, jobs: &Jobs, random: &mut ChaCha8Rng) -> (Call, Jobs) {
        let mut after = jobs.clone();
        let mut one = |promise: Option<Promise>| {
            let fitting = jobs.iter().filter(|(_, found)| promise.is_none_or(|promise| promise == **found));
            fitting.map(|(name, _)| name.clone()).choose(random)
        };
        let (working, cancelled, any) = (one(Some(Promise::Works)), one(Some(Promise::Cancelled)), one(None));
        match (random.random_range(0..4), working, cancelled, any) {
            (0, Some(name), _, _) => {
                after.insert(name.clone(), Promise::Cancelled);
                (Call::Cancel(name), after)
            }
            (1, _, Some(name), _) => {
                after.insert(name.clone(), Promise::Works);
                (Call::Resume(name), after)
            }
            (2, _, Some(name), _) => {
                after.remove(&name);
                (Call::Delete(name), after)
            }
            (3, _, _, Some(_)) if jobs.len() >= 3 => {
                let name = jobs.keys().choose(random).expect("there are three").clone();
                after.insert(name.clone(), Promise::Cancelled);
                (Call::Cancel(name), after)
            }
            _ => {
                self.started += 1;
                let name = format!("run {}", self.started);
                after.insert(name.clone(), Promise::Works);
                (Call::Start(name), after)
            }
        }
    }

    async fn perform(&mut self, client: &Client, call: Call) -> Result<(), Status> {
        match call {
            Call::Start(display_name) => {
                let request_id = display_name.clone();
                let config_toml = self.config_toml.clone();
                let request =
                    TrainRequest { config_toml, request_id, display_name, ..TrainRequest::default() };
                let mut events = client.ship_re_id().train(request).await?.into_inner();
                events.message().await?.ok_or_else(|| Status::unavailable("no event"))?;
            }
            Call::Cancel(name) => {
                let job_id = job_id(client, &name).await?;
                client.training_jobs().cancel_training_job(CancelTrainingJobRequest { job_id }).await?;
            }
            Call::Resume(name) => {
                let job_id = job_id(client, &name).await?;
                until_ended(client, &job_id).await?;
                client.training_jobs().resume_training_job(ResumeTrainingJobRequest { job_id }).await?;
            }
            Call::Delete(name) => {
                let job_id = job_id(client, &name).await?;
                until_ended(client, &job_id).await?;
                client.training_jobs().delete_training_job(DeleteTrainingJobRequest { job_id }).await?;
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

/// Waits until the process of a cancelled job has ended.
async fn until_ended(client: &Client, job_id: &str) -> Result<(), Status> {
    let request = WatchTrainingJobRequest { job_id: job_id.to_owned(), ..WatchTrainingJobRequest::default() };
    let mut events = client.training_jobs().watch_training_job(request).await?.into_inner();
    while events.message().await?.is_some() {}
    Ok(())
}
