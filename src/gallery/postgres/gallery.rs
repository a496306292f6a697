//! One shared gallery: a copy that may be replaced as a whole.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::embedding::{Embedding, ModelDigest};
use crate::gallery::embedded::{EmbeddedGallery, Snapshot};
use crate::gallery::entry::VesselId;
use crate::gallery::index::RowId;
use crate::gallery::store::{
    Enrolled, Enrolment, Field, Flip, GalleryReader, GalleryStore, Info, Opening, Selector, ShadowTarget,
    StoreError, Update, Updated,
};

/// One gallery of a database, as this server has it.
#[derive(Debug)]
pub struct PostgresGallery {
    copy: RwLock<Arc<EmbeddedGallery>>,
    /// One change of the copy at a time.
    changing: tokio::sync::Mutex<()>,
    currency: Mutex<Currency>,
}

/// When the database had nothing that the copy lacks.
#[derive(Clone, Copy, Debug)]
struct Currency {
    at: Instant,
    /// Not yet: then it is when the copy was opened.
    is_known: bool,
}

/// The last commit of a gallery in the database.
#[derive(Clone, Copy, Debug)]
pub struct LastCommit {
    pub commit: u64,
    pub committed_at: i64,
    /// Before the database was asked.
    pub asked_at: Instant,
}

impl LastCommit {
    /// Whether a copy has it, and so lacks nothing.
    fn is_in(&self, copy: &Snapshot) -> bool {
        self.is_at_or_before(copy.state().commit, copy.state().committed_at, copy.made_at())
    }

    /// A copy may be ahead because of what this server has committed since the database was asked. One that was ahead before is
    /// not known to have it: the database may have been put back to an earlier state.
    fn is_at_or_before(&self, commit: u64, committed_at: i64, made_at: Option<Instant>) -> bool {
        if commit == self.commit {
            return committed_at == self.committed_at;
        }
        commit > self.commit && made_at.is_some_and(|made_at| made_at > self.asked_at)
    }
}

impl PostgresGallery {
    pub fn new(copy: Arc<EmbeddedGallery>) -> Self {
        let currency = Mutex::new(Currency { at: Instant::now(), is_known: false });
        Self { copy: RwLock::new(copy), changing: tokio::sync::Mutex::default(), currency }
    }

    pub fn copy(&self) -> Arc<EmbeddedGallery> {
        self.copy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the former copy.
    pub fn replace(&self, copy: Arc<EmbeddedGallery>) -> Arc<EmbeddedGallery> {
        std::mem::replace(&mut *self.copy.write().unwrap_or_else(PoisonError::into_inner), copy)
    }

    /// How long the copy may lack something: since the database was last asked, or since it was opened.
    pub fn age(&self) -> Duration {
        self.currency().at.elapsed()
    }

    /// How old the copy can be at most, if that is known.
    pub fn known_age(&self) -> Option<Duration> {
        let currency = self.currency();
        currency.is_known.then(|| currency.at.elapsed())
    }

    /// The copy has what the database had at `asked_at`.
    pub fn is_current(&self, asked_at: Instant) {
        let mut currency = self.currency.lock().unwrap_or_else(PoisonError::into_inner);
        let at = if currency.is_known { currency.at.max(asked_at) } else { asked_at };
        *currency = Currency { at, is_known: true };
    }

    fn currency(&self) -> Currency {
        *self.currency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the copy lacks.
    ///
    /// # Errors
    /// The database cannot be reached, or the copy is to be loaded anew.
    pub async fn follow(&self, last: LastCommit) -> Result<(), StoreError> {
        if last.is_in(&self.copy().published()) {
            return Ok(());
        }
        // Commits of others that wait here are there once the first has followed.
        let _changing = self.changing.lock().await;
        let copy = self.copy();
        if last.is_in(&copy.published()) { Ok(()) } else { copy.follow(move |copy| last.is_in(copy)).await }
    }
}

#[async_trait]
impl GalleryStore for PostgresGallery {
    fn snapshot(&self) -> Arc<dyn GalleryReader> {
        self.copy().snapshot()
    }

    fn opening(&self) -> Opening {
        self.copy().opening()
    }

    fn info(&self) -> Info {
        self.copy().info()
    }

    async fn enrol(&self, enrolment: Enrolment) -> Result<Enrolled, StoreError> {
        self.copy().enrol(enrolment).await
    }

    async fn delete(&self, selector: Selector) -> Result<u64, StoreError> {
        self.copy().delete(selector).await
    }

    async fn update(&self, updates: Vec<Update>, fields: Vec<Field>) -> Result<Updated, StoreError> {
        self.copy().update(updates, fields).await
    }

    async fn merge(&self, vessels: Vec<VesselId>, into: VesselId) -> Result<u64, StoreError> {
        self.copy().merge(vessels, into).await
    }

    async fn begin_shadow(&self, target: ShadowTarget) -> Result<(), StoreError> {
        self.copy().begin_shadow(target).await
    }

    async fn drop_shadow(&self) -> Result<(), StoreError> {
        self.copy().drop_shadow().await
    }

    async fn fill_shadow(
        &self,
        model: ModelDigest,
        embeddings: Vec<(RowId, Embedding)>,
    ) -> Result<u64, StoreError> {
        self.copy().fill_shadow(model, embeddings).await
    }

    async fn flip(&self, model: ModelDigest) -> Result<Flip, StoreError> {
        self.copy().flip(model).await
    }

    fn stall(&self, reason: Option<(ModelDigest, String)>) {
        self.copy().stall(reason);
    }

    fn file_bytes(&self) -> u64 {
        self.copy().file_bytes()
    }

    fn is_held_up(&self, before: u64) -> bool {
        self.copy().is_held_up(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_is_ahead_has_what_was_there_only_if_it_went_on_since_then() {
        let asked_at = Instant::now();
        let last = LastCommit { commit: 7, committed_at: 70, asked_at };
        let (before, after) = (asked_at - Duration::from_secs(1), asked_at + Duration::from_secs(1));
        for (commit, committed_at, made_at, expected) in [
            (7, 70, None, true),
            (7, 71, Some(after), false),
            (6, 60, Some(after), false),
            (8, 80, Some(after), true),
            (8, 80, Some(before), false),
            (8, 80, None, false),
        ] {
            assert_eq!(
                last.is_at_or_before(commit, committed_at, made_at),
                expected,
                "{commit}, {made_at:?}"
            );
        }
    }
}
