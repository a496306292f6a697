//! The processes that train together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tch::{Kind, Tensor};

use super::c10d::{Device, Group, Store};
use super::join::{Identity, WorldError, agree, meet};
use super::place::Place;
use super::watch::{OnLoss, Patience, Watch, tell_failure};

/// Of one operation. Others may wait for rank 0's evaluation, which may take hours; the watch notices whom they would
/// wait for in vain.
const OPERATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the process that serves the store stays for the others.
const FAREWELL_MAX: Duration = Duration::from_secs(30);
/// The interface that PyTorch's users choose.
const INTERFACE: &str = "GLOO_SOCKET_IFNAME";

/// This process's place among the others, and its connections to them.
#[derive(Debug)]
pub struct World {
    rank: usize,
    size: usize,
    group: Group,
    store: Store,
    watch: Watch,
    failed: AtomicBool,
    /// By this process, for the others as well.
    served: Option<Store>,
}

impl World {
    /// Meets the others, and makes sure that all are about to do the same.
    ///
    /// # Errors
    /// One true reason, which is the same for all ranks where they can reach each other.
    pub fn join(
        place: &Place,
        identity: &Identity,
        patience: Patience,
        on_loss: OnLoss,
    ) -> Result<Self, WorldError> {
        let no_store = |cause: String| {
            let (host, port) = (place.master_host.clone(), place.master_port);
            WorldError::NoStore { host, port, cause }
        };
        let root = if place.serves() {
            let listener = place.listener().map_err(|cause| no_store(cause.to_string()))?;
            Store::serve(listener)
        } else {
            Store::connect(&place.master_host, place.master_port, patience.join_max)
        };
        let root = root.map_err(|cause| no_store(cause.to_string()))?;
        let store = meet(&root, place, patience.join_max)?;
        agree(&store, place, identity, patience.join_max)?;
        let device = match std::env::var(INTERFACE) {
            Ok(name) if !name.is_empty() => Device::Interface(name),
            _ => Device::Address(place.address().map_err(|cause| WorldError::NoAddress(cause.to_string()))?),
        };
        let watch = Watch::start(store.prefixed("")?, place.rank, place.world_size, patience, on_loss);
        let watch =
            watch.map_err(|cause| WorldError::Lost(format!("a thread cannot be started: {cause}")))?;
        let joined = watch.wait(|| {
            let meeting = store.prefixed("gloo/")?;
            Group::join(&meeting, place.rank, place.world_size, &device, OPERATION_MAX)
        });
        let group = joined.map_err(WorldError::Lost)?;
        Ok(Self {
            rank: place.rank,
            size: place.world_size,
            group,
            store,
            watch,
            failed: AtomicBool::new(false),
            served: place.serves().then_some(root),
        })
    }

    /// From 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Replaces a tensor by its mean over the ranks; all ranks have the same result, bit for bit.
    ///
    /// # Errors
    /// Why the ranks no longer train together. The same holds for every operation; afterwards none succeeds.
    pub fn average(&self, tensor: &Tensor) -> Result<(), WorldError> {
        self.wait(|| self.group.sum(tensor))?;
        let _ = tensor.shallow_clone().g_div_scalar_(self.size as f64);
        Ok(())
    }

    /// Replaces a tensor by that of rank 0.
    ///
    /// # Errors
    /// See [`average`](Self::average).
    pub fn broadcast(&self, tensor: &Tensor) -> Result<(), WorldError> {
        self.wait(|| self.group.broadcast(tensor))
    }

    /// The tensors of all ranks: [..] -> [ranks, ..].
    ///
    /// # Errors
    /// See [`average`](Self::average).
    pub fn gather(&self, tensor: &Tensor) -> Result<Tensor, WorldError> {
        self.wait(|| self.group.gather(&tensor.contiguous()))
    }

    /// The numbers of all ranks, in their order.
    ///
    /// # Errors
    /// See [`average`](Self::average).
    pub fn gather_numbers(&self, numbers: &[f64]) -> Result<Vec<Vec<f64>>, WorldError> {
        let all = self.gather(&Tensor::from_slice(numbers))?;
        Ok((0..self.size).map(|rank| Vec::try_from(all.get(rank as i64)).unwrap_or_default()).collect())
    }

    /// Whether any rank says yes. Ranks wait here for each other, however long one is busy.
    ///
    /// # Errors
    /// See [`average`](Self::average).
    pub fn any(&self, yes: bool) -> Result<bool, WorldError> {
        let said = self.gather_numbers(&[f64::from(u8::from(yes))])?;
        Ok(said.iter().flatten().any(|said| *said > 0.0))
    }

    /// The bytes that rank 0 has, for everyone.
    ///
    /// # Errors
    /// See [`average`](Self::average).
    pub fn share(&self, bytes: Vec<u8>) -> Result<Vec<u8>, WorldError> {
        let length = Tensor::from_slice(&[bytes.len() as i64]);
        self.broadcast(&length)?;
        if self.rank == 0 {
            self.broadcast(&Tensor::from_slice(&bytes))?;
            return Ok(bytes);
        }
        let received = Tensor::zeros([length.int64_value(&[0])], (Kind::Uint8, tch::Device::Cpu));
        self.broadcast(&received)?;
        Ok(Vec::try_from(received).unwrap_or_default())
    }

    /// Tells the others why this rank ends, before it does; returns the reason of the first one that failed.
    pub fn fail(&self, failure: &str) -> String {
        self.failed.store(true, Ordering::Relaxed);
        self.watch.leave();
        tell_failure(&self.store, &format!("rank {}: {failure}", self.rank))
    }

    fn wait<T>(
        &self,
        operation: impl FnOnce() -> Result<T, super::c10d::C10dError>,
    ) -> Result<T, WorldError> {
        self.watch.wait(operation).map_err(WorldError::Lost)
    }
}

impl Drop for World {
    /// The process that serves the store stays until the others have left it, or have heard why the run ends.
    fn drop(&mut self) {
        self.watch.leave();
        let left = self.store.add("left", 1).unwrap_or_default();
        if left == self.size as i64 {
            let _ = self.store.set("all left", b"");
        } else if self.served.is_some() {
            let farewell = if self.failed.load(Ordering::Relaxed) { FAREWELL_MAX / 5 } else { FAREWELL_MAX };
            let _ = self.store.get("all left", farewell);
        }
    }
}
