//! Re-embeds galleries with the active model: their kept chips are embedded in the background, then each gallery flips
//! at once.
//!
//! The galleries of different tenants are re-embedded independently, so that none waits for another tenant's. Servers that
//! share galleries each re-embed others of those that they have. A gallery that is stuck reports why, and is retried at
//! growing intervals.

mod stalls;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use stalls::Stalls;

use super::{Activation, Activator};
use crate::budget::Slots;
use crate::chip::SourceChip;
use crate::embedding::{Embedding, ModelDigest};
use crate::encoder::{Caller, EmbedError, EncodeError, ModelLease, Pipeline, Priority};
use crate::gallery::{Catalog, Flip, Gallery, GalleryReader, Place, RowId, ShadowTarget, StoreError};
use crate::metrics;

/// The tenant of these chips in the queue, which serves its tenants evenly.
const TENANT: &str = "re-embedding";
/// Entries that are stored together.
const PIECE: usize = 64;
/// Chips that may be in the queue at once.
const IN_FLIGHT: usize = 16;
/// Forward passes that may fail for one chip.
const ATTEMPTS_MAX: u32 = 3;
/// How often a chip asks a full server for room.
const ROOM_ATTEMPTS_MAX: u32 = 60;
/// How long a chip waits when the server is full or a device failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often to check for new galleries, and for stalled ones that may continue.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a gallery that is being re-embedded is claimed again, so that no other server begins with it.
const CLAIM_EVERY: Duration = Duration::from_secs(5);

/// Moves the galleries of a catalog from model to model, as models are activated.
#[derive(Clone)]
pub struct ReEmbedder {
    catalog: Catalog,
    pipeline: Arc<Pipeline>,
    activator: Activator,
    /// Limits the chips in the queue.
    slots: Slots,
}

/// The model that galleries move to, and those that are stuck.
struct ReembeddingTarget {
    active: ModelLease,
    /// Galleries that have not flipped yet are searched with these, so they stay resident until then.
    former: Vec<ModelLease>,
    stalls: Stalls,
}

impl ReembeddingTarget {
    fn to(active: ModelLease) -> Self {
        Self { active, former: vec![], stalls: Stalls::default() }
    }

    /// Retargets all galleries, including those that did not reach the former target.
    fn turn_to(&mut self, active: ModelLease, former: ModelLease) {
        self.active = active;
        self.former.push(former);
        self.stalls.forget_others(&[]);
    }
}

/// Why a gallery is stuck.
#[derive(Debug, thiserror::Error)]
enum Stall {
    #[error("{0} entries have no chip that can be embedded: delete them, or enrol them again with chips")]
    NoChips(u64),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the server had no room for its chips for {} s", u64::from(ROOM_ATTEMPTS_MAX) * RETRY_AFTER.as_secs())]
    Crowded,
    #[error("reading its chips panicked")]
    Panicked,
    /// Not caused by the gallery.
    #[error("the device is lost, or the server is shutting down")]
    Closing,
}

impl ReEmbedder {
    pub fn new(catalog: Catalog, pipeline: Arc<Pipeline>, activator: Activator) -> Self {
        activator.holds(Arc::clone(&catalog));
        Self { catalog, pipeline, activator, slots: Slots::new(IN_FLIGHT) }
    }

