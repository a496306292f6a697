//! A run of several processes: what they exchange in a step.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::learn::{LearnError, LossTerms};
use super::peers::Peers;
use crate::distributed::{World, WorldError};
use crate::model::Tensors;

/// Numbers that are averaged at once: gloo is fastest with 1 to 4 MiB.
const BUCKET: i64 = 1 << 20;

/// The processes of a run. Each learns from its part of every batch, and all take the same step.
#[derive(Clone, Debug)]
pub struct Ranks {
    world: Arc<World>,
    all_reduced: Rc<Cell<Duration>>,
}

impl Ranks {
    pub fn new(world: Arc<World>) -> Self {
        Self { world, all_reduced: Rc::default() }
    }

    /// The means over the ranks.
    ///
    /// # Errors
    /// A rank's loss is not finite, which is named, or ranks are lost.
    pub(super) fn average_terms(&self, own: &LossTerms) -> Result<LossTerms, LearnError> {
        let all = self.world.gather_numbers(&own.numbers())?;
        let mut mean = LossTerms::default();
        for (rank, terms) in all.iter().enumerate() {
            let Ok(numbers) = <[f64; LossTerms::COUNT]>::try_from(terms.as_slice()) else {
                return Err(LearnError::Lost(format!("rank {rank} exchanges other numbers").into()));
            };
            let terms = LossTerms::of(numbers);
            if !terms.total.is_finite() {
                return Err(LearnError::NotFinite { rank, loss: terms.total.to_string() });
            }
            mean.add(&terms, 1.0 / all.len() as f64);
        }
        Ok(mean)
    }

    /// Replaces every gradient by its mean over the ranks.
    ///
    /// # Errors
    /// Ranks are lost.
    pub(super) fn average_gradients(&self, gradients: &Tensors) -> Result<(), LearnError> {
        let begun = Instant::now();
        for bucket in buckets(gradients) {
            let flat = flatten(&bucket, self.world.has_gpus());
            self.world.average(&flat)?;
            unflatten(&flat, &bucket);
        }
        self.all_reduced.set(self.all_reduced.get() + begun.elapsed());
        Ok(())
    }

    /// Gives every rank the statistics of rank 0, as DistributedDataParallel does with buffers.
    ///
    /// # Errors
    /// Ranks are lost.
    pub(super) fn align<'t>(&self, statistics: impl Iterator<Item = &'t Tensor>) -> Result<(), LearnError> {
        let statistics: Vec<&Tensor> = statistics.collect();
        if statistics.is_empty() {
            return Ok(());
        }
        let flat = flatten(&statistics, false);
        self.world.broadcast(&flat)?;
        unflatten(&flat, &statistics);
        Ok(())
    }

    /// The rows of all ranks, in their order: [B, ..] -> [ranks * B, ..]. Gradients reach the rows of this rank only,
    /// times the number of ranks: the mean over the ranks is then the gradient of a loss of all rows.
    ///
    /// # Errors
    /// Ranks are lost.
    pub(super) fn gather_rows(&self, rows: &Tensor) -> Result<Tensor, LearnError> {
        let all = self.world.gather(&rows.detach().to_device(tch::Device::Cpu))?.to_device(rows.device());
        let own = if rows.requires_grad() {
            // The very values that the others receive.
            rows.detach() + (rows - rows.detach()) * self.world.size() as f64
        } else {
            rows.shallow_clone()
        };
        let of_rank =
            |rank| if rank == self.world.rank() { own.shallow_clone() } else { all.get(rank as i64) };
        Ok(Tensor::cat(&(0..self.world.size()).map(of_rank).collect::<Vec<_>>(), 0))
    }
}

impl Peers for Ranks {
    fn rank(&self) -> usize {
        self.world.rank()
    }

    fn world_size(&self) -> usize {
        self.world.size()
    }

    fn any(&self, yes: bool) -> Result<bool, LearnError> {
        Ok(self.world.any(yes)?)
    }

    fn share(&self, bytes: Vec<u8>) -> Result<Vec<u8>, LearnError> {
        Ok(self.world.share(bytes)?)
    }

    fn all_reduced(&self) -> Duration {
        self.all_reduced.get()
    }
}

impl From<WorldError> for LearnError {
    fn from(cause: WorldError) -> Self {
        Self::Lost(match cause {
            WorldError::Lost(failure) => failure,
            other => other.to_string().into(),
        })
    }
}

/// Gradients in the order of their names, together until a bucket is full. The order of a sum depends on this, so it is
/// the same in every rank and every run.
fn buckets(gradients: &Tensors) -> Vec<Vec<&Tensor>> {
    let mut buckets: Vec<Vec<&Tensor>> = Vec::new();
    let mut room = 0;
    for gradient in gradients.values() {
        let numbers = gradient.numel() as i64;
        match buckets.last_mut() {
            Some(bucket) if numbers <= room => bucket.push(gradient),
            _ => {
                buckets.push(vec![gradient]);
                room = BUCKET;
            }
        }
        room -= numbers;
    }
    buckets
}

/// All numbers, in f32, on the host or, if `there`, where they are.
fn flatten(tensors: &[&Tensor], there: bool) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let flat: Vec<Tensor> =
        tensors.iter().map(|tensor| tensor.detach().to_kind(Kind::Float).view([-1])).collect();
    let flat = Tensor::cat(&flat, 0);
    if there { flat } else { flat.to_device(tch::Device::Cpu) }
}

fn unflatten(flat: &Tensor, tensors: &[&Tensor]) {
    let _no_grad = tch::no_grad_guard();
    let mut start = 0;
    for tensor in tensors {
        let numbers = tensor.numel() as i64;
        let values = flat.narrow(0, start, numbers).view(tensor.size().as_slice());
        tensor.shallow_clone().copy_(&values);
        start += numbers;
    }
}
