//! Canaries that wait for device threads, successful passes on each thread, and failing threads.

use std::collections::{HashMap, HashSet};

use tokio::sync::{oneshot, watch};

use crate::chip::ChipSize;
use crate::embedding::ModelDigest;
use crate::encoder::types::CanaryError;

/// A chip of the server's own that waits for an idle device thread.
pub struct Canary {
    pub model: ModelDigest,
    pub chip_size: ChipSize,
    pub reply: oneshot::Sender<Result<(), CanaryError>>,
}

/// Counts successful forward passes of one device thread.
#[derive(Clone, Debug, Default)]
pub struct Passes(HashMap<ModelDigest, u64>);

impl Passes {
    pub fn of(&self, model: ModelDigest) -> u64 {
        self.0.get(&model).copied().unwrap_or(0)
    }
}

/// The state of the device threads according to canaries.
pub struct Trials {
    /// For each thread, the canary that runs when the thread has nothing else to do.
    waiting: Vec<Option<Canary>>,
    /// Where the last canary has failed, and no chip has succeeded since.
    failing: HashSet<(usize, ModelDigest)>,
    passes: Vec<watch::Sender<Passes>>,
}

impl Trials {
    pub fn new(workers: usize) -> Self {
        Self {
            waiting: (0..workers).map(|_| None).collect(),
            failing: HashSet::new(),
            passes: (0..workers).map(|_| watch::Sender::default()).collect(),
        }
    }

    /// Puts a canary in the waiting slot; returns the one that it replaces.
    pub fn place(&mut self, worker: usize, canary: Canary) -> Option<Canary> {
        self.waiting[worker].replace(canary)
    }

    pub fn take(&mut self, worker: usize) -> Option<Canary> {
        self.waiting[worker].take()
    }

    pub fn take_all(&mut self) -> Vec<Canary> {
        self.waiting.iter_mut().filter_map(Option::take).collect()
    }

    pub fn passes(&self, worker: usize) -> watch::Receiver<Passes> {
        self.passes[worker].subscribe()
    }

    /// Notes that a device thread has done something other than a forward pass.
    pub fn worked(&self, worker: usize) {
        self.passes[worker].send_modify(|_| {});
    }

    /// Notes that a forward pass has succeeded. Returns whether that ends a failure.
    pub fn passed(&mut self, worker: usize, model: ModelDigest) -> bool {
        self.passes[worker].send_modify(|passes| *passes.0.entry(model).or_default() += 1);
        self.failing.remove(&(worker, model))
    }

    /// Notes that a canary has failed. Returns whether that is a change.
    pub fn failed(&mut self, worker: usize, model: ModelDigest) -> bool {
        self.failing.insert((worker, model))
    }

    /// Forgets a model that was unloaded; returns the threads on which it failed.
    pub fn forget(&mut self, model: ModelDigest) -> Vec<usize> {
        for passes in &self.passes {
            passes.send_modify(|passes| {
                passes.0.remove(&model);
            });
        }
        self.failing.extract_if(|(_, failing)| *failing == model).map(|(worker, _)| worker).collect()
    }

    pub fn is_failing(&self, worker: usize) -> bool {
        self.failing.iter().any(|(failing, _)| *failing == worker)
    }

    pub fn is_any_failing(&self) -> bool {
        !self.failing.is_empty()
    }
}
