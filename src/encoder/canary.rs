//! The server sends chips of its own through every device thread and every model that has no other work, so that health
//! reflects the current state of the devices.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout, timeout_at};

use super::pipeline::Pipeline;
use super::queue::Passes;
use super::residency::{ModelLease, Residency};
use super::types::CanaryError;
use super::types::CanaryOutcome;
use crate::chip::ChipSize;
use crate::embedding::ModelDigest;

/// Sends a canary through each resident model on each device thread whenever none of its forward passes there has
/// succeeded for `period`, until the queue is closed. A canary may take as long as `period`.
pub async fn keep_canaries(pipeline: Arc<Pipeline>, period: Duration) {
    let residency = pipeline.residency();
    join_all((0..residency.queue().workers()).map(|worker| keep_trying(residency, worker, period))).await;
}

async fn keep_trying(residency: &Residency, worker: usize, period: Duration) {
    let queue = residency.queue();
    let mut passes = queue.passes(worker);
    let mut idle = Idle::default();
    loop {
        // Canaries hold no lease: a model is unloaded when its callers are done.
        idle.look(&residency.leases(), &passes.borrow_and_update(), Instant::now());
        let longest = idle.longest();
        let due = longest.map_or_else(Instant::now, |longest| longest.since) + period;
        match timeout_at(due, passes.changed()).await {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
        let Some(Stretch { model, chip_size, .. }) = longest else { continue };
        let outcome = match timeout(period, queue.send_canary(worker, model, chip_size)).await {
            Ok(Ok(())) => CanaryOutcome::Passed,
            Ok(Err(CanaryError::Failed)) => CanaryOutcome::Failed,
            Ok(Err(CanaryError::UnknownModel)) => continue,
            Ok(Err(CanaryError::Closed)) => return,
            // It never had its turn, since the thread had other work.
            Err(_) if passes.has_changed().unwrap_or(false) => continue,
            Err(_) => CanaryOutcome::Late,
        };
        queue.judge(worker, model, outcome);
        idle.tried(model, Instant::now());
    }
}

/// Since when the models of each device thread have been idle.
#[derive(Debug, Default)]
struct Idle(HashMap<ModelDigest, (u64, Stretch)>);

/// A period without a forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stretch {
    model: ModelDigest,
    chip_size: ChipSize,
    since: Instant,
}

impl Idle {
    /// Records which models are resident, and which of them had a forward pass since the last look.
    fn look(&mut self, resident: &[ModelLease], passes: &Passes, now: Instant) {
        self.0.retain(|model, _| resident.iter().any(|lease| lease.digest == *model));
        for lease in resident {
            let (model, chip_size) = (lease.digest, lease.chip_size);
            let passed = passes.of(model);
            let new = (passed, Stretch { model, chip_size, since: now });
            let known = self.0.entry(model).or_insert(new);
            if known.0 != passed {
                *known = new;
            }
        }
    }

    fn longest(&self) -> Option<Stretch> {
        self.0.values().map(|(_, stretch)| *stretch).min_by_key(|stretch| stretch.since)
    }

    fn tried(&mut self, model: ModelDigest, now: Instant) {
        if let Some((_, stretch)) = self.0.get_mut(&model) {
            stretch.since = now;
        }
    }
}
