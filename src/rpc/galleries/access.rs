//! The galleries of a server, for the services that need them: named by tenant, read on a bounded number of threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Code;

use super::super::problem::Problem;
use crate::gallery::{Gallery, GalleryName, Shelf};
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
