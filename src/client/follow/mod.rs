//! Follows a training job across lost connections and server restarts: each event once, in order.

mod order;
#[cfg(test)]
mod tests;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tonic::Streaming;

use order::{Arrival, EventOrder};

use super::state::is_ended;
use super::{Client, ClientError};
use crate::wire::{TrainEvent, TrainRequest, TrainingJob, WatchTrainingJobRequest};

/// Up to half a second, then twice as long after each failure, up to 20 s. The second half of each delay is random, so
/// that the watchers of a stopped server do not all return at once.
const BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(250))
    .with_max_delay(Duration::from_secs(10))
    .with_jitter()
    .without_max_times();

/// The first event of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// The oldest event that the server still has.
    Oldest,
    /// This event; refused if the server no longer has it.
    Event(u64),
}

/// A watched job.
#[derive(Debug)]
pub struct Follower {
    client: Client,
    subject: Subject,
    beginning: Beginning,
    order: EventOrder,
    stream: Stream,
    backoff: ExponentialBuilder,
    /// The delays after consecutive failures.
    waits: ExponentialBackoff,
}

/// A notification from a follower.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    Event(Box<TrainEvent>),
    /// The connection or the server is gone; the next call retries after `wait`.
    Lost {
        cause: String,
        wait: Duration,
    },
    /// The job has ended and stays so unless it is resumed; every event was returned.
    Ended(Box<TrainingJob>),
}

/// What to request when a stream is opened.
#[derive(Debug)]
enum Subject {
    /// The job has no name yet. Its request id makes it safe to order it again.
    Order(Box<TrainRequest>),
    Job(String),
}

#[derive(Debug)]
enum Stream {
    Closed,
    /// Closed, and to be reopened after a delay.
    Waiting(Duration),
    Open {
        events: Box<Streaming<TrainEvent>>,
        told: bool,
    },
}

impl Follower {
    /// Orders a job, and follows it; nothing is sent before the first call of [`Follower::next`].
    ///
    /// # Panics
    /// Without a request id, an order whose response was lost could not be repeated.
    pub(super) fn ordering(client: Client, request: TrainRequest) -> Self {
        assert!(!request.request_id.is_empty(), "an order that may be repeated has a request id");
        Self {
            client,
            subject: Subject::Order(Box::new(request)),
            beginning: Beginning::Oldest,
            order: EventOrder::from_any(),
            stream: Stream::Closed,
            backoff: BACKOFF,
            waits: BACKOFF.build(),
        }
    }

    pub(super) fn watching(client: Client, job_id: String, beginning: Beginning) -> Self {
        let first = match beginning {
            Beginning::Oldest => 1,
            Beginning::Event(number) => number,
        };
        Self {
            client,
            subject: Subject::Job(job_id),
            beginning,
            order: EventOrder::from(first),
            stream: Stream::Closed,
            backoff: BACKOFF,
            waits: BACKOFF.build(),
        }
    }

    /// Uses these delays after failures.
    #[must_use]
    pub fn with_backoff(self, backoff: ExponentialBuilder) -> Self {
        Self { backoff, waits: backoff.build(), ..self }
    }

    /// The job, once the server has named it.
    pub fn job_id(&self) -> Option<&str> {
        match &self.subject {
            Subject::Order(_) => None,
            Subject::Job(id) => Some(id),
        }
    }

    /// The number of the next event.
    pub fn next_event(&self) -> u64 {
        self.order.next()
    }

    /// The next notification. Dropping the future loses nothing; after `Ended`, the job is queried again.
    ///
    /// # Errors
    /// The server refuses permanently, or has lost events.
    pub async fn next(&mut self) -> Result<Followed, ClientError> {
        loop {
            match &mut self.stream {
                Stream::Waiting(wait) => {
                    tokio::time::sleep(*wait).await;
                    self.stream = Stream::Closed;
                }
                Stream::Closed => match self.open().await {
                    Ok(events) => self.stream = Stream::Open { events: Box::new(events), told: false },
                    Err(cause) => return self.lost(cause),
                },
                Stream::Open { events, told } => match events.message().await {
                    Ok(Some(event)) => match self.order.arrive(event.number) {
                        Arrival::Next => {
                            *told = true;
                            return Ok(self.tell(event));
                        }
                        Arrival::Again => {}
                        // A stream that begins after the requested event will do so again.
                        Arrival::Gap { expected } if !*told => {
                            return Err(ClientError::EventsLost { expected, found: event.number });
                        }
                        Arrival::Gap { expected } => {
                            let cause = ClientError::EventsLost { expected, found: event.number };
                            return Ok(self.wait(&cause));
                        }
                    },
                    Ok(None) => return self.ended().await,
                    Err(status) => return self.lost(status.into()),
                },
            }
        }
    }

    fn tell(&mut self, event: TrainEvent) -> Followed {
        if let Subject::Order(_) = self.subject {
            self.subject = Subject::Job(event.job_id.clone());
        }
        self.waits = self.backoff.build();
        Followed::Event(Box::new(event))
    }

    async fn open(&mut self) -> Result<Streaming<TrainEvent>, ClientError> {
        let job_id = match &self.subject {
            Subject::Order(request) => {
                let answer = self.client.ship_re_id().train(TrainRequest::clone(request)).await?;
                return Ok(answer.into_inner());
            }
            Subject::Job(id) => id.clone(),
        };
        let mut jobs = self.client.training_jobs();
        let request = WatchTrainingJobRequest { job_id: job_id.clone(), from_event: self.order.next() };
        let refused = match jobs.watch_training_job(request).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => ClientError::from(status),
        };
        match (self.beginning, refused.oldest_event()) {
            // The oldest event was requested and none was returned yet: use the one that exists.
            (Beginning::Oldest, Some(oldest)) if self.order == EventOrder::from(1) => {
                self.order = EventOrder::from(oldest);
                let request = WatchTrainingJobRequest { job_id, from_event: oldest };
                Ok(jobs.watch_training_job(request).await?.into_inner())
            }
            _ => Err(refused),
        }
    }

    /// The server has closed the stream without an error: because the job has ended, or to shut down.
    async fn ended(&mut self) -> Result<Followed, ClientError> {
        self.stream = Stream::Closed;
        let Subject::Job(id) = &self.subject else {
            return Ok(self.wait(&ClientError::StreamEnded));
        };
        let job = match self.client.training_job(id).await {
            Ok(job) => job,
            Err(cause) => return self.lost(cause),
        };
        if is_ended(job.state()) && job.last_event < self.order.next() {
            return Ok(Followed::Ended(Box::new(job)));
        }
        Ok(self.wait(&ClientError::StreamEnded))
    }

    fn lost(&mut self, cause: ClientError) -> Result<Followed, ClientError> {
        if cause.is_passing() { Ok(self.wait(&cause)) } else { Err(cause) }
    }

    fn wait(&mut self, cause: &ClientError) -> Followed {
        let wait = self.waits.next().unwrap_or_default().max(cause.retry_after().unwrap_or_default());
        self.stream = Stream::Waiting(wait);
        Followed::Lost { cause: cause.to_string(), wait }
    }
}
