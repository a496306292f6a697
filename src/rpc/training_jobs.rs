//! The service `TrainingJobs`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::ResponseStream;
use super::context::CallContext;
use super::convert;
use super::page::next_token;
use super::problem::Problem;
use super::train::{JobAccess, follow};
use crate::jobs::{JobKey, WatchFrom};
use crate::wire;

/// Jobs that were started with Train.
#[derive(Clone, Debug)]
pub struct TrainingJobsService {
    access: JobAccess,
}

impl TrainingJobsService {
    pub fn new(access: JobAccess) -> Self {
        Self { access }
    }
}

/// The job that a caller names, which must be one of its own.
fn key(context: &CallContext, job_id: &str) -> Result<JobKey, Problem> {
    context.concerns(job_id);
    Ok(JobKey { tenant: Arc::clone(&context.tenant), id: convert::job_id(job_id)? })
}

#[tonic::async_trait]
impl wire::training_jobs_server::TrainingJobs for TrainingJobsService {
    async fn get_training_job(
        &self,
        request: Request<wire::GetTrainingJobRequest>,
    ) -> Result<Response<wire::GetTrainingJobResponse>, Status> {
        let key = key(&CallContext::of(&request), &request.get_ref().job_id)?;
        let job = self.access.jobs()?.get(&key).await.map_err(Problem::from)?;
        Ok(Response::new(wire::GetTrainingJobResponse { job: Some(convert::job(job)) }))
    }

    async fn list_training_jobs(
        &self,
        request: Request<wire::ListTrainingJobsRequest>,
    ) -> Result<Response<wire::ListTrainingJobsResponse>, Status> {
        let tenant = CallContext::of(&request).tenant;
        let listing = convert::listing(request.get_ref())?;
        let page = self.access.jobs()?.list(tenant, listing).await.map_err(Problem::from)?;
        let last = page.jobs.last().filter(|_| page.more);
        let next_page_token = next_token(last.map(|job| &job.key.id));
        let damaged_job_ids = page.damaged.iter().map(ToString::to_string).collect();
        let jobs = page.jobs.into_iter().map(convert::job).collect();
        Ok(Response::new(wire::ListTrainingJobsResponse { jobs, next_page_token, damaged_job_ids }))
    }

    type WatchTrainingJobStream = ResponseStream<wire::TrainEvent>;

    async fn watch_training_job(
        &self,
        request: Request<wire::WatchTrainingJobRequest>,
    ) -> Result<Response<Self::WatchTrainingJobStream>, Status> {
        let context = CallContext::of(&request);
        let key = key(&context, &request.get_ref().job_id)?;
        let from = WatchFrom::Number(request.get_ref().from_event.max(1));
        Ok(Response::new(follow(self.access.jobs()?, key, from, &context).await?))
    }

    async fn cancel_training_job(
        &self,
        request: Request<wire::CancelTrainingJobRequest>,
    ) -> Result<Response<wire::CancelTrainingJobResponse>, Status> {
        let key = key(&CallContext::of(&request), &request.get_ref().job_id)?;
        let job = self.access.jobs()?.cancel(key).await.map_err(Problem::from)?;
        Ok(Response::new(wire::CancelTrainingJobResponse { job: Some(convert::job(job)) }))
    }

    async fn resume_training_job(
        &self,
        request: Request<wire::ResumeTrainingJobRequest>,
    ) -> Result<Response<wire::ResumeTrainingJobResponse>, Status> {
        let key = key(&CallContext::of(&request), &request.get_ref().job_id)?;
        let job = self.access.jobs()?.resume(&key).await.map_err(Problem::from)?;
        Ok(Response::new(wire::ResumeTrainingJobResponse { job: Some(convert::job(job)) }))
    }

    async fn delete_training_job(
        &self,
        request: Request<wire::DeleteTrainingJobRequest>,
    ) -> Result<Response<wire::DeleteTrainingJobResponse>, Status> {
        let key = key(&CallContext::of(&request), &request.get_ref().job_id)?;
        self.access.jobs()?.delete(&key).await.map_err(Problem::from)?;
        Ok(Response::new(wire::DeleteTrainingJobResponse {}))
    }
}
