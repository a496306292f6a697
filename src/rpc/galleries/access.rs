//! The galleries of a server, for the services that need them: named by tenant, searched on a bounded number of
//! threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::super::context::CallContext;
use super::super::problem::Problem;
use super::turns::{Announced, SearchSize, Turns};
use crate::budget::Slots;
use crate::cancellation::{Cancellation, spawn_cancellable};
use crate::encoder::Refusal;
use crate::gallery::{Catalog, Gallery, GalleryName, Read, Readable};
use crate::metrics;
use crate::reason::Reason;

/// Calls that may read or write the disk at the same time as searches.
const DISK_PLACES: usize = 32;
/// The expected wait is a mean: with this margin, admitted searches are rarely late.
const CAUTION: f64 = 1.25;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct GalleryAccess {
    catalog: Option<Catalog>,
    turns: Turns,
    disk: Slots,
}

impl GalleryAccess {
    /// Searches on at most `threads` threads at once; without a catalog, everything is refused. `pace` is how many
    /// seconds a search takes per code until searches have been measured.
    pub fn new(catalog: Option<Catalog>, threads: usize, pace: f64) -> Self {
        Self { catalog, turns: Turns::new(threads, pace), disk: Slots::new(DISK_PLACES) }
    }

    /// # Errors
    /// The server has no data folder.
    pub fn catalog(&self) -> Result<&Catalog, Problem> {
        self.catalog.as_ref().ok_or_else(|| {
            let message = "this server keeps no galleries: store.data_dir is empty";
            Problem::new(Reason::NoDataDir, message)
        })
    }

    /// # Errors
    /// The gallery does not exist, or it is damaged. The request names it in `gallery`.
    pub async fn gallery(&self, tenant: &str, name: &str) -> Result<Gallery, Problem> {
        Ok(self.catalog()?.get(tenant, &gallery_name("gallery", name)?).await?)
    }

    /// The gallery for a call that reads it, as current as it asks.
    ///
    /// # Errors
    /// As above; it has not reached the commit, or this server's copy is too old.
    pub async fn readable(&self, tenant: &str, name: &str, read: Read) -> Result<Readable, Problem> {
        Ok(self.catalog()?.get_for(tenant, &gallery_name("gallery", name)?, read).await?)
    }

    /// Admits a search if it would begin before its deadline. It counts as waiting while the returned value lives.
    ///
    /// # Errors
    /// Fails immediately when it would not: the queue is too long.
    pub fn admit(&self, context: &CallContext, size: SearchSize) -> Result<Announced, Problem> {
        let announced = |()| self.turns.announce(&context.account, size);
        self.in_time(context, size).map(announced)
    }

    fn in_time(&self, context: &CallContext, size: SearchSize) -> Result<(), Problem> {
        let Some(deadline) = context.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        let expected = self.turns.expected_wait(&context.account, size);
        if expected <= left.div_f64(CAUTION) {
            return Ok(());
        }
        let refusal = Refusal::Deadline { expected, left };
        metrics::refused("SEARCHES_TOO_LONG");
        Err(refusal.into())
    }

    /// Runs work that reads a gallery, in its account's turn. The work is only useful until the call's deadline and
    /// while the caller waits for it: it receives the cancellation to check between its steps, where it may also yield
    /// to others.
    ///
    /// # Errors
    /// The work's own, or it panicked.
    pub async fn read<T: Send + 'static>(
        &self,
        context: &CallContext,
        work: impl FnOnce(&Cancellation) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        self.search(context, SearchSize::default(), work).await
    }

    /// Like [`Self::read`], for work whose size is known beforehand.
    ///
    /// # Errors
    /// The work's own, or it panicked.
    pub async fn search<T: Send + 'static>(
        &self,
        context: &CallContext,
        size: SearchSize,
        work: impl FnOnce(&Cancellation) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = self.turns.take(&context.account, size).await;
        off_the_runtime(context.deadline, move |cancellation| {
            let turn = Arc::new(Mutex::new(turn));
            let cancellation = cancellation.clone().giving_way(move || lock(&turn).give_way());
            let worked = work(&cancellation);
            if worked.is_err()
                && let Err(stopped) = cancellation.check()
            {
                metrics::search_stopped(stopped.label());
            }
            worked
        })
        .await
    }

    /// Runs work that waits for the disk without taking a thread from searches, for as long as the caller waits for it.
    ///
    /// # Errors
    /// The work's own, or it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cancellation) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        // The slots are never closed.
        let place = self.disk.take().await.ok();
        off_the_runtime(None, move |cancellation| {
            let _place = place;
            work(cancellation)
        })
        .await
    }
}

