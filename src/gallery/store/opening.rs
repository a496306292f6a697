//! Lets reads continue while a store reopens its files, as it does once a full disk has room again.

use std::sync::Arc;

use tokio::sync::watch;

use super::{GalleryReader, GalleryStore};

/// Whether snapshots can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    Open,
    /// The files are closed for a moment; readers must take a new snapshot.
    Reopening,
    Closed,
}

/// A period during which the files of a gallery stay open.
#[derive(Debug)]
pub struct Opening {
    files: watch::Receiver<Files>,
    first: Files,
}

impl dyn GalleryStore {
    /// Reads the committed state, and repeats that if the files were reopened meanwhile.
    ///
    /// # Errors
    /// Those of `read`.
    pub async fn read<T, E, R>(&self, read: impl Fn(Arc<dyn GalleryReader>) -> R) -> Result<T, E>
    where
        R: Future<Output = Result<T, E>>,
    {
        let opening = self.opening();
        self.read_first(opening, self.snapshot(), read).await
    }

    /// `read` that starts with a snapshot taken after `opening`.
    ///
    /// # Errors
    /// Those of `read`.
    pub async fn read_first<T, E, R>(
        &self,
        opening: Opening,
        snapshot: Arc<dyn GalleryReader>,
        read: impl Fn(Arc<dyn GalleryReader>) -> R,
    ) -> Result<T, E>
    where
        R: Future<Output = Result<T, E>>,
    {
        read_settled((opening, snapshot), || (self.opening(), self.snapshot()), read).await
    }
}

/// Reads the state `first`, and the state `now` if the files were reopened meanwhile.
pub(in crate::gallery) async fn read_settled<T, E, R>(
    first: (Opening, Arc<dyn GalleryReader>),
    now: impl Fn() -> (Opening, Arc<dyn GalleryReader>),
    read: impl Fn(Arc<dyn GalleryReader>) -> R,
) -> Result<T, E>
where
    R: Future<Output = Result<T, E>>,
{
    let (mut opening, mut snapshot) = first;
    loop {
        match read(snapshot).await {
            Err(_) if opening.is_over().await => {}
            done => return done,
        }
        (opening, snapshot) = now();
    }
}

impl Opening {
    pub(in crate::gallery) fn now(mut files: watch::Receiver<Files>) -> Self {
        let first = *files.borrow_and_update();
        Self { files, first }
    }

    /// Whether the files were reopened; waits while they are being reopened.
    async fn is_over(&mut self) -> bool {
        if self.first != Files::Reopening && !self.files.has_changed().unwrap_or(false) {
            return false;
        }
        let settled = self.files.wait_for(|files| *files != Files::Reopening).await;
        settled.is_ok_and(|files| *files == Files::Open)
    }
}
