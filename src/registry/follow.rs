//! Galleries follow the active model: their kept chips are embedded anew in the background, then each flips at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::{Activation, Activator};
use crate::chip::SourceChip;
use crate::embedding::{Embedding, ModelDigest};
use crate::encoder::{Caller, EmbedError, EncodeError, ModelLease, Pipeline, Priority};
use crate::gallery::{Flip, Gallery, RowId, Shelf, Snapshot, StoreError};
use crate::metrics;

/// Whose chips these are to the queue, which serves its tenants evenly.
const TENANT: &str = "galleries that follow";
/// Entries that are read and stored together.
const PIECE: usize = 64;
/// Chips that may be in the queue at once.
const IN_FLIGHT: usize = 16;
/// Forward passes that may fail for one chip.
const ATTEMPTS_MAX: u32 = 3;
/// How long a chip waits for room in a full server, and for a device that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Leads the galleries of a shelf from model to model, as models are activated.
#[derive(Clone)]
pub struct Follower {
    shelf: Arc<Shelf>,
    pipeline: Arc<Pipeline>,
    activator: Activator,
}

/// Where galleries go to, and whence.
struct Course {
    active: ModelLease,
    former: ModelDigest,
    /// Galleries that have not flipped yet are searched with the former model, so it stays for as long.
    _former: Option<ModelLease>,
}

/// Why a gallery does not follow.
#[derive(Debug, thiserror::Error)]
enum Stall {
    #[error("{0} entries have no chip that can be embedded: delete them, or enrol them again with chips")]
    NoChips(u64),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("reading its chips panicked")]
    Panicked,
    /// Whatever this is, it is not the gallery's fault.
    #[error("the server goes down")]
    Closing,
}

impl Follower {
    pub fn new(shelf: Arc<Shelf>, pipeline: Arc<Pipeline>, activator: Activator) -> Self {
        Self { shelf, pipeline, activator }
    }

    /// Goes on where an earlier process was, then follows every change. Ends when there will be no more changes; may be
    /// dropped at any time, and goes on from there.
    pub async fn run(self, mut changes: mpsc::UnboundedReceiver<Activation>) {
        let mut course = self.resumed().await;
        loop {
            let change = match course.take() {
                None => changes.recv().await,
                Some(current) => tokio::select! {
                    change = changes.recv() => change,
                    () = self.follow(&current) => continue,
                },
            };
            let Some(Activation { active, former }) = change else { return };
            course = Some(Course { active, former: former.digest, _former: Some(former) });
        }
    }

    /// What was under way when an earlier process ended.
    async fn resumed(&self) -> Option<Course> {
        let remembered = self.activator.registry().active()?;
        let mut course = Course { active: self.pipeline.active(), former: remembered.former, _former: None };
        let waiting =
            self.galleries_of(&course).iter().any(|gallery| gallery.info().about.model == course.former);
        if waiting {
            course._former = match self.activator.lease(course.former).await {
                Ok(lease) => Some(lease),
                Err(cause) => {
                    let model = course.former;
                    tracing::warn!(%model, %cause, "until they have followed, galleries of this model take no chips");
                    None
                }
            };
        }
        Some(course)
    }

    async fn follow(&self, course: &Course) {
        let galleries = self.galleries_of(course);
        let (mut left, mut stalled) = (galleries.len(), 0);
        for gallery in galleries {
            metrics::following(left);
            gallery.stall(None);
            match self.lead(&gallery, &course.active).await {
                Ok(()) => tracing::info!(model = %course.active.digest, "a gallery follows the active model"),
                Err(Stall::Closing) => return,
                Err(stall) => {
                    tracing::warn!(model = %course.active.digest, cause = %stall, "a gallery does not follow");
                    gallery.stall(Some(stall.to_string()));
                    stalled += 1;
                }
            }
            left -= 1;
        }
        metrics::following(0);
        metrics::following_left(0);
        metrics::stalled_galleries(stalled);
    }

