//! Cancellation of work whose deadline has passed or whose caller has left.

use std::fmt;
use std::sync::Arc;

use tokio::task::{JoinError, spawn_blocking};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::reason::Reason;

/// Checked between the steps of long work, which stops once it is cancelled.
#[derive(Clone, Default)]
pub struct Cancellation {
    deadline: Option<Instant>,
    /// Cancelled when the caller leaves.
    token: CancellationToken,
    /// Yields to other work, where there is any.
    give_way: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// Why work is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    #[error("the deadline has passed")]
    Deadline,
    #[error("the caller has left")]
    Cancelled,
}

impl Cancellation {
    /// Cancellation at `deadline`, or when the guard is dropped.
    pub fn at(deadline: Option<Instant>) -> (Self, DropGuard) {
        let token = CancellationToken::new();
        (Self { deadline, token: token.clone(), give_way: None }, token.drop_guard())
    }

    /// The same, but `give_way` is called between the steps and may yield to other work.
    #[must_use]
    pub fn giving_way(self, give_way: impl Fn() + Send + Sync + 'static) -> Self {
        Self { give_way: Some(Arc::new(give_way)), ..self }
    }

    /// # Errors
    /// The work is cancelled.
    pub fn check(&self) -> Result<(), Stopped> {
        self.over()?;
        match &self.give_way {
            None => Ok(()),
            Some(give_way) => {
                give_way();
                self.over()
            }
        }
    }

    fn over(&self) -> Result<(), Stopped> {
        // A caller that leaves at the deadline counts as past its deadline.
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Stopped::Deadline);
        }
        if self.token.is_cancelled() { Err(Stopped::Cancelled) } else { Ok(()) }
    }
}

/// Runs `work` on a thread that may block, with a cancellation to check between its steps. Dropping the future cancels
/// the work; work that has not started by then never starts.
///
/// # Errors
/// The work panicked. The inner result carries the work's own errors.
pub async fn spawn_cancellable<T, E>(
    deadline: Option<Instant>,
    work: impl FnOnce(&Cancellation) -> Result<T, E> + Send + 'static,
) -> Result<Result<T, E>, JoinError>
where
    T: Send + 'static,
    E: From<Stopped> + Send + 'static,
{
    let (cancellation, _guard) = Cancellation::at(deadline);
    spawn_blocking(move || {
        cancellation.check()?;
        work(&cancellation)
    })
    .await
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancellation").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Stopped {
    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Deadline => "DEADLINE",
            Self::Cancelled => "CANCELLED",
        }
    }

    pub fn reason(self) -> Reason {
        match self {
            Self::Deadline => Reason::DeadlineExceeded,
            Self::Cancelled => Reason::Cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_is_cancelled_by_its_deadline_or_when_its_guard_is_dropped() {
        assert_eq!(Cancellation::default().check(), Ok(()));
        let (cancellation, guard) = Cancellation::at(Some(Instant::now() + Duration::from_secs(1)));
        assert_eq!(cancellation.check(), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(cancellation.check(), Err(Stopped::Deadline));
        drop(guard);
        assert_eq!(cancellation.check(), Err(Stopped::Deadline));
        let (cancellation, guard) = Cancellation::at(None);
        assert_eq!(cancellation.check(), Ok(()));
        drop(guard);
        assert_eq!(cancellation.check(), Err(Stopped::Cancelled));
    }

    #[test]
    fn work_whose_caller_has_left_is_not_begun() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build();
        runtime.expect("a runtime").block_on(async {
            let (release, hang) = mpsc::channel::<()>();
            let (begin, begun) = mpsc::channel();
            let hanging = spawn_blocking(move || hang.recv().is_err());
            let waits = |name| {
                let begin = begin.clone();
                spawn_cancellable(None, move |_| {
                    begin.send(name).expect("the test listens");
                    Ok::<_, Stopped>(())
                })
            };
            let (mut left, mut stays) = (Box::pin(waits("left")), Box::pin(waits("stays")));
            assert!((&mut left).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
            drop((left, release));
            assert!(hanging.await.expect("no panic"));
            assert_eq!(stays.await.expect("no panic"), Ok(()));
            drop(begin);
            assert_eq!(begun.iter().collect::<Vec<_>>(), ["stays"]);
        });
    }
}
