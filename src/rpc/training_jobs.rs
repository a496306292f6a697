//! The service `TrainingJobs`.

use std::convert::Infallible;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::ResponseStream;
use super::context::CallContext;
use super::convert;
use super::page::{fitting, next_token};
use super::problem::Problem;
use super::train::{JobAccess, follow};
use crate::jobs::{JobKey, Page, WatchFrom};
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

/// The jobs of a page that fit a response, and the damaged ones among them.
fn listed(page: Page) -> wire::ListTrainingJobsResponse {
    let last = page.jobs.last().filter(|_| page.more).map(|job| job.key.id);
    let jobs = page.jobs.into_iter().map(|job| Ok::<_, Infallible>((job.key.id, convert::job(job))));
    let Ok((jobs, end)) = fitting(jobs);
    let damaged = page.damaged.iter().filter(|id| end.is_none_or(|end| **id > end));
    wire::ListTrainingJobsResponse {
        jobs,
        next_page_token: next_token(end.or(last).as_ref()),
        damaged_job_ids: damaged.map(ToString::to_string).collect(),
    }
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
        Ok(Response::new(listed(page)))
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

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::gallery::Time;
    use crate::jobs::{Job, JobId, JobSpec};

    fn job(number: u64, config_bytes: usize) -> Job {
        let order = JobSpec { config_toml: "x".repeat(config_bytes), ..JobSpec::default() };
        Job::new(JobKey { tenant: "t".into(), id: JobId::new(number) }, order, Time::from_nanos(1))
    }

    fn ids(answer: &wire::ListTrainingJobsResponse) -> Vec<&str> {
        answer.jobs.iter().map(|job| job.job_id.as_str()).collect()
    }

    #[test]
    fn a_page_of_large_jobs_ends_early_and_the_next_one_begins_after_it() {
        let jobs = (1..=100).rev().map(|number| job(number, 64 << 10)).collect();
        let damaged = [101, 60, 2].map(JobId::new).to_vec();
        let first = listed(Page { jobs, damaged, more: false });
        assert!(first.encoded_len() < 4 << 20, "{}", first.encoded_len());
        let last = *ids(&first).last().expect("a page has a job");
        assert_eq!(first.next_page_token, last);
        assert!((2..60).contains(&(100 - first.jobs.len())), "{last}");
        assert_eq!(first.damaged_job_ids, ["job-101", "job-60"], "the other one is of the next page");
    }

    #[test]
    fn a_page_of_small_jobs_is_whole() {
        let page =
            |more| listed(Page { jobs: vec![job(3, 9), job(1, 9)], damaged: vec![JobId::new(2)], more });
        let answer = page(false);
        assert_eq!((ids(&answer), answer.next_page_token.as_str()), (vec!["job-3", "job-1"], ""));
        assert_eq!(answer.damaged_job_ids, ["job-2"]);
        assert_eq!(page(true).next_page_token, "job-1");
    }
}
