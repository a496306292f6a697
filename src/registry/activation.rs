//! Which model serves, and how that changes while it serves: load, warm, remember, swap.

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
use crate::weights::open::OpenModel;

/// Galleries that an error names.
const LISTED_MAX: usize = 10;

/// Makes a model ready for the device threads: for libtorch in the program, for something simpler in tests.
pub type ModelLoader = Arc<dyn Fn(OpenModel) -> Result<LoadedModel, LoadError> + Send + Sync>;

/// Changes the active model of a pipeline to one of a registry, one change at a time.
#[derive(Clone)]
pub struct Activator {
    registry: Arc<Registry>,
    pipeline: Arc<Pipeline>,
    loader: ModelLoader,
    preset: Option<Arc<Preset>>,
    changing: Arc<Mutex<()>>,
    changed: mpsc::UnboundedSender<Activation>,
    /// Whose galleries hold models, once somebody leads them.
    catalog: Arc<OnceLock<Catalog>>,
}

/// A change that has happened. Both models stay resident until it is dropped.
#[derive(Debug)]
pub struct Activation {
    pub active: ModelLease,
    pub former: ModelLease,
}

/// Why a model does not become the active one; the one that was active serves on.
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

    /// From now on no model takes the place of one that galleries of `catalog` need.
    pub(super) fn holds(&self, catalog: Catalog) {
        // There is one catalog a server.
        let _ = self.catalog.set(catalog);
    }

    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Makes `model` the active one: reads, verifies and warms it beside the one that serves, remembers it, swaps.
    ///
    /// Dropping the future does not stop it: it goes on to its end.
    ///
    /// # Errors
    /// At once where another change is on its way; else what keeps the model from serving.
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
        // It is cut short only with the whole server.
        changing.await.unwrap_or(Err(ActivationError::Panicked))
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
        let former = self.pipeline.activate(next.clone());
        // Without a receiver nobody follows, and the former model leaves with its last call.
        let _ = self.changed.send(Activation { active: next.clone(), former });
        Ok(next)
    }

    /// A model may serve without having been activated, because the configuration says so. Whoever activates it wants to
    /// find it again whatever the configuration says later.
    async fn remember_served(&self, model: ModelDigest) -> Result<(), ActivationError> {
        let remembered = self.registry.active();
        if remembered.is_some_and(|remembered| remembered.digest == model) {
            return Ok(());
        }
        if remembered.is_none() && self.registry.get(model).is_err() {
            // A preset is not kept: the next start makes it anew.
            return Ok(());
        }
        let former = remembered.map_or(model, |remembered| remembered.digest);
        self.remember(ActiveModel { digest: model, former }).await
    }

    /// Whether `model` may take a place beside the active one: not one that galleries need, since they would be searched
    /// no more.
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

    /// A lease of a model beside the active one, put on the devices if need be.
    ///
    /// # Errors
    /// What keeps the model from running.
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
                loaded => loaded?,
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
    /// Stable and fit for programs and labels.
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

/// Whoever asked may have left.
fn tell(model: ModelDigest, outcome: &Result<ModelLease, ActivationError>, took: Duration) {
    match outcome {
        Ok(_) => tracing::info!(%model, ?took, "a model is active"),
        Err(cause) => tracing::warn!(%model, %cause, "a model is not activated"),
    }
    metrics::activation(outcome.as_ref().map_or_else(|cause| cause.reason().name(), |_| "ok"), took);
}

/// The first of them by name.
fn list(galleries: &[Place]) -> String {
    let mut listed: Vec<String> = galleries.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    if let Some(more) = galleries.len().checked_sub(LISTED_MAX).filter(|more| *more > 0) {
        listed.push(format!("{more} more"));
    }
    listed.join(", ")
}

#[cfg(test)]
mod tests;
