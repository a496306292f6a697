//! Training jobs as a client uses them: submitted, watched, listed, stopped and resumed.

use futures_util::StreamExt;

use super::follow::{Beginning, Follower};
use super::{Client, ClientError, Transport};
use crate::wire::train_event::Event;
use crate::wire::training_jobs_client::TrainingJobsClient;
use crate::wire::{
    CancelTrainingJobRequest, DeleteTrainingJobRequest, GetTrainingJobRequest, JobState,
    ListTrainingJobsRequest, ResumeTrainingJobRequest, StartingPoint, TrainRequest, TrainingJob,
};

/// The largest page that the contract allows.
const PAGE: u32 = 1000;

impl Client {
    /// The generated client of the service `TrainingJobs`, for methods that are not wrapped here.
    pub fn training_jobs(&self) -> TrainingJobsClient<Transport> {
        self.training_jobs.clone()
    }

    /// Submits a job and follows it. Without a request id it gets a random one, since a request whose response was lost
    /// is sent again.
    pub fn train(&self, mut request: TrainRequest) -> Follower {
        request.validate_only = false;
        if request.request_id.is_empty() {
            request.request_id = format!("{:032x}", rand::random::<u128>());
        }
        Follower::ordering(self.clone(), request)
    }

    /// The job as it would be started, and its starting point; starts nothing.
    ///
    /// # Errors
    /// The configuration or the data are invalid; [`ClientError::violations`] lists everything.
    pub async fn validate_training(
        &self,
        mut request: TrainRequest,
    ) -> Result<(TrainingJob, Option<StartingPoint>), ClientError> {
        request.validate_only = true;
        let mut events = self.ship_re_id().train(request).await?.into_inner();
        let Some(Event::Job(job)) = events.next().await.transpose()?.and_then(|event| event.event) else {
            return Err(ClientError::StreamEnded);
        };
        match events.next().await.transpose()?.and_then(|event| event.event) {
            Some(Event::StartingPoint(start)) => Ok((job, Some(start))),
            _ => Ok((job, None)),
        }
    }

    /// Follows a job.
    pub fn watch_training(&self, job_id: &str, beginning: Beginning) -> Follower {
        Follower::watching(self.clone(), job_id.to_owned(), beginning)
    }

    /// # Errors
    /// The server refuses, for example an unknown job.
    pub async fn training_job(&self, job_id: &str) -> Result<TrainingJob, ClientError> {
        let request = GetTrainingJobRequest { job_id: job_id.to_owned() };
        Ok(self.training_jobs().get_training_job(request).await?.into_inner().job.unwrap_or_default())
    }

    /// The jobs in one of `states`, newest first; without a state, all of them. Damaged ones follow those of their
    /// page, with only their names.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn list_training_jobs(&self, states: &[JobState]) -> Result<Vec<TrainingJob>, ClientError> {
        let states = states.iter().map(|state| i32::from(*state)).collect();
        let mut request = ListTrainingJobsRequest { states, page_size: PAGE, ..Default::default() };
        let mut found = Vec::new();
        loop {
            let page = self.training_jobs().list_training_jobs(request.clone()).await?.into_inner();
            found.extend(page.jobs);
            let damaged = page.damaged_job_ids.into_iter();
            found.extend(damaged.map(|job_id| TrainingJob { job_id, ..TrainingJob::default() }));
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Asks a job to stop.
    ///
    /// # Errors
    /// The server refuses, for example if the job has finished.
    pub async fn cancel_training(&self, job_id: &str) -> Result<TrainingJob, ClientError> {
        let request = CancelTrainingJobRequest { job_id: job_id.to_owned() };
        Ok(self.training_jobs().cancel_training_job(request).await?.into_inner().job.unwrap_or_default())
    }

    /// Resumes a job from its last checkpoint.
    ///
    /// # Errors
    /// The server refuses, for example if the job is running.
    pub async fn resume_training(&self, job_id: &str) -> Result<TrainingJob, ClientError> {
        let request = ResumeTrainingJobRequest { job_id: job_id.to_owned() };
        Ok(self.training_jobs().resume_training_job(request).await?.into_inner().job.unwrap_or_default())
    }

    /// # Errors
    /// The server refuses, for example if the job is running.
    pub async fn delete_training(&self, job_id: &str) -> Result<(), ClientError> {
        let request = DeleteTrainingJobRequest { job_id: job_id.to_owned() };
        self.training_jobs().delete_training_job(request).await?;
        Ok(())
    }
}
