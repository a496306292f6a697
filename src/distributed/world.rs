//! The processes that train together.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tch::{Kind, Tensor};

use super::c10d::{Device, Group, Store};
use super::join::{Identity, WorldError, agree, meet};
use super::place::Place;
use super::rank_failure::RankFailure;
use super::watch::{OnLoss, Patience, Watch, tell_failure};

/// Of one operation. Others may wait for rank 0's evaluation, which may take hours; the watch notices whom they would
/// wait for in vain.
const OPERATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the process that serves the store stays for the others.
const FAREWELL_MAX: Duration = Duration::from_secs(30);
/// The same where the run has failed, and some of them may be gone.
const PARTING_MAX: Duration = Duration::from_secs(6);
/// The interface that PyTorch's users choose.
const INTERFACE: &str = "GLOO_SOCKET_IFNAME";
/// 0 keeps gradients on the way through the host.
const NCCL: &str = "SHIPREID_NCCL";

/// This process's place among the others, and its connections to them.
#[derive(Debug)]
pub struct World {
    rank: usize,
    size: usize,
    group: Group,
    /// Of the ranks' GPUs, if each has one.
    gpus: OnceLock<Group>,
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
        let root = reach_store(place, patience.join_max)?;
        let met = meet(&root, place, patience.join_max).and_then(|store| {
            agree(&store, place, identity, patience.join_max)?;
            Ok(store)
        });
        let store = met.inspect_err(|_| part(&root, place))?;
        let device = match std::env::var(INTERFACE) {
            Ok(name) if !name.is_empty() => Device::Interface(name),
            _ => Device::Address(place.address().map_err(|cause| WorldError::NoAddress(cause.to_string()))?),
        };
        let watch = Watch::start(store.prefixed("")?, place.rank, place.world_size, patience, on_loss);
        let watch =
            watch.map_err(|cause| WorldError::Lost(format!("a thread cannot be started: {cause}").into()))?;
        let joined = watch.wait(|| {
            let meeting = store.prefixed("gloo/")?;
            Group::join(&meeting, place.rank, place.world_size, &device, OPERATION_MAX)
        });
        let group = joined.map_err(WorldError::Lost)?;
        Ok(Self {
            rank: place.rank,
            size: place.world_size,
            group,
            gpus: OnceLock::new(),
            store,
            watch,
            failed: AtomicBool::new(false),
            served: place.serves().then_some(root),
        })
    }

    /// Whether tensors on GPUs are averaged there.
    pub fn has_gpus(&self) -> bool {
        self.gpus.get().is_some()
    }

    /// From 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Lets tensors on GPUs be averaged between GPUs, by NCCL, if every rank is `on_gpu` and has it. Returns whether they
    /// are; else they have to be on the host. Nothing but averages goes that way.
    ///
    /// # Errors
    /// As for [`average`](Self::average).
    pub fn connect_gpus(&self, on_gpu: bool) -> Result<bool, WorldError> {
        let allowed = std::env::var(NCCL).map_or(true, |value| value != "0");
        if self.any(!(on_gpu && allowed && Group::has_nccl()))? {
            return Ok(false);
        }
        let meeting = self.store.prefixed("nccl/")?;
        let gpus = Group::join_gpus(&meeting, self.rank, self.size, OPERATION_MAX)?;
        Ok(self.gpus.set(gpus).is_ok())
    }

    /// Replaces a contiguous tensor in f32 by its mean over the ranks; all ranks have the same result, bit for bit. It is on
    /// the host unless GPUs are [connected](Self::connect_gpus).
    ///
    /// # Errors
    /// Why the ranks no longer train together. The same holds for every operation; afterwards none succeeds.
    pub fn average(&self, tensor: &Tensor) -> Result<(), WorldError> {
        let of_gpus = self.gpus.get().filter(|_| tensor.device() != tch::Device::Cpu);
        self.wait(|| of_gpus.unwrap_or(&self.group).sum(tensor))?;
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

    /// Does something in which this process waits, but for no rank: the others do not take it for lost.
    pub fn rest<T>(&self, work: impl FnOnce() -> T) -> T {
        self.watch.rest(work)
    }

    /// Tells the others why this rank ends, and of what [kind](RankFailure::kind) that is, before it does; returns the reason
    /// of the first one that failed.
    pub fn fail(&self, kind: &str, failure: &str) -> RankFailure {
        self.failed.store(true, Ordering::Relaxed);
        self.watch.leave();
        let message = format!("rank {}: {failure}", self.rank);
        tell_failure(&self.store, RankFailure { kind: kind.to_owned(), message })
    }

    fn wait<T>(
        &self,
        operation: impl FnOnce() -> Result<T, super::c10d::C10dError>,
    ) -> Result<T, WorldError> {
        self.watch.wait(operation).map_err(WorldError::Lost)
    }
}

/// The store where the ranks meet, which this process serves if its launcher does not.
fn reach_store(place: &Place, wait_max: Duration) -> Result<Store, WorldError> {
    let (host, port) = (place.master_host.clone(), place.master_port);
    if !place.serves() {
        let store = Store::connect(&host, port, wait_max);
        return store.map_err(|cause| WorldError::NoStore { host, port, cause: cause.to_string() });
    }
    let listener = place.listener();
    let served = listener
        .map_err(|cause| cause.to_string())
        .and_then(|listener| Store::serve(listener).map_err(|cause| cause.to_string()));
    served.map_err(|cause| WorldError::NoPort { host, port, cause })
}

/// Leaves a store at which the ranks have not come together; the process that serves it stays until the others know why.
fn part(root: &Store, place: &Place) {
    let left = root.add("shipreid/parted", 1).unwrap_or_default();
    if left == place.world_size as i64 {
        let _ = root.set("shipreid/all parted", b"");
    } else if place.serves() {
        let _ = root.get("shipreid/all parted", PARTING_MAX);
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
            let farewell = if self.failed.load(Ordering::Relaxed) { PARTING_MAX } else { FAREWELL_MAX };
            let _ = self.store.get("all left", farewell);
        }
    }
}
