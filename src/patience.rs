//! How long work is worth going on with: until its deadline, and for as long as somebody waits.

use std::fmt;
use std::sync::{Arc, Weak};

use tokio::task::{JoinError, spawn_blocking};
use tokio::time::Instant;

/// Asked between the steps of long work, which stops where it has run out.
#[derive(Clone, Default)]
pub struct Patience {
    deadline: Option<Instant>,
    /// Absent where nobody can leave.
    waiter: Option<Weak<()>>,
    /// Lets others go first, where there are any.
    give_way: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// Somebody who waits. Dropped, he has left.
#[derive(Debug)]
pub struct Waiter {
    _here: Arc<()>,
}

/// Why work is not gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    #[error("the deadline has passed")]
    Deadline,
    #[error("the caller has left")]
    Cancelled,
}

impl Patience {
    /// Patience until `deadline`, for as long as the waiter is there.
    pub fn until(deadline: Option<Instant>) -> (Self, Waiter) {
        let here = Arc::new(());
        let waiter = Some(Arc::downgrade(&here));
        (Self { deadline, waiter, give_way: None }, Waiter { _here: here })
    }

    /// The same, but `give_way` is called between the steps, and may let others go first.
    #[must_use]
    pub fn giving_way(self, give_way: impl Fn() + Send + Sync + 'static) -> Self {
        Self { give_way: Some(Arc::new(give_way)), ..self }
    }

    /// # Errors
    /// It has run out.
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
        // Who leaves at the deadline has left for its sake.
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Stopped::Deadline);
        }
        match &self.waiter {
            Some(waiter) if waiter.strong_count() == 0 => Err(Stopped::Cancelled),
            _ => Ok(()),
        }
    }
}

/// Runs `work` on a thread that may block, with the patience to ask between its steps. It is over when the future is
/// dropped: what has not begun by then is not begun.
///
/// # Errors
/// The work panicked; within, its own.
pub async fn patiently<T, E>(
    deadline: Option<Instant>,
    work: impl FnOnce(&Patience) -> Result<T, E> + Send + 'static,
) -> Result<Result<T, E>, JoinError>
where
    T: Send + 'static,
    E: From<Stopped> + Send + 'static,
{
    let (patience, _waiter) = Patience::until(deadline);
    spawn_blocking(move || {
        patience.check()?;
        work(&patience)
    })
    .await
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Stopped {
    /// Stable and fit for programs and labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deadline => "DEADLINE",
            Self::Cancelled => "CANCELLED",
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
    async fn patience_ends_with_the_deadline_or_the_waiter() {
        assert_eq!(Patience::default().check(), Ok(()));
        let (patience, waiter) = Patience::until(Some(Instant::now() + Duration::from_secs(1)));
        assert_eq!(patience.check(), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(patience.check(), Err(Stopped::Deadline));
        drop(waiter);
        assert_eq!(patience.check(), Err(Stopped::Deadline));
        let (patience, waiter) = Patience::until(None);
        assert_eq!(patience.check(), Ok(()));
        drop(waiter);
        assert_eq!(patience.check(), Err(Stopped::Cancelled));
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
                patiently(None, move |_| {
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
