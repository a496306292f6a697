//! The model on its device threads, the pipeline to it, and the consequences of activating another one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::observability::observe;
use super::threads::decode_threads;
use super::{KeptModels, ServedModels};
use crate::chip::ImageLimits;
use crate::config::Config;
use crate::encoder::{
    Admission, EncodeQueue, Health, ModelLease, Pipeline, QueueSettings, Residency, ResidencySettings,
    keep_canaries,
};
use crate::gallery::Catalog;
use crate::registry::{Activator, ReEmbedder, follow};

/// A model that embeds until it is stopped.
pub struct ServingModel {
    queue: EncodeQueue,
    pipeline: Arc<Pipeline>,
    /// Absent if the first model serves for the server's lifetime.
    activator: Option<Activator>,
    /// Checks whether an idle device still works.
    canaries: Option<JoinHandle<()>>,
    /// Moves galleries to the active model.
    reembedding: Option<JoinHandle<()>>,
    /// Makes active what is active on all servers, where they share models.
    following: Option<JoinHandle<()>>,
}

/// Starts the device threads. They have no model yet, but already report their health.
pub fn device_threads(config: &Config, workers: usize) -> EncodeQueue {
    let settings = QueueSettings { workers, batch_max: config.encoder.batch_max };
    EncodeQueue::start(settings, Arc::new(observe))
}

impl ServingModel {
    /// Warms the first model on the threads of `queue`; from then on galleries of `catalog` are moved to the active
    /// model.
    ///
    /// # Errors
    /// The model cannot run here, or needs more memory than is allowed for models.
    pub async fn start(
        config: &Config,
        queue: EncodeQueue,
        models: ServedModels,
        catalog: Option<Catalog>,
    ) -> anyhow::Result<Self> {
        let ServedModels { first, kept } = models;
        let residency = Residency::new(queue.clone(), residency_settings(config));
        let active = residency.admit(first).await?;
        let pipeline = Arc::new(pipeline(config, residency, active));
        let canaries = try_when_idle(config, &pipeline);
        let (activator, reembedding) = match kept {
            Some(kept) => follow_activations(kept, &pipeline, catalog),
            None => (None, None),
        };
        let following = activator.clone().and_then(|activator| follow_others(activator, &queue));
        Ok(Self { queue, pipeline, activator, canaries, reembedding, following })
    }

    pub fn pipeline(&self) -> Arc<Pipeline> {
        Arc::clone(&self.pipeline)
    }

    pub fn activator(&self) -> Option<Activator> {
        self.activator.clone()
    }

    pub fn health(&self) -> Health {
        *self.watch_health().borrow()
    }

    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.queue.health()
    }

    /// Reports that the server is not ready, and continues to embed.
    pub fn announce_drain(&self) {
        self.queue.announce_drain();
    }

    /// Stops background work, then ends the device threads after the chips that wait for them.
    pub async fn stop(self) {
        for background in [self.canaries, self.following, self.reembedding].into_iter().flatten() {
            background.abort();
            // Its work resumes at the next start.
            let _ = background.await;
        }
        self.queue.close().await;
    }
}

fn residency_settings(config: &Config) -> ResidencySettings {
    ResidencySettings { bytes_max: config.models.resident_bytes_max, device: config.encoder.device.clone() }
}

fn pipeline(config: &Config, residency: Residency, active: ModelLease) -> Pipeline {
    let admission = Admission::new(config.encoder.queue_items_max, config.encoder.queue_bytes_max);
    let limits = ImageLimits { bytes_max: config.chips.bytes_max, pixels_max: config.chips.pixels_max };
    Pipeline::new(admission, limits, decode_threads(config), residency, active)
}

/// Starts canaries, if the configuration asks for them.
fn try_when_idle(config: &Config, pipeline: &Arc<Pipeline>) -> Option<JoinHandle<()>> {
    let period = Duration::from_secs_f64(config.encoder.canary_seconds);
    (!period.is_zero()).then(|| tokio::spawn(keep_canaries(Arc::clone(pipeline), period)))
}

/// Follows activations through other servers, if they share models.
fn follow_others(activator: Activator, queue: &EncodeQueue) -> Option<JoinHandle<()>> {
    activator.registry().cluster()?;
    let queue = queue.clone();
    Some(tokio::spawn(follow(activator, move |is_outdated| queue.set_outdated(is_outdated))))
}

/// The activator of other models and the task that moves galleries to the active one, where they exist.
fn follow_activations(
    kept: KeptModels,
    pipeline: &Arc<Pipeline>,
    catalog: Option<Catalog>,
) -> (Option<Activator>, Option<JoinHandle<()>>) {
    let KeptModels { registry, loader, preset } = kept;
    let (activator, changes) = Activator::new(registry, Arc::clone(pipeline), loader, preset);
    let reembedding = catalog.map(|catalog| {
        let reembedder = ReEmbedder::new(catalog, Arc::clone(pipeline), activator.clone());
        tokio::spawn(reembedder.run(changes))
    });
    (Some(activator), reembedding)
}