    /// Resumes where an earlier process stopped, then handles every change. Ends when the sender of changes is dropped.
    /// It may be dropped at any time, and resumes from there.
    pub async fn run(self, mut changes: mpsc::UnboundedReceiver<Activation>) {
        let mut target = self.resumed().await;
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = self.follow(&mut target) => continue,
            };
            let Some(Activation { active, former }) = change else { return };
            self.announce(active.digest, true).await;
            target.turn_to(active, former);
        }
    }

    /// What was in progress when an earlier process ended.
    async fn resumed(&self) -> ReembeddingTarget {
        let mut target = ReembeddingTarget::to(self.pipeline.active());
        self.announce(target.active.digest, false).await;
        let models: BTreeSet<_> = self.needed(&target.active).map(|digest| *digest.as_bytes()).collect();
        for model in models.into_iter().map(ModelDigest::new) {
            match self.activator.lease(model).await {
                Ok(lease) => target.former.push(lease),
                Err(cause) => {
                    tracing::warn!(%model, %cause, "until they have followed, galleries of this model take no chips");
                }
            }
        }
        target
    }

    /// Tells the store where galleries move to.
    async fn announce(&self, model: ModelDigest, is_new: bool) {
        while let Err(cause) = self.catalog.move_to(model, is_new).await {
            tracing::warn!(%model, %cause, "galleries do not move to the model yet");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Models of galleries that are moving to another one, which searches still need.
    fn needed(&self, active: &ModelLease) -> impl Iterator<Item = ModelDigest> {
        let active = active.digest;
        let galleries = self.catalog.served().into_iter().map(|(_, gallery)| gallery.info().about);
        galleries.filter(move |about| about.keeps_chips && about.model != active).map(|about| about.model)
    }

    /// Moves every gallery as far as possible, then waits until the next check.
    async fn follow(&self, target: &mut ReembeddingTarget) {
        self.settle(target).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }

    /// Moves every gallery as far as possible, including those that appear meanwhile.
    async fn settle(&self, target: &mut ReembeddingTarget) {
        let active = target.active.clone();
        let (mut working, mut busy) = (FuturesUnordered::new(), BTreeSet::new());
        loop {
            let mut waiting = self.look(target);
            waiting.retain(|(place, _)| !busy.contains(&place.tenant));
            for (place, gallery) in self.claimed(waiting, active.digest).await {
                if busy.insert(place.tenant.clone()) {
                    let active = &active;
                    working.push(async move {
                        let outcome = self.lead_while_held(&place, &gallery, active).await;
                        (place, gallery, outcome)
                    });
                }
            }
            tokio::select! {
                led = working.next() => {
                    let Some((place, gallery, outcome)) = led else { return };
                    busy.remove(&place.tenant);
                    match outcome {
                        Some(Err(Stall::Closing)) => return,
                        Some(outcome) => target.stalls.tell(place, &gallery, active.digest, outcome),
                        None => {}
                    }
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// The galleries to re-embed now. Releases models that no gallery needs any more.
    fn look(&self, target: &mut ReembeddingTarget) -> Vec<(Place, Gallery)> {
        let needed: Vec<ModelDigest> = self.needed(&target.active).collect();
        target.former.retain(|lease| needed.contains(&lease.digest));
        let mut galleries = self.catalog.served();
        galleries.retain(|(_, gallery)| {
            let about = gallery.info().about;
            about.shadow.is_some() || (about.keeps_chips && about.model != target.active.digest)
        });
        target.stalls.forget_others(&galleries);
        galleries.retain(|(place, gallery)| target.stalls.may_go_on(place, gallery));
        let left = galleries.iter().map(|(_, gallery)| entries_left(&*gallery.snapshot())).sum();
        metrics::following(galleries.len());
        metrics::following_left(left);
        metrics::stalled_galleries(target.stalls.len());
        galleries
    }

    /// Those that no other server re-embeds meanwhile.
    async fn claimed(&self, mut waiting: Vec<(Place, Gallery)>, model: ModelDigest) -> Vec<(Place, Gallery)> {
        if waiting.is_empty() {
            return waiting;
        }
        let places: Vec<Place> = waiting.iter().map(|(place, _)| place.clone()).collect();
        // A store that cannot be reached is asked again at the next look.
        let claimed = self.catalog.claim_moves(model, &places).await.unwrap_or_default();
        waiting.retain(|(place, _)| claimed.contains(place));
        waiting
    }

    /// Re-embeds a gallery that was claimed; `None` if another server has taken it over, or galleries move to another model.
    async fn lead_while_held(
        &self,
        place: &Place,
        gallery: &Gallery,
        model: &ModelLease,
    ) -> Option<Result<(), Stall>> {
        tokio::select! {
            outcome = self.lead(gallery, model) => Some(outcome),
            () = self.lost(place, model.digest) => None,
        }
    }

    /// Claims a gallery again and again, until that is refused.
    async fn lost(&self, place: &Place, model: ModelDigest) {
        loop {
            tokio::time::sleep(CLAIM_EVERY).await;
            let claimed = self.catalog.claim_moves(model, std::slice::from_ref(place)).await;
            // A store that cannot be reached has not refused it.
            if claimed.is_ok_and(|claimed| claimed.is_empty()) {
                return;
            }
        }
    }

    /// Re-embeds a gallery until it is of the active model.
    async fn lead(&self, gallery: &Gallery, model: &ModelLease) -> Result<(), Stall> {
        if gallery.info().about.model == model.digest {
            // It was moving to a model that is no longer active.
            return Ok(gallery.drop_shadow().await?);
        }
        let target = ShadowTarget {
            model: model.digest,
            dimension: model.dimension,
            composition: model.composition(),
            precision: model.precision,
        };
        gallery.begin_shadow(target).await?;
        let mut is_second = false;
        loop {
            let stuck = self.fill(gallery, model).await?;
            if stuck > 0 {
                return Err(Stall::NoChips(stuck));
            }
            match gallery.flip(model.digest).await {
                Ok(Flip::Done) => return Ok(()),
                // Entries were added meanwhile.
                Ok(Flip::Incomplete { .. }) => {}
                Err(StoreError::Unreadable(cause)) if !is_second => {
                    tracing::warn!(cause, "what was re-embedded cannot be read and is re-embedded again");
                    is_second = true;
                    gallery.drop_shadow().await?;
                    gallery.begin_shadow(target).await?;
                }
                Err(cause) => return Err(cause.into()),
            }
        }
    }

    /// Passes once over the entries that the shadow lacks, and returns how many of them cannot be embedded.
    async fn fill(&self, gallery: &Gallery, model: &ModelLease) -> Result<u64, Stall> {
        let (mut stuck, mut after) = (0, None);
        loop {
            let snapshot = gallery.snapshot();
            let reading = tokio::task::spawn_blocking({
                let snapshot = Arc::clone(&snapshot);
                move || snapshot.rows_to_shadow(after, PIECE)
            });
            let rows = reading.await.map_err(|_| Stall::Panicked)??;
            let Some(last) = rows.last() else { return Ok(stuck) };
            after = Some(*last);
            let read = rows.len() as u64;
            let embedded: Vec<Option<(RowId, Embedding)>> = stream::iter(rows)
                .map(|row| self.embed_row(model, &snapshot, row))
                .buffer_unordered(IN_FLIGHT)
                .try_collect()
                .await?;
            let embedded: Vec<_> = embedded.into_iter().flatten().collect();
            stuck += read - embedded.len() as u64;
            metrics::reembedded(gallery.fill_shadow(model.digest, embedded).await?);
        }
    }

    /// `None` if the chip is missing or cannot be embedded.
    async fn embed_row(
        &self,
        model: &ModelLease,
        snapshot: &Arc<dyn GalleryReader>,
        row: RowId,
    ) -> Result<Option<(RowId, Embedding)>, Stall> {
        let snapshot = Arc::clone(snapshot);
        let reading = tokio::task::spawn_blocking(move || snapshot.chip(row));
        match reading.await.map_err(|_| Stall::Panicked)?? {
            Some(chip) => Ok(self.embed(model, row, chip).await?.map(|embedding| (row, embedding))),
            None => Ok(None),
        }
    }

    /// `None` if the chip cannot be embedded.
    async fn embed(
        &self,
        model: &ModelLease,
        row: RowId,
        chip: SourceChip,
    ) -> Result<Option<Embedding>, Stall> {
        let caller = Caller { tenant: TENANT.into(), priority: Priority::Bulk, deadline: None };
        let (mut attempts, mut room_attempts) = (0, 0);
        loop {
            // The slots are never closed. While a chip waits, others may use its slot.
            let slot = self.slots.take().await;
            let Ok(admitted) = self.pipeline.admit(model, &caller, 1, chip.image.len()) else {
                drop(slot);
                room_attempts += 1;
                if room_attempts == ROOM_ATTEMPTS_MAX {
                    return Err(Stall::Crowded);
                }
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            };
            let embedded = self.pipeline.embed(model, &caller, chip.clone()).await;
            drop((admitted, slot));
            match embedded {
                Ok(embedded) => return Ok(Some(embedded.embedding)),
                Err(EmbedError::Encode(EncodeError::Closed | EncodeError::DeviceLost)) => {
                    return Err(Stall::Closing);
                }
                Err(EmbedError::Encode(cause)) if attempts < ATTEMPTS_MAX => {
                    tracing::debug!(%cause, "a chip is re-embedded again");
                    attempts += 1;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                Err(cause) => {
                    tracing::warn!(row = row.to_u64(), %cause, "a kept chip gives no embedding");
                    return Ok(None);
                }
            }
        }
    }
}

fn entries_left(snapshot: &dyn GalleryReader) -> u64 {
    (snapshot.entries() as u64).saturating_sub(snapshot.shadow_rows())
}

#[cfg(test)]
mod tests;
