//! Changes the active model while the server runs: load, warm up, record, swap.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::{ActiveModel, Preset, Registry, RegistryError};
use crate::embedding::ModelDigest;
use crate::encoder::{LoadError, LoadedModel, ModelLease, Pipeline, RESIDENT_MAX, ResidencyError};
use crate::gallery::{Catalog, Place};
use crate::metrics;
use crate::reason::Reason;
use crate::weights::any::AnyModel;

/// Galleries that an error lists.
const LISTED_MAX: usize = 10;

/// Prepares a model for the device threads: with libtorch in the program, with something simpler in tests.
pub type ModelLoader = Arc<dyn Fn(AnyModel) -> Result<LoadedModel, LoadError> + Send + Sync>;

/// Makes models of a registry the active model of a pipeline, one change at a time.
#[derive(Clone)]
pub struct Activator {
    registry: Arc<Registry>,
    pipeline: Arc<Pipeline>,
    loader: ModelLoader,
    preset: Option<Arc<Preset>>,
    changing: Arc<Mutex<()>>,
    changed: mpsc::UnboundedSender<Activation>,
    /// Its galleries may need models. Empty until re-embedding starts.
    catalog: Arc<OnceLock<Catalog>>,
}

/// A completed change. Both models stay resident until it is dropped.
#[derive(Debug)]
pub struct Activation {
    pub active: ModelLease,
    pub former: ModelLease,
}

/// Why a model does not become active; the active one keeps serving.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    #[error("another model is being activated")]
    Busy,
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("model {model} cannot run here: {cause}")]
    Load { model: ModelDigest, cause: LoadError },
    #[error(transparent)]
    Residency(#[from] ResidencyError),
    #[error(
        "model {needed} must stay for galleries that are not of the active model yet, and only {RESIDENT_MAX} models may \
         be resident: wait, or see to what holds them up; they are {}",
        list(.galleries)
    )]
    Needed { needed: ModelDigest, galleries: Vec<Place> },
    #[error("the activation panicked")]
    Panicked,
}

impl Activator {
    /// The receiver gets every change, with the leases that keep both models resident.
    pub fn new(
        registry: Arc<Registry>,
        pipeline: Arc<Pipeline>,
        loader: ModelLoader,
        preset: Option<Preset>,
    ) -> (Self, mpsc::UnboundedReceiver<Activation>) {
        let (changed, changes) = mpsc::unbounded_channel();
        let (changing, catalog) = (Arc::default(), Arc::default());
        let preset = preset.map(Arc::new);
        (Self { registry, pipeline, loader, preset, changing, changed, catalog }, changes)
    }

    /// From now on no model replaces one that galleries of `catalog` need.
    pub(super) fn holds(&self, catalog: Catalog) {
        // A server has one catalog.
        let _ = self.catalog.set(catalog);
    }

    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Makes `model` active: reads, verifies and warms it up next to the one that serves, records it, and swaps them.
    ///
    /// Dropping the future does not stop the activation.
    ///
    /// # Errors
    /// Another change is in progress, which is reported at once; or the model cannot serve.
    pub async fn activate(&self, model: ModelDigest) -> Result<ModelLease, ActivationError> {
        let turn = Arc::clone(&self.changing).try_lock_owned().map_err(|_| ActivationError::Busy)?;
        let activator = self.clone();
        let started = Instant::now();
        let changing = tokio::spawn(async move {
            let changing = AssertUnwindSafe(activator.change_to(model, turn)).catch_unwind();
            let outcome = changing.await.unwrap_or(Err(ActivationError::Panicked));
            tell(model, &outcome, started.elapsed());
            outcome
        });
        // Only shutting down the server interrupts it.
        changing.await.unwrap_or(Err(ActivationError::Panicked))
    }

    /// Makes `model` active here because it is on all servers: no record is written.
    ///
    /// # Errors
    /// The same as for [`Self::activate`].
    pub(super) async fn follow(&self, model: ModelDigest) -> Result<(), ActivationError> {
        let active = self.pipeline.active();
        if active.digest == model {
            return Ok(());
        }
        let _turn = self.changing.try_lock().map_err(|_| ActivationError::Busy)?;
        if self.registry.active().is_none_or(|active| active.digest != model) {
            // This server has activated another one since the database was asked.
            return Err(ActivationError::Busy);
        }
        let started = Instant::now();
        let outcome = async {
            self.check_place(model, active.digest)?;
            Ok::<_, ActivationError>(self.swap(self.lease(model).await?))
        };
        let outcome = outcome.await;
        tell(model, &outcome, started.elapsed());
        outcome.map(drop)
    }

    async fn change_to(
        &self,
        model: ModelDigest,
        _turn: OwnedMutexGuard<()>,
    ) -> Result<ModelLease, ActivationError> {
        let active = self.pipeline.active();
        if active.digest == model {
            self.remember_served(model).await?;
            return Ok(active);
        }
        self.check_place(model, active.digest)?;
        let next = self.lease(model).await?;
        self.remember(ActiveModel { digest: model, former: active.digest }).await?;
        Ok(self.swap(next))
    }