async fn off_the_runtime<T: Send + 'static>(
    deadline: Option<Instant>,
    work: impl FnOnce(&Cancellation) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    spawn_cancellable(deadline, work).await.unwrap_or_else(|cause| {
        tracing::error!(%cause, "reading a gallery panicked");
        Err(Problem::new(Reason::GalleryFailed, "reading the gallery failed"))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Parses the name of a gallery in a field of the request.
///
/// # Errors
/// The name is not valid for a gallery.
pub fn gallery_name(field: &str, name: &str) -> Result<GalleryName, Problem> {
    GalleryName::new(name).map_err(|cause| {
        Problem::invalid(Reason::GalleryNameInvalid, field, format!("the gallery name {cause}"))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::cancellation::Stopped;
    use crate::rpc::context::Principal;

    /// A search that runs for as long as it may, and reports when it has begun and why it has ended.
    struct Endless {
        begun: tokio::sync::oneshot::Receiver<()>,
        ended: mpsc::Receiver<Stopped>,
    }

    fn endless() -> (impl FnOnce(&Cancellation) -> Result<(), Problem> + Send + 'static, Endless) {
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (end, ended) = mpsc::channel();
        let work = move |cancellation: &Cancellation| {
            begin.send(()).expect("the test waits");
            loop {
                if let Err(stopped) = cancellation.check() {
                    end.send(stopped).expect("the test waits");
                    return Err(stopped.into());
                }
                std::thread::yield_now();
            }
        };
        (work, Endless { begun, ended })
    }

    fn context(tenant: &str, deadline: Option<Instant>) -> CallContext {
        let mut extensions = http::Extensions::new();
        extensions.insert(Principal { key_id: Some("k".into()), tenant: tenant.into(), is_admin: false });
        CallContext::new(&extensions, deadline)
    }

    #[tokio::test]
    async fn who_leaves_during_a_search_frees_its_place_at_once() {
        let access = GalleryAccess::new(None, 1, 0.0);
        let (work, search) = endless();
        let leaving = tokio::spawn({
            let access = access.clone();
            async move { access.read(&context("t", None), work).await }
        });
        search.begun.await.expect("the search begins");
        let next = context("t", None);
        let mut next = Box::pin(access.read(&next, |_| Ok(7)));
        assert!(futures_util::poll!(&mut next).is_pending(), "the only place is taken");
        leaving.abort();
        assert_eq!(next.await, Ok(7));
        assert_eq!(search.ended.recv(), Ok(Stopped::Cancelled));
    }

    #[tokio::test]
    async fn searches_of_one_tenant_however_long_let_others_go_first() {
        let access = GalleryAccess::new(None, 2, 0.0);
        let (mut searches, mut heavy) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let (work, search) = endless();
            let access = access.clone();
            heavy.push(tokio::spawn(async move { access.read(&context("heavy", None), work).await }));
            searches.push(search);
        }
        (&mut searches[0].begun).await.expect("a search begins");
        for _ in 0..10 {
            let quiet = context("quiet", None);
            assert_eq!(access.read(&quiet, |cancellation| Ok(cancellation.check()?)).await, Ok(()));
            assert_eq!(access.read(&quiet, |_| Ok(7)).await, Ok(7));
        }
        assert!(!heavy.iter().any(tokio::task::JoinHandle::is_finished), "all of them go on");
        heavy.iter().for_each(tokio::task::JoinHandle::abort);
        for left in heavy {
            assert!(left.await.is_err_and(|cause| cause.is_cancelled()));
        }
        for search in searches {
            // Those that had not begun no longer begin.
            assert!(matches!(search.ended.recv(), Ok(Stopped::Cancelled) | Err(mpsc::RecvError)));
        }
        while access.turns.expected_wait(&context("heavy", None).account, SearchSize::default())
            > Duration::ZERO
        {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn work_that_hangs_on_a_disk_keeps_no_search_from_its_thread() {
        let access = GalleryAccess::new(None, 1, 0.0);
        let (release, hang) = mpsc::channel::<()>();
        let hanging = tokio::spawn({
            let access = access.clone();
            async move { access.run(move |_| Ok(hang.recv().is_ok())).await }
        });
        assert_eq!(access.read(&context("t", None), |_| Ok(7)).await, Ok(7));
        assert_eq!(access.run(|_| Ok(8)).await, Ok(8));
        release.send(()).expect("it hangs");
        assert_eq!(hanging.await.expect("no panic"), Ok(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_that_would_begin_too_late_is_refused_before_anything_is_done_for_it() {
        let access = GalleryAccess::new(None, 1, 0.0);
        type Search = Box<dyn FnOnce(&Cancellation) -> Result<(), Problem> + Send>;
        #[expect(clippy::async_yields_async, reason = "a search that has begun ends later")]
        let begin = async |work: Search| {
            let (access, context) = (access.clone(), context("busy", None));
            let mut searching = Box::pin(async move { access.read(&context, work).await });
            assert!(futures_util::poll!(&mut searching).is_pending());
            searching
        };
        let first = begin(Box::new(|_| {
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(5) {
                std::thread::yield_now();
            }
            Ok(())
        }));
        let (going, search) = endless();
        let (first, going, waiting) =
            (first.await, begin(Box::new(going)).await, begin(Box::new(|_| Ok(()))).await);
        first.await.expect("done");
        let going = tokio::spawn(going);
        search.begun.await.expect("the next one begins");
        let soon = Some(Instant::now() + Duration::from_millis(1));
        let problem =
            access.admit(&context("busy", soon), SearchSize::default()).expect_err("two are before it");
        assert_eq!(problem.reason.name(), "QUEUE_TOO_LONG");
        assert!(problem.retry_after.is_some());
        access
            .admit(&context("quiet", soon), SearchSize::default())
            .expect("another's searches are not before it");
        access.admit(&context("busy", None), SearchSize::default()).expect("it has time");
        going.abort();
        drop(waiting);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_first_burst_only_what_can_be_done_in_time_is_let_in() {
        let access = GalleryAccess::new(None, 1, 1e-6);
        let soon = Some(Instant::now() + Duration::from_secs(10));
        let second = SearchSize(1_000_000);
        let admitted: Vec<_> =
            (0..100).map_while(|_| access.admit(&context("t", soon), second).ok()).collect();
        assert_eq!(admitted.len(), 9, "eight seconds, and a quarter more to be sure");
        drop(admitted);
        access.admit(&context("t", soon), second).expect("they have left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_ends_at_its_deadline() {
        let access = GalleryAccess::new(None, 1, 0.0);
        let (work, search) = endless();
        let deadline = Instant::now() + Duration::from_secs(5);
        let searching = tokio::spawn(async move { access.read(&context("t", Some(deadline)), work).await });
        search.begun.await.expect("the search begins");
        tokio::time::advance(Duration::from_secs(5)).await;
        let problem = searching.await.expect("no panic").expect_err("too late");
        assert_eq!(problem.reason.name(), "DEADLINE_EXCEEDED");
        assert_eq!(search.ended.recv(), Ok(Stopped::Deadline));
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_whose_deadline_has_passed_is_not_begun() {
        let access = GalleryAccess::new(None, 1, 0.0);
        let late = context("t", Some(Instant::now()));
        let outcome = access.read::<()>(&late, |_| panic!("it is begun")).await;
        assert_eq!(outcome.expect_err("too late").reason.name(), "DEADLINE_EXCEEDED");
    }
}
