//! Galleries that are stuck: why, and when each is retried.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Stall;
use crate::embedding::ModelDigest;
use crate::gallery::{Gallery, Place};

/// Wait before the first retry of a stalled gallery; it doubles each time.
const WAIT_MIN: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_secs(600);
/// The longest wait for a gallery that was written to since, as that may have removed the cause.
const WAIT_CHANGED: Duration = Duration::from_secs(10);

/// Keyed by the place of the gallery.
#[derive(Debug, Default)]
pub(super) struct Stalls(BTreeMap<Place, Stalled>);

#[derive(Debug)]
struct Stalled {
    gallery: Gallery,
    /// Commit of the gallery when it stalled.
    commit: u64,
    at: Instant,
    wait: Duration,
}

impl Stalls {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Records the outcome for a gallery in the log and on the gallery.
    pub fn tell(&mut self, place: Place, gallery: &Gallery, to: ModelDigest, outcome: Result<(), Stall>) {
        let Err(stall) = outcome else {
            tracing::info!(%place, model = %to, "a gallery follows the active model");
            gallery.stall(None);
            self.0.remove(&place);
            return;
        };
        let before = self.0.get(&place).map(|stalled| stalled.wait);
        let wait = before.map_or(WAIT_MIN, |wait| (2 * wait).min(WAIT_MAX));
        if before.is_none() {
            tracing::warn!(%place, model = %to, cause = %stall, "a gallery does not follow");
        }
        gallery.stall(Some((to, stall.to_string())));
        let (commit, at) = (gallery.snapshot().commit(), Instant::now());
        self.0.insert(place, Stalled { gallery: gallery.clone(), commit, at, wait });
    }

    /// Whether a gallery is not stalled, or is due for a retry.
    pub fn may_go_on(&self, place: &Place, gallery: &Gallery) -> bool {
        self.0.get(place).is_none_or(|stalled| {
            let changed = gallery.snapshot().commit() != stalled.commit;
            let wait = if changed { stalled.wait.min(WAIT_CHANGED) } else { stalled.wait };
            stalled.at.elapsed() >= wait
        })
    }

    /// Keeps only those among `galleries`; the others have nothing left to do.
    pub fn forget_others(&mut self, galleries: &[(Place, Gallery)]) {
        self.0.retain(|place, stalled| {
            let stays = galleries.iter().any(|(of, _)| of == place);
            if !stays {
                stalled.gallery.stall(None);
            }
            stays
        });
    }
}
