//! Following a job: all events from a number on, then new ones, at the reader's own pace.
//!
//! A watcher reads the store and is only notified that there is something new, so that a slow one costs a job nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::event::JobEvent;
use super::job::JobKey;
use super::repository::{JobRepository, Subscription};
use super::store::{Replay, StoreError};

/// Events read at once.
const CHUNK: usize = 128;

/// Where a watcher begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFrom {
    /// At the oldest event that is retained.
    Oldest,
    /// At this one. The next event to come can be waited for, but no later one.
    Number(u64),
}

/// Why there is no next event.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("there is no such job")]
    Unknown,
    #[error("event {asked} is no longer retained, the oldest is {oldest}")]
    Gone { asked: u64, oldest: u64 },
    #[error("event {asked} is in the future, the next is {next}")]
    Future { asked: u64, next: u64 },
    /// The job continues when the server restarts.
    #[error("the server is shutting down; watch again from event {next}")]
    Closing { next: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The events of a job in order, without gaps; it ends after the last one of a job that has ended.
///
/// # Errors
/// The job does not exist, or the first event cannot be returned.
pub async fn watch(
    repository: Arc<JobRepository>,
    key: JobKey,
    from: WatchFrom,
) -> Result<impl Stream<Item = Result<JobEvent, WatchError>> + Send, WatchError> {
    let mut watcher = Watcher {
        news: repository.subscribe(&key),
        closing: repository.closing(),
        next: 1,
        events: VecDeque::new(),
        complete: false,
        repository,
        key,
    };
    match from {
        WatchFrom::Number(number) => {
            watcher.next = number;
            watcher.read().await?;
        }
        WatchFrom::Oldest => match watcher.read().await {
            Err(WatchError::Gone { oldest, .. }) => watcher.next = oldest,
            read => read?,
        },
    }
    Ok(stream::try_unfold(watcher, async |mut watcher| {
        Ok(watcher.next().await?.map(|event| (event, watcher)))
    }))
}

struct Watcher {
    repository: Arc<JobRepository>,
    key: JobKey,
    news: Subscription,
    closing: watch::Receiver<bool>,
    /// The first event that has not been read.
    next: u64,
    events: VecDeque<JobEvent>,
    /// Everything has been read.
    complete: bool,
}

impl Watcher {
    async fn next(&mut self) -> Result<Option<JobEvent>, WatchError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.complete {
                return Ok(None);
            }
            // Events from before the server closed are still returned; after that there is nothing to wait for.
            let closing = *self.closing.borrow();
            self.news.head.mark_unchanged();
            self.read().await?;
            if !self.events.is_empty() || self.complete {
                continue;
            }
            if closing {
                return Err(WatchError::Closing { next: self.next });
            }
            tokio::select! {
                _ = self.news.head.changed() => {}
                _ = self.closing.wait_for(|closing| *closing) => {}
            }
        }
    }

    async fn read(&mut self) -> Result<(), WatchError> {
        let asked = self.next;
        match self.repository.events(&self.key, asked, CHUNK).await?.ok_or(WatchError::Unknown)? {
            Replay::Events { events, complete } => {
                self.next += events.len() as u64;
                self.events.extend(events);
                self.complete = complete;
                Ok(())
            }
            Replay::Gone { oldest } => Err(WatchError::Gone { asked, oldest }),
            Replay::Future { next } => Err(WatchError::Future { asked, next }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::Folder;
    use crate::jobs::job::{JobId, JobSpec};
    use crate::jobs::store::{Added, Bounds, EmbeddedJobs};

    fn repository() -> (tempfile::TempDir, Arc<JobRepository>) {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder(place.path().to_owned());
        EmbeddedJobs::create(&folder).expect("writable");
        let bounds = Bounds { jobs_max: 10, events_retained_max: 10 };
        let store = EmbeddedJobs::open(Box::new(folder), bounds).expect("a store");
        (place, Arc::new(JobRepository::new(store).expect("readable")))
    }

    #[tokio::test]
    async fn whoever_watches_leaves_nothing_behind() {
        let (_folder, repository) = repository();
        for number in 100..200 {
            let key = JobKey { tenant: "t".into(), id: JobId::new(number) };
            let watched = watch(Arc::clone(&repository), key, WatchFrom::Oldest).await;
            assert!(watched.is_err_and(|cause| matches!(cause, WatchError::Unknown)));
        }
        assert_eq!(repository.watched(), 0);
        let added = repository.add("t".into(), JobSpec::default()).await.expect("room");
        let Added::New(job) = added else { panic!("a new job") };
        let watching =
            async || watch(Arc::clone(&repository), job.key.clone(), WatchFrom::Oldest).await.expect("known");
        let (one, other) = (watching().await, watching().await);
        drop(one);
        assert_eq!(repository.watched(), 1);
        drop(other);
        assert_eq!(repository.watched(), 0);
    }

    #[tokio::test]
    async fn whoever_watches_a_job_that_seems_to_be_gone_looks_again_and_waits() {
        let (_folder, repository) = repository();
        let added = repository.add("t".into(), JobSpec::default()).await.expect("room");
        let Added::New(job) = added else { panic!("a new job") };
        let mut subscription = repository.subscribe(&job.key);
        repository.notice(&job.key, None);
        let is_told = |news: &watch::Receiver<u64>| news.has_changed().expect("it goes on");
        assert!(is_told(&subscription.head));
        subscription.head.mark_unchanged();
        assert!(!is_told(&subscription.head));
        repository.notice(&job.key, Some(1));
        assert!(is_told(&subscription.head));
    }
}
