//! Decides which models are on the device threads: at most two, within a bound on memory, each for as long as it is
//! needed.

use std::convert::Infallible;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::ensemble::Members;
use super::queue::EncodeQueue;
use super::types::{EncoderFactory, LoadError};
use crate::arithmetic::Precision;
use crate::chip::{ChipForm, ChipSize, SarStretch};
use crate::embedding::{Composition, ModelDigest};
use crate::metrics;
use crate::reason::Reason;

/// Models on the device threads: the active one, and one that is being loaded or unloaded.
pub const RESIDENT_MAX: usize = 2;

/// How long a new model waits for a slot: calls in flight release theirs soon, galleries that are being re-embedded do
/// not.
const SLOT_WAIT: Duration = Duration::from_secs(10);

/// What callers need to know about a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCard {
    pub digest: ModelDigest,
    /// Values in an embedding.
    pub dimension: usize,
    /// Rows and columns of its input.
    pub chip_size: ChipSize,
    /// How it reads the amplitudes of SAR images.
    pub sar_stretch: SarStretch,
    /// What it is computed in.
    pub precision: Precision,
    /// Of an ensemble.
    pub members: Option<Arc<Members>>,
}

impl ModelCard {
    /// How its vectors are composed, if it is an ensemble.
    pub fn composition(&self) -> Option<Composition> {
        self.members.as_ref().map(|members| members.composition)
    }

    /// The chips that it reads.
    pub fn chip_form(&self) -> ChipForm {
        ChipForm { size: self.chip_size, sar_stretch: self.sar_stretch }
    }
}

/// A model that is ready to be put on the device threads.
pub struct LoadedModel {
    pub card: ModelCard,
    /// Creates the model's encoder on each device thread.
    pub factory: EncoderFactory,
    /// The number of device threads that it is intended for.
    pub workers: usize,
    /// Estimated memory on all of them together.
    pub bytes: u64,
}

/// How models run, and their total size limit.
#[derive(Clone, Debug)]
pub struct ResidencySettings {
    /// Bytes of all resident models, as estimated.
    pub bytes_max: u64,
    /// The device that models run on, for people.
    pub device: String,
}

/// The models on the device threads of one queue. A model is unloaded when its last lease ends.
#[derive(Clone, Debug)]
pub struct Residency(Arc<ResidencyState>);

/// Keeps a model resident for as long as this lives; a caller that names the model in the queue holds one.
#[derive(Clone, Debug)]
pub struct ModelLease(Arc<Resident>);

/// Why a model is not put on the device threads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResidencyError {
    #[error("{RESIDENT_MAX} models are resident already, which is the most: {}", list(.resident))]
    Full { resident: Vec<ModelDigest> },
    #[error("model {model} takes {needed} bytes beside the {taken} of others, the limit is {limit}")]
    TooLarge { model: ModelDigest, needed: u64, taken: u64, limit: u64 },
    #[error("the model cannot be warmed: {0}")]
    Load(#[from] LoadError),
}

impl ResidencyError {
    /// Stable and suitable for programs and labels.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Full { .. } => Reason::TooManyResidentModels,
            Self::TooLarge { .. } => Reason::ModelTooLarge,
            Self::Load(_) => Reason::ModelNotRunnable,
        }
    }
}

#[derive(Debug)]
struct ResidencyState {
    queue: EncodeQueue,
    settings: ResidencySettings,
    slots: watch::Sender<Vec<ModelSlot>>,
}

/// Memory that a model uses, or is about to use.
#[derive(Clone, Debug)]
struct ModelSlot {
    digest: ModelDigest,
    bytes: u64,
    state: SlotState,
}

#[derive(Clone, Debug)]
enum SlotState {
    Arriving,
    /// Without a lease it is being unloaded.
    Leased(Weak<Resident>),
}

#[derive(Debug)]
struct Resident {
    card: ModelCard,
    /// Dropped with the last lease, which notifies the task that unloads the model.
    _last_lease: oneshot::Sender<Infallible>,
}

impl Deref for ModelLease {
    type Target = ModelCard;

    fn deref(&self) -> &ModelCard {
        &self.0.card
    }
}

impl Residency {
    pub fn new(queue: EncodeQueue, settings: ResidencySettings) -> Self {
        Self(Arc::new(ResidencyState { queue, settings, slots: watch::Sender::default() }))
    }

    /// Puts a model on the device threads and warms it, as soon as one of the two slots is free. A model that is
    /// resident already is not loaded again.
    ///
    /// Dropping the future does not stop it: a model that is no longer wanted is unloaded immediately.
    ///
    /// # Errors
    /// Two models are resident and stay, the memory does not suffice, or the model does not run.
    pub async fn admit(&self, model: LoadedModel) -> Result<ModelLease, ResidencyError> {
        let residency = self.clone();
        let admitted = tokio::spawn(async move { residency.0.admit(model).await });
        admitted.await.unwrap_or_else(|cause| Err(LoadError(cause.to_string()).into()))
    }

