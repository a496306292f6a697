//! A chip of the server's own goes through queue and device while nothing else does, so that health is what the device
//! does and not what it did once.

use std::sync::Arc;
use std::time::Duration;

use super::pipeline::Pipeline;
use super::queue::CanaryError;

/// What became of a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryOutcome {
    Passed,
    /// The forward pass failed.
    Failed,
    /// It did not come through in its time.
    Late,
}

impl CanaryOutcome {
    /// Stable and fit for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "failed",
            Self::Late => "late",
        }
    }
}

/// Sends a canary through the active model whenever no forward pass has succeeded for `period`, which is also what one
/// may take, until the queue is closed.
pub async fn keep_canaries(pipeline: Arc<Pipeline>, period: Duration) {
    let queue = pipeline.residency().queue().clone();
    let mut passes = queue.passes();
    loop {
        passes.mark_unchanged();
        match tokio::time::timeout(period, passes.changed()).await {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
        // Held, so that the model stays while its canary is on its way.
        let model = pipeline.active();
        let sent = queue.send_canary(model.digest, model.chip_size);
        let outcome = match tokio::time::timeout(period, sent).await {
            Ok(Ok(())) => CanaryOutcome::Passed,
            Ok(Err(CanaryError::Failed)) => CanaryOutcome::Failed,
            Ok(Err(CanaryError::Closed)) => return,
            // It never had its turn beside the chips of callers, one of which came through.
            Err(_) if passes.has_changed().unwrap_or(false) => continue,
            Err(_) => CanaryOutcome::Late,
        };
        queue.judge(outcome);
    }
}
