//! When a job is retried after a failed attempt: soon at first, then with growing pauses, so that a process that fails
//! immediately costs the server very little.

use std::collections::HashMap;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;

use super::job::{Job, JobKey};
use super::state::JobState;

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a job waits after so many consecutive attempts without a further checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Pauses(ExponentialBuilder);

/// Waiting jobs whose last attempt failed in this process of the server.
///
/// A job stays [`JobState::Queued`] through its pause and uses no slot, so that cancelling it or shutting down ends the
/// pause immediately. A resumed job has no pause, nor does a job after a restart of the server. Where servers share
/// jobs, the end of the pause is also in the database, for the other servers.
#[derive(Debug)]
pub struct Retries {
    pauses: Pauses,
    /// When the last attempt of each ended.
    ended: HashMap<JobKey, Instant>,
}

impl Pauses {
    /// `pause_min`, at most [`PAUSE_MAX`], is the pause after the first attempt without a further checkpoint; it
    /// doubles with each consecutive one.
    pub fn new(pause_min: Duration) -> Self {
        Self(
            ExponentialBuilder::new().with_min_delay(pause_min).with_max_delay(PAUSE_MAX).without_max_times(),
        )
    }

    /// `None` if the last attempt came further.
    pub fn after(&self, fruitless: u32) -> Option<Duration> {
        self.0.build().nth(fruitless.checked_sub(1)? as usize)
    }
}

impl Retries {
    pub fn new(pauses: Pauses) -> Self {
        Self { pauses, ended: HashMap::new() }
    }

    /// Notes that an attempt at this job has just ended.
    pub fn attempt_ended(&mut self, key: JobKey) {
        self.ended.insert(key, Instant::now());
    }

    /// Forgets all but the waiting jobs.
    pub fn keep_waiting(&mut self, jobs: &[Job]) {
        self.ended.retain(|key, _| jobs.iter().any(|job| job.key == *key && job.state == JobState::Queued));
    }

    /// The end of a waiting job's pause, if it has not passed yet.
    pub fn paused_until(&self, job: &Job) -> Option<Instant> {
        let ended = self.ended.get(&job.key)?;
        let pause = self.pauses.after(job.fruitless)?;
        Some(*ended + pause).filter(|until| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::{JobId, JobSpec};
    use super::*;
    use crate::gallery::Time;

    const SECOND: Duration = Duration::from_secs(1);

    fn job(fruitless: u32) -> Job {
        let key = JobKey { tenant: "default".into(), id: JobId::new(1) };
        Job { fruitless, ..Job::new(key, JobSpec::default(), Time::from_nanos(0)) }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_to_their_bound_and_end() {
        let mut retries = Retries::new(Pauses::new(SECOND));
        assert_eq!(retries.paused_until(&job(1)), None, "it was not tried yet");
        retries.attempt_ended(job(0).key);
        let now = Instant::now();
        for (fruitless, seconds) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)] {
            let until = retries.paused_until(&job(fruitless)).expect("a pause");
            assert_eq!((until - now).as_secs(), seconds, "after {fruitless} attempts");
        }
        tokio::time::advance(SECOND).await;
        assert_eq!(retries.paused_until(&job(1)), None);
        assert!(retries.paused_until(&job(2)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_resumes_a_job_waits_for_no_pause() {
        let mut retries = Retries::new(Pauses::new(SECOND));
        retries.attempt_ended(job(0).key);
        assert_eq!(retries.paused_until(&job(0)), None);
        retries.keep_waiting(&[Job { state: JobState::Cancelled, ..job(1) }]);
        assert_eq!(retries.paused_until(&job(1)), None);
    }
}