    fn swap(&self, next: ModelLease) -> ModelLease {
        let former = self.pipeline.activate(next.clone());
        // Without a receiver nothing re-embeds galleries, and the former model is dropped after its last call.
        let _ = self.changed.send(Activation { active: next.clone(), former });
        next
    }

    /// A model may serve without an activation because it is configured. Activating it records it, so that it also
    /// serves after the configuration changes.
    async fn remember_served(&self, model: ModelDigest) -> Result<(), ActivationError> {
        let remembered = self.registry.active();
        if remembered.is_some_and(|remembered| remembered.digest == model) {
            return Ok(());
        }
        if remembered.is_none() && self.registry.get(model).is_err() {
            // A preset is not stored: the next start makes it again.
            return Ok(());
        }
        let former = remembered.map_or(model, |remembered| remembered.digest);
        self.remember(ActiveModel { digest: model, former }).await
    }

    /// Checks that `model` may become resident next to the active one. It must not replace a model that galleries need,
    /// since they could no longer be searched.
    fn check_place(&self, model: ModelDigest, active: ModelDigest) -> Result<(), ActivationError> {
        let resident = self.pipeline.residency().leases();
        let Some(catalog) = self.catalog.get().filter(|_| resident.len() >= RESIDENT_MAX) else {
            return Ok(());
        };
        if resident.iter().any(|lease| lease.digest == model) {
            return Ok(());
        }
        let other = resident.iter().map(|lease| lease.digest).find(|digest| *digest != active);
        let needed = other.map(|other| (other, catalog.need(other)));
        match needed {
            Some((needed, galleries)) if !galleries.is_empty() => {
                Err(ActivationError::Needed { needed, galleries })
            }
            _ => Ok(()),
        }
    }

    /// A lease of a model next to the active one, loaded onto the devices if needed.
    ///
    /// # Errors
    /// The model cannot run.
    pub async fn lease(&self, model: ModelDigest) -> Result<ModelLease, ActivationError> {
        match self.pipeline.residency().lease(model) {
            Some(lease) => Ok(lease),
            None => self.bring(model).await,
        }
    }

    async fn bring(&self, model: ModelDigest) -> Result<ModelLease, ActivationError> {
        let (registry, loader) = (Arc::clone(&self.registry), Arc::clone(&self.loader));
        let preset = self.preset.clone();
        let loading = tokio::task::spawn_blocking(move || {
            let opened = match registry.load(model) {
                Err(RegistryError::NotFound(_)) => {
                    let made = preset.and_then(|preset| preset.make(model));
                    made.ok_or(RegistryError::NotFound(model))?
                }
                loaded => {
                    let loaded = loaded?;
                    registry.check_source(&loaded, None)?;
                    loaded
                }
            };
            loader(opened).map_err(|cause| ActivationError::Load { model, cause })
        });
        let loaded = loading.await.unwrap_or(Err(ActivationError::Panicked))?;
        Ok(self.pipeline.residency().admit(loaded).await?)
    }

    async fn remember(&self, active: ActiveModel) -> Result<(), ActivationError> {
        let registry = Arc::clone(&self.registry);
        let preset = self.preset.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let is_kept = registry.get(active.digest).is_ok();
            if !is_kept && preset.is_some_and(|preset| preset.is(active.digest)) {
                registry.set_active_preset(active)
            } else {
                registry.set_active(active)
            }
        });
        Ok(writing.await.map_err(|_| ActivationError::Panicked)??)
    }
}

impl ActivationError {
    /// Stable and suitable for programs and labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Busy => Reason::ActivationInProgress,
            Self::Registry(cause) => cause.reason(),
            Self::Load { .. } => Reason::ModelNotRunnable,
            Self::Residency(cause) => cause.reason(),
            Self::Needed { .. } => Reason::ModelNeeded,
            Self::Panicked => Reason::ActivationFailed,
        }
    }
}

/// Logs the outcome, since the caller may have left.
fn tell(model: ModelDigest, outcome: &Result<ModelLease, ActivationError>, took: Duration) {
    match outcome {
        Ok(_) => tracing::info!(%model, ?took, "a model is active"),
        Err(cause) => tracing::warn!(%model, %cause, "a model is not activated"),
    }
    metrics::activation(outcome.as_ref().map_or_else(|cause| cause.reason().name(), |_| "ok"), took);
}

/// Lists the first galleries by name.
fn list(galleries: &[Place]) -> String {
    let mut listed: Vec<String> = galleries.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    if let Some(more) = galleries.len().checked_sub(LISTED_MAX).filter(|more| *more > 0) {
        listed.push(format!("{more} more"));
    }
    listed.join(", ")
}

#[cfg(test)]
mod tests;