    /// Those that are on their way already, and those of the former model that keep chips.
    fn galleries_of(&self, course: &Course) -> Vec<Gallery> {
        let mut galleries = self.shelf.galleries();
        galleries.retain(|gallery| {
            let about = gallery.info().about;
            about.shadow.is_some() || (about.keeps_chips && about.model == course.former)
        });
        galleries
    }

    /// Embeds a gallery anew until it is of the active model.
    async fn lead(&self, gallery: &Gallery, model: &ModelLease) -> Result<(), Stall> {
        if gallery.info().about.model == model.digest {
            // It was on its way to a model that is not active any more.
            return Ok(gallery.drop_shadow().await?);
        }
        gallery.begin_shadow(model.digest, model.dimension).await?;
        loop {
            let stuck = self.fill(gallery, model).await?;
            if stuck > 0 {
                return Err(Stall::NoChips(stuck));
            }
            // Entries may have come meanwhile.
            if gallery.flip(model.digest).await? == Flip::Done {
                return Ok(());
            }
        }
    }

    /// Walks once through the entries that the shadow lacks, and says how many of them cannot be embedded.
    async fn fill(&self, gallery: &Gallery, model: &ModelLease) -> Result<u64, Stall> {
        let (mut stuck, mut after) = (0, None);
        loop {
            let snapshot = gallery.snapshot();
            metrics::following_left(entries_left(&snapshot));
            let reading = tokio::task::spawn_blocking(move || read_piece(&snapshot, after));
            let piece = reading.await.map_err(|_| Stall::Panicked)??;
            let Some((last, _)) = piece.last() else { return Ok(stuck) };
            after = Some(*last);
            let read = piece.len() as u64;
            let embedded: Vec<Option<(RowId, Embedding)>> = stream::iter(piece)
                .map(|(row, chip)| self.embed(model, row, chip))
                .buffer_unordered(IN_FLIGHT)
                .try_collect()
                .await?;
            let embedded: Vec<_> = embedded.into_iter().flatten().collect();
            stuck += read - embedded.len() as u64;
            metrics::reembedded(gallery.fill_shadow(model.digest, embedded).await?);
        }
    }

    /// `None` where the chip is missing or gives no embedding.
    async fn embed(
        &self,
        model: &ModelLease,
        row: RowId,
        chip: Option<SourceChip>,
    ) -> Result<Option<(RowId, Embedding)>, Stall> {
        let Some(chip) = chip else { return Ok(None) };
        let caller = Caller { tenant: TENANT.into(), priority: Priority::Bulk, deadline: None };
        let mut attempts = 0;
        loop {
            let Ok(_place) = self.pipeline.admit(model, &caller, 1, chip.image.len()) else {
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            };
            match self.pipeline.embed(model, &caller, chip.clone()).await {
                Ok(embedded) => return Ok(Some((row, embedded.embedding))),
                Err(EmbedError::Encode(EncodeError::Closed | EncodeError::DeviceLost)) => {
                    return Err(Stall::Closing);
                }
                Err(EmbedError::Encode(cause)) if attempts < ATTEMPTS_MAX => {
                    tracing::debug!(%cause, "a chip is embedded anew once more");
                    attempts += 1;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                Err(cause) => {
                    tracing::warn!(row = row.0, %cause, "a kept chip gives no embedding");
                    return Ok(None);
                }
            }
        }
    }
}

fn entries_left(snapshot: &Snapshot) -> u64 {
    (snapshot.index().len() as u64).saturating_sub(snapshot.shadow_rows())
}

type Piece = Vec<(RowId, Option<SourceChip>)>;

/// The next entries that the shadow lacks, with their chips.
fn read_piece(snapshot: &Snapshot, after: Option<RowId>) -> Result<Piece, StoreError> {
    let rows = snapshot.rows_to_shadow(after, PIECE)?;
    rows.into_iter().map(|row| Ok((row, snapshot.chip(row)?))).collect()
}

#[cfg(test)]
mod tests;
