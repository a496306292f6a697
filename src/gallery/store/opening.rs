//! Reads go on while a store opens its files anew, as it does once there is room again on a disk that was full.

use std::sync::Arc;

use tokio::sync::watch;

use super::{GalleryReader, GalleryStore};

/// Whether snapshots can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    Open,
    /// They are closed for a moment; snapshots are to be taken anew.
    Reopening,
    Closed,
}

/// A time during which the files of a gallery stay open.
#[derive(Debug)]
pub struct Opening {
    files: watch::Receiver<Files>,
    first: Files,
}

impl dyn GalleryStore {
    /// Reads what is committed now, and does so again where the files were opened anew meanwhile.
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

    /// [`Self::read`], at first of a snapshot that was taken after `opening`.
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

/// Reads what is committed at `first`, and what is committed `now` where the files were opened anew meanwhile.
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

    /// Whether the files are open anew; while they are about to be, it waits for that.
    async fn is_over(&mut self) -> bool {
        if self.first != Files::Reopening && !self.files.has_changed().unwrap_or(false) {
            return false;
        }
        let settled = self.files.wait_for(|files| *files != Files::Reopening).await;
        settled.is_ok_and(|files| *files == Files::Open)
    }
}
