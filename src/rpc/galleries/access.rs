//! The galleries of a server, for the services that need them: named by tenant, read on a bounded number of threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Code;

use super::super::problem::Problem;
use crate::gallery::{Gallery, GalleryName, Patience, Shelf};
use crate::metrics;

/// Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct GalleryAccess {
    shelf: Option<Arc<Shelf>>,
    readers: Arc<Readers>,
}

impl GalleryAccess {
    /// Reads on at most `readers` threads at once; without a shelf, everything is refused.
    pub fn new(shelf: Option<Arc<Shelf>>, readers: usize) -> Self {
        let readers = Readers { places: Arc::new(Semaphore::new(readers)), reading: Arc::default() };
        Self { shelf, readers: Arc::new(readers) }
    }

    /// # Errors
    /// The server has no data folder.
    pub fn shelf(&self) -> Result<&Arc<Shelf>, Problem> {
        self.shelf.as_ref().ok_or_else(|| {
            let message = "this server keeps no galleries: store.data_dir is empty";
            Problem::new(Code::FailedPrecondition, "NO_DATA_DIR", message)
        })
    }

    /// # Errors
    /// There is no such gallery, or it is damaged.
    pub fn gallery(&self, tenant: &str, name: &str) -> Result<Gallery, Problem> {
        Ok(self.shelf()?.get(tenant, &gallery_name(name)?)?)
    }

    /// Runs work that is only worth doing until `deadline`, and for as long as somebody waits for it: it is handed the
    /// patience to ask between its steps.
    ///
    /// # Errors
    /// The work's own, or it panicked.
    pub async fn run_patiently<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        work: impl FnOnce(&Patience) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let (patience, _waiter) = Patience::until(deadline);
        let worked = move || {
            let worked = patience.check().map_err(Problem::from).and_then(|()| work(&patience));
            if worked.is_err()
                && let Err(stopped) = patience.check()
            {
                metrics::search_stopped(stopped.reason());
            }
            worked
        };
        self.run(worked).await
    }

    /// Runs work that reads or writes the disk off the async threads.
    ///
    /// # Errors
    /// The work's own, or it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let place = ReaderPlace::take(&self.readers).await;
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.unwrap_or_else(|cause| {
            tracing::error!(%cause, "reading a gallery panicked");
            Err(Problem::new(Code::Internal, "GALLERY_FAILED", "reading the gallery failed"))
        })
    }
}

/// The threads that read galleries.
#[derive(Debug)]
struct Readers {
    places: Arc<Semaphore>,
    reading: Arc<AtomicUsize>,
}

/// A reader's place, held to the end of the work even when the caller has left.
#[derive(Debug)]
struct ReaderPlace {
    reading: Arc<AtomicUsize>,
    /// The semaphore is never closed.
    _permit: Option<OwnedSemaphorePermit>,
}

impl ReaderPlace {
    async fn take(readers: &Readers) -> Self {
        let permit = Arc::clone(&readers.places).acquire_owned().await.ok();
        let reading = Arc::clone(&readers.reading);
        metrics::searching(reading.fetch_add(1, Ordering::AcqRel) + 1);
        Self { reading, _permit: permit }
    }
}

impl Drop for ReaderPlace {
    fn drop(&mut self) {
        metrics::searching(self.reading.fetch_sub(1, Ordering::AcqRel) - 1);
    }
}

/// # Errors
/// No gallery can have the name.
pub fn gallery_name(name: &str) -> Result<GalleryName, Problem> {
    GalleryName::new(name).map_err(|cause| {
        Problem::invalid("GALLERY_NAME_INVALID", "name", format!("the gallery name {cause}"))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::gallery::Stopped;

    /// Work that goes on for as long as it may, and tells when it has begun and why it has ended.
    struct Endless {
        begun: tokio::sync::oneshot::Receiver<()>,
        ended: mpsc::Receiver<Stopped>,
    }

    fn endless() -> (impl FnOnce(&Patience) -> Result<(), Problem> + Send + 'static, Endless) {
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (end, ended) = mpsc::channel();
        let work = move |patience: &Patience| {
            begin.send(()).expect("the test waits");
            loop {
                if let Err(stopped) = patience.check() {
                    end.send(stopped).expect("the test waits");
                    return Err(stopped.into());
                }
                std::thread::yield_now();
            }
        };
        (work, Endless { begun, ended })
    }

    #[tokio::test]
    async fn who_leaves_during_a_search_frees_its_place_at_once() {
        let access = GalleryAccess::new(None, 1);
        let (work, search) = endless();
        let leaving = tokio::spawn({
            let access = access.clone();
            async move { access.run_patiently(None, work).await }
        });
        search.begun.await.expect("the search begins");
        let mut next = Box::pin(access.run(|| Ok(7)));
        assert!(futures_util::poll!(&mut next).is_pending(), "the only place is taken");
        leaving.abort();
        assert_eq!(next.await, Ok(7));
        assert_eq!(search.ended.recv(), Ok(Stopped::Cancelled));
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_ends_at_its_deadline() {
        let access = GalleryAccess::new(None, 1);
        let (work, search) = endless();
        let deadline = Instant::now() + Duration::from_secs(5);
        let searching = tokio::spawn(async move { access.run_patiently(Some(deadline), work).await });
        search.begun.await.expect("the search begins");
        tokio::time::advance(Duration::from_secs(5)).await;
        let problem = searching.await.expect("no panic").expect_err("too late");
        assert_eq!((problem.code, problem.reason), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
        assert_eq!(search.ended.recv(), Ok(Stopped::Deadline));
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_whose_deadline_has_passed_is_not_begun() {
        let access = GalleryAccess::new(None, 1);
        let outcome = access.run_patiently::<()>(Some(Instant::now()), |_| panic!("it is begun")).await;
        assert_eq!(outcome.expect_err("too late").code, Code::DeadlineExceeded);
    }
}
