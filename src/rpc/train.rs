//! Train: starts a job, and streams its events for as long as the caller stays connected.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tonic::Status;

use super::context::CallContext;
use super::problem::Problem;
use super::roles::not_served;
use super::{ResponseStream, convert, deadline};
use crate::config::ServerRole;
use crate::jobs::{EventPayload, Job, JobEvent, JobKey, Jobs, RunEvent, Start, WatchFrom};
use crate::reason::Reason;
use crate::wire;

/// The jobs of a server, for the services that need them. Cheap to clone.
#[derive(Clone, Debug)]
pub enum JobAccess {
    Open(Arc<Jobs>),
    /// The server has no data folder.
    NoDataDir,
    /// The server's roles leave them to others.
    NotServed,
    /// Their store cannot be read, and is left as it is.
    Damaged(Arc<str>),
}

impl JobAccess {
    /// # Errors
    /// The server has no data folder or not the role, or the store of its jobs is damaged.
    pub fn jobs(&self) -> Result<&Arc<Jobs>, Problem> {
        match self {
            Self::Open(jobs) => Ok(jobs),
            Self::NoDataDir => {
                let message = "this server trains no models: store.data_dir is empty";
                Err(Problem::new(Reason::NoDataDir, message))
            }
            Self::NotServed => Err(not_served(ServerRole::Train)),
            Self::Damaged(cause) => Err(Problem::new(Reason::JobStoreDamaged, cause.to_string())),
        }
    }
}

pub async fn train(
    access: &JobAccess,
    context: &CallContext,
    request: wire::TrainRequest,
) -> Result<ResponseStream<wire::TrainEvent>, Problem> {
    let jobs = access.jobs()?;
    let tenant = Arc::clone(&context.tenant);
    let validate_only = request.validate_only;
    let order = convert::order(request)?;
    if validate_only {
        let (job, start) = jobs.check(tenant, order).await?;
        let events = as_it_would_start(job, start).into_iter().map(Ok);
        return Ok(Box::pin(stream::iter(events.collect::<Vec<_>>())));
    }
    let job = jobs.order(tenant, order).await?;
    context.concerns(job.key.id);
    follow(jobs, job.key, WatchFrom::Oldest, context).await
}

/// A job's events until it has ended, or the call's deadline has passed.
pub async fn follow(
    jobs: &Jobs,
    key: JobKey,
    from: WatchFrom,
    context: &CallContext,
) -> Result<ResponseStream<wire::TrainEvent>, Problem> {
    let events = jobs.watch(key.clone(), from).await?;
    let told = events.map(move |event| match event {
        Ok(event) => Ok(convert::job_event(&key, event)),
        Err(cause) => Err(Status::from(Problem::from(cause))),
    });
    Ok(Box::pin(deadline::bounded(told, context.deadline)))
}

/// The only events of a job that is not started; neither has a name or number yet.
fn as_it_would_start(job: Job, start: Option<Start>) -> Vec<wire::TrainEvent> {
    let (key, attempt, occurred_at) = (job.key.clone(), job.attempt, job.created_at);
    let start = start.map(|start| EventPayload::Run(RunEvent::Started(start)));
    let payloads = [EventPayload::State(Box::new(job))].into_iter().chain(start);
    let events = payloads.map(|payload| {
        let mut event = convert::job_event(&key, JobEvent { number: 0, attempt, occurred_at, payload });
        event.job_id.clear();
        if let Some(wire::train_event::Event::Job(job)) = &mut event.event {
            job.job_id.clear();
        }
        event
    });
    events.collect()
}
