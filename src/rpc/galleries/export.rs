//! A copy of a gallery sent to a caller: read as fast as the caller takes it, and ended when it holds up the gallery,
//! whose old states stay on the disk while they are being read.

use std::time::Duration;

use futures_util::{Stream, StreamExt, future, stream};
use tokio::sync::mpsc::{self, Permit, Sender};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::super::problem::Problem;
use crate::gallery::{Export, Gallery};
use crate::reason::Reason;
use crate::wire::ExportGalleryResponse;

/// Pieces of a copy buffered between the disk and a slow reader.
const AHEAD: usize = 4;
/// How long a piece may wait for the caller.
const PIECE_WAIT: Duration = Duration::from_secs(60);
/// How often to check whether a copy holds up its gallery.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Piece = Result<ExportGalleryResponse, Status>;

/// The pieces of `export`, a copy of `gallery`.
pub fn pieces(gallery: Gallery, export: Export) -> impl Stream<Item = Piece> {
    let (pieces, receiver) = mpsc::channel(AHEAD);
    // An error must reach even a caller that takes nothing, so it does not wait for a slot among the pieces.
    let (fail, failed) = oneshot::channel::<Problem>();
    tokio::spawn(async move {
        let watch = Watch { file_bytes: gallery.file_bytes(), gallery };
        if let Err(problem) = send(&watch, export, pieces).await {
            // A caller that has disconnected needs no reason.
            let _ = fail.send(problem);
        }
    });
    let failure = stream::once(failed).filter_map(|failed| future::ready(failed.ok()));
    ReceiverStream::new(receiver).chain(failure.map(|problem| Err(problem.into())))
}

async fn send(watch: &Watch, mut export: Export, pieces: Sender<Piece>) -> Result<(), Problem> {
    loop {
        let reading = tokio::task::spawn_blocking(move || (export.next(), export));
        let (piece, rest) = reading.await.map_err(|cause| {
            tracing::error!(%cause, "reading a gallery panicked");
            Problem::new(Reason::GalleryFailed, "reading the gallery failed")
        })?;
        export = rest;
        let Some(piece) = piece else { return Ok(()) };
        let data = piece?;
        let Some(place) = watch.place(&pieces).await? else { return Ok(()) };
        place.send(Ok(ExportGalleryResponse { data }));
    }
}

/// Watches a gallery while it is copied.
struct Watch {
    gallery: Gallery,
    /// The size of its files when the copy began.
    file_bytes: u64,
}

impl Watch {
    /// A slot for the next piece; `None` if the receiver is gone.
    async fn place<'p>(&self, pieces: &'p Sender<Piece>) -> Result<Option<Permit<'p, Piece>>, Problem> {
        let until = Instant::now() + PIECE_WAIT;
        let mut place = std::pin::pin!(pieces.reserve());
        loop {
            if self.gallery.is_held_up(self.file_bytes) {
                return Err(too_slow("the gallery changes faster than its copy is taken"));
            }
            tokio::select! {
                place = &mut place => return Ok(place.ok()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if Instant::now() >= until {
                return Err(too_slow(format!("no piece was taken for {} s", PIECE_WAIT.as_secs())));
            }
        }
    }
}

fn too_slow(message: impl Into<String>) -> Problem {
    Problem::new(Reason::ExportTooSlow, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::SourceChip;
    use crate::gallery::tests::{enrolment, folder, name, new_gallery, settings};
    use crate::gallery::{Chips, Conflict, EmbeddedCatalog, Enrolment};

    const IMAGE_BYTES: usize = 200 << 10;

    fn with_image(number: u64, seed: u64) -> Enrolment {
        let made = enrolment(&number.to_string(), seed);
        let image = vec![seed as u8; IMAGE_BYTES].into();
        let chip = made.chip.map(|chip| SourceChip { image, ..chip });
        Enrolment { chip, conflict: Conflict::Overwrite, ..made }
    }

    /// A gallery of ten pieces.
    async fn gallery() -> (tempfile::TempDir, EmbeddedCatalog, Gallery) {
        let folder = folder();
        let catalog = EmbeddedCatalog::open(folder.path(), settings()).expect("free");
        let gallery = catalog.create("default", &name("a"), new_gallery()).expect("made");
        for number in 0..20 {
            gallery.enrol(with_image(number, number)).await.expect("enrolled");
        }
        (folder, catalog, gallery)
    }

    fn copy(gallery: &Gallery) -> impl Stream<Item = Piece> + use<> {
        pieces(gallery.clone(), Export::new(gallery.snapshot(), Chips::With))
    }

    async fn reason_at_the_end(copy: impl Stream<Item = Piece>) -> Option<String> {
        use tonic_types::StatusExt;
        let last = std::pin::pin!(copy).fold(None, |_, piece| future::ready(Some(piece))).await;
        let status = last.expect("pieces").err()?;
        status.get_details_error_info().map(|info| info.reason)
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_nobody_takes_ends_and_one_that_is_taken_does_not() {
        let (_folder, catalog, gallery) = gallery().await;
        let taken = copy(&gallery).then(|piece| async {
            tokio::time::sleep(PIECE_WAIT / 2).await;
            piece
        });
        assert_eq!(reason_at_the_end(taken).await, None);
        let left = copy(&gallery);
        tokio::time::sleep(2 * PIECE_WAIT).await;
        assert_eq!(reason_at_the_end(left).await.as_deref(), Some("EXPORT_TOO_SLOW"));
        catalog.close();
    }

    #[tokio::test]
    async fn a_copy_that_holds_what_was_replaced_ends_before_the_files_grow_without_bound() {
        let (_folder, catalog, gallery) = gallery().await;
        let (before, copy) = (gallery.file_bytes(), copy(&gallery));
        let mut seed = 100;
        while !gallery.is_held_up(before) {
            gallery.enrol(with_image(seed % 20, seed)).await.expect("enrolled");
            seed += 1;
        }
        assert_eq!(reason_at_the_end(copy).await.as_deref(), Some("EXPORT_TOO_SLOW"));
        let held_up = gallery.file_bytes();
        for seed in seed..2 * seed {
            gallery.enrol(with_image(seed % 20, seed)).await.expect("enrolled");
        }
        assert!(gallery.file_bytes() <= held_up, "{} after {held_up}", gallery.file_bytes());
        catalog.close();
    }
}
