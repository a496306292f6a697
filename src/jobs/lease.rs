//! Renews the right to run a job, for as long as its attempt lasts.

use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::hold::Hold;
use super::repository::JobRepository;

/// Renewals in the time for which a job is held.
const RENEWALS: u32 = 6;

/// A hold that is renewed until this is dropped.
#[derive(Debug)]
pub struct Lease {
    /// Cancelled once another server may run the job, by this server's own clock at the latest.
    pub lost: CancellationToken,
    renewing: Option<JoinHandle<()>>,
}

impl Lease {
    pub fn keep(repository: &Arc<JobRepository>, hold: &Hold) -> Self {
        let lost = CancellationToken::new();
        let (repository, hold) = (Arc::clone(repository), hold.clone());
        let renewing = hold.until.map(|until| tokio::spawn(renew(repository, hold, until, lost.clone())));
        Self { lost, renewing }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(renewing) = &self.renewing {
            renewing.abort();
        }
    }
}

async fn renew(repository: Arc<JobRepository>, hold: Hold, until: Instant, lost: CancellationToken) {
    let mut until = until;
    loop {
        let pause = until.saturating_duration_since(Instant::now()) / RENEWALS;
        sleep_until((Instant::now() + pause).into()).await;
        match timeout_at(until.into(), repository.renew(&hold)).await {
            Ok(Ok(Some(renewed))) => until = renewed,
            Ok(Err(cause)) if Instant::now() < until => {
                tracing::warn!(%cause, job = %hold.key.id, "a job is not held for longer yet");
            }
            Ok(Ok(None) | Err(_)) | Err(_) => break,
        }
    }
    tracing::warn!(job = %hold.key.id, "another server may run this job from now on: its process here is killed");
    lost.cancel();
}