    /// A lease of a resident model; `None` for any other.
    pub fn lease(&self, model: ModelDigest) -> Option<ModelLease> {
        self.0.slots.borrow().iter().find(|slot| slot.digest == model).and_then(ModelSlot::lease)
    }

    /// A lease of every resident model.
    pub fn leases(&self) -> Vec<ModelLease> {
        self.0.slots.borrow().iter().filter_map(ModelSlot::lease).collect()
    }

    /// Returns once `model` is on no device thread.
    pub async fn gone(&self, model: ModelDigest) {
        let mut slots = self.0.slots.subscribe();
        // The sender lives as long as `self`.
        let _ = slots.wait_for(|slots| slots.iter().all(|slot| slot.digest != model)).await;
    }

    pub fn settings(&self) -> &ResidencySettings {
        &self.0.settings
    }

    pub fn queue(&self) -> &EncodeQueue {
        &self.0.queue
    }
}

impl ResidencyState {
    async fn admit(self: Arc<Self>, model: LoadedModel) -> Result<ModelLease, ResidencyError> {
        let LoadedModel { card, factory, bytes, .. } = model;
        if let Some(lease) = self.slot_or_lease(card.digest, bytes).await? {
            return Ok(lease);
        }
        if let Err(cause) = self.queue.load(card.digest, card.chip_size, factory).await {
            self.slots.send_modify(|slots| slots.retain(|slot| slot.digest != card.digest));
            return Err(cause.into());
        }
        Ok(self.settle(card))
    }

    /// Takes a slot for a new model, or a lease of a resident one.
    async fn slot_or_lease(
        &self,
        digest: ModelDigest,
        bytes: u64,
    ) -> Result<Option<ModelLease>, ResidencyError> {
        let mut changes = self.slots.subscribe();
        let cancellation = Instant::now() + SLOT_WAIT;
        loop {
            // The sender lives as long as `self`, here and below.
            let _ = changes.wait_for(|slots| !slots.iter().any(ModelSlot::is_moving(digest))).await;
            let mut found = Ok(None);
            let placed = self.slots.send_if_modified(|slots| {
                if slots.iter().any(ModelSlot::is_moving(digest)) {
                    return false;
                }
                found = self.room_for(slots, digest, bytes);
                let placed = matches!(found, Ok(None));
                if placed {
                    slots.push(ModelSlot { digest, bytes, state: SlotState::Arriving });
                }
                placed
            });
            match found {
                Ok(None) if !placed => {}
                Err(ResidencyError::Full { .. })
                    if tokio::time::timeout_at(cancellation, changes.changed()).await.is_ok() => {}
                _ => return found,
            }
        }
    }

    fn room_for(
        &self,
        slots: &[ModelSlot],
        digest: ModelDigest,
        bytes: u64,
    ) -> Result<Option<ModelLease>, ResidencyError> {
        if let Some(slot) = slots.iter().find(|slot| slot.digest == digest) {
            return Ok(slot.lease());
        }
        if slots.len() >= RESIDENT_MAX {
            return Err(ResidencyError::Full { resident: slots.iter().map(|slot| slot.digest).collect() });
        }
        let taken: u64 = slots.iter().map(|slot| slot.bytes).sum();
        let limit = self.settings.bytes_max;
        if taken.saturating_add(bytes) > limit {
            return Err(ResidencyError::TooLarge { model: digest, needed: bytes, taken, limit });
        }
        Ok(None)
    }

    /// Turns a loaded model into one that can be leased, and unloads it after its last lease.
    fn settle(self: Arc<Self>, card: ModelCard) -> ModelLease {
        let (digest, precision) = (card.digest, card.precision.name());
        let (last_lease, departure) = oneshot::channel();
        let lease = ModelLease(Arc::new(Resident { card, _last_lease: last_lease }));
        self.slots.send_modify(|slots| {
            for slot in slots.iter_mut().filter(|slot| slot.digest == digest) {
                slot.state = SlotState::Leased(Arc::downgrade(&lease.0));
            }
        });
        metrics::model_resident(digest.to_string(), precision, self.settings.device.clone());
        tokio::spawn(async move {
            // Nothing is ever sent.
            let _ = departure.await;
            self.queue.unload(digest).await;
            metrics::model_gone(digest.to_string(), precision, self.settings.device.clone());
            self.slots.send_modify(|slots| slots.retain(|slot| slot.digest != digest));
        });
        lease
    }
}

impl ModelSlot {
    fn lease(&self) -> Option<ModelLease> {
        match &self.state {
            SlotState::Arriving => None,
            SlotState::Leased(model) => model.upgrade().map(ModelLease),
        }
    }

    /// Matches the slots that the loading of `model` must wait for: those that are about to be free, and its own if the
    /// model is already being loaded.
    fn is_moving(model: ModelDigest) -> impl Fn(&Self) -> bool {
        move |slot| match &slot.state {
            SlotState::Arriving => slot.digest == model,
            SlotState::Leased(leases) => leases.strong_count() == 0,
        }
    }
}

fn list(models: &[ModelDigest]) -> impl fmt::Display {
    models.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests;
