//! Chooses the kernels of a model's linear layers: those that the processor supports are timed,
//! batch by batch.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tch::{Kind, Tensor};

use super::linear::{Linear, Plan};
use super::shim::{Activation, KernelError, first_line};
use super::tensors::kind;
use crate::arithmetic::{Choice, Kernel, NotHere, Pace, Precision, Timing};
use crate::encoder::Buckets;
use crate::processor::Processor;
use crate::weights::family::Architecture;

/// Runs of a kernel for a batch, of which the fastest counts: as many as fit the time, within these bounds.
const RUNS_TIME: Duration = Duration::from_millis(40);
const RUNS_MIN: u128 = 1;
const RUNS_MAX: u128 = 20;
/// A run that takes longer is not repeated: it is slow enough to be distinguished from the others.
const RUN_MAX: Duration = Duration::from_millis(400);
/// Maximum number of multiplications of the layer that is timed, about a tenth of a second on one AVX2 core.
/// Kernels differ no more beyond this size than at it.
const PRODUCTS_MAX: usize = 5_000_000_000;

/// What to choose kernels for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    pub precision: Precision,
    /// `None` chooses by timing.
    pub kernel: Option<Kernel>,
    /// Threads inside one forward pass.
    pub threads: usize,
    /// Chips of the largest batch.
    pub batch_max: usize,
    /// Fraction of f32's speed that another precision must reach.
    pub speed_min: f64,
}

/// The choice, and how a precision other than f32 compares with f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    pub choice: Choice,
    pub pace: Option<Pace>,
}

/// Why a precision does not run here; every message is one line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ChoiceError {
    #[error(transparent)]
    NotHere(#[from] NotHere),
    #[error("no kernel computes linear layers in {} on this processor: {causes}", .precision.name())]
    None { precision: Precision, causes: String },
    #[error("{0}")]
    TooSlow(Pace),
}

/// The first layer of an MLP and its second, which has the transposed shape. Together with the activation
/// between them they make up two thirds of a network's linear layers; they are what is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerShape {
    pub inputs: usize,
    pub outputs: usize,
    /// Rows per chip.
    pub tokens: usize,
}

impl LayerShape {
    pub fn of(architecture: &Architecture) -> Self {
        let [inputs, outputs] = architecture.mlp_widths();
        Self { inputs, outputs, tokens: architecture.token_count() }
    }

    /// Rows that represent a batch: its own, or as many as can be timed in reasonable time.
    fn rows(self, chips: usize) -> i64 {
        let most = (PRODUCTS_MAX / (self.inputs * self.outputs).max(1)).max(1);
        (chips * self.tokens).min(most) as i64
    }

    /// Batches to time: those that a server runs, without those that have the same number of rows.
    fn batches(self, batch_max: usize) -> Vec<usize> {
        let mut sizes = Buckets::up_to(batch_max).sizes().to_vec();
        sizes.dedup_by_key(|chips| self.rows(*chips));
        sizes
    }
}

/// Chooses the kernels of a model on the processor, on the calling thread.
///
/// # Errors
/// If the requested kernel or precision does not run here, or is slower than allowed.
pub fn choose(shape: LayerShape, wanted: &Wanted) -> Result<Chosen, ChoiceError> {
    let _threads = Threads::set(wanted.threads);
    let _no_grad = tch::no_grad_guard();
    let processor = Processor::here();
    let kernels: Vec<Kernel> = match wanted.kernel {
        Some(kernel) => kernel.check(wanted.precision, processor).map(|()| vec![kernel])?,
        None => Kernel::candidates(wanted.precision, processor).collect(),
    };
    let mut batches = shape.batches(wanted.batch_max);
    let (smallest, largest) = (batches[0], batches[batches.len() - 1]);
    let mut trial = Trial::new(shape, wanted.precision, &kernels, largest);
    let mut comparison = Comparison::new(shape, wanted, largest);
    // The smallest batch, which finishes quickly, detects a precision that is far too slow.
    let mut timings = trial.time(smallest)?;
    comparison.compare(&timings)?;
    if trial.kernels.len() == 1 {
        // There is only one candidate.
        batches.retain(|chips| *chips == largest && wanted.precision != Precision::F32);
    }
    for chips in batches.into_iter().filter(|chips| *chips != smallest) {
        timings.extend(trial.time(chips)?);
    }
    comparison.compare(&timings)?;
    // A kernel that failed on a larger batch is not used for a smaller one either.
    timings.retain(|timing| trial.kernels.iter().any(|(kernel, _)| *kernel == timing.kernel));
    let choice = Choice::fastest(timings, wanted.batch_max).expect("a batch was timed");
    Ok(Chosen { choice, pace: comparison.slowest })
}

/// Speed of a training step in a precision relative to f32, measured by the forward and backward pass of one
/// layer on the calling thread.
///
/// # Errors
/// libtorch's message, on one line.
pub fn training_speed(shape: LayerShape, precision: Precision) -> Result<f64, String> {
    let _threads = Threads::set(1);
    let seconds = |precision| {
        let layer = Layer::new(shape.inputs, shape.outputs, precision);
        let x = layer.input(shape.rows(1)).set_requires_grad(true);
        let [weight, bias] = [&layer.weight, &layer.bias].map(|tensor| tensor.copy().set_requires_grad(true));
        let step = || {
            let y = x.f_linear(&weight, Some(&bias))?.f_gelu("none")?;
            y.f_sum(Kind::Float)?.f_backward()
        };
        let step = || step().map_err(|cause| first_line(&cause.to_string()));
        fastest(step).map(|took| took.as_secs_f64())
    };
    Ok(seconds(Precision::F32)? / seconds(precision)?)
}

/// The speed of a precision relative to f32, as far as it was measured.
struct Comparison<'a> {
    wanted: &'a Wanted,
    /// The trial of f32; `None` where f32 itself is requested.
    reference: Option<Trial>,
    /// Chips of the batch that was compared last.
    compared: Option<usize>,
    slowest: Option<Pace>,
}

impl<'a> Comparison<'a> {
    fn new(shape: LayerShape, wanted: &'a Wanted, largest: usize) -> Self {
        let kernels: Vec<Kernel> = Kernel::candidates(Precision::F32, Processor::here()).collect();
        let reference = || Trial::new(shape, Precision::F32, &kernels, largest);
        let reference = (wanted.precision != Precision::F32).then(reference);
        Self { wanted, reference, compared: None, slowest: None }
    }

    /// Compares the batch timed last, once.
    fn compare(&mut self, timings: &[Timing]) -> Result<(), ChoiceError> {
        let (Some(reference), Some(last)) = (&mut self.reference, timings.last()) else { return Ok(()) };
        if self.compared.replace(last.chips) == Some(last.chips) {
            return Ok(());
        }
        let fastest = |timings: &[Timing]| {
            let took = timings.iter().filter(|timing| timing.chips == last.chips).map(|timing| timing.took);
            took.min().unwrap_or_default().as_secs_f64()
        };
        let speed = fastest(&reference.time(last.chips)?) / fastest(timings);
        let Wanted { precision, speed_min, .. } = *self.wanted;
        let pace = Pace::new(precision, speed, Processor::here());
        if pace.speed < speed_min {
            return Err(ChoiceError::TooSlow(pace));
        }
        let slowest = self.slowest.into_iter().chain([pace]);
        self.slowest = slowest.min_by(|a, b| a.speed.total_cmp(&b.speed));
        Ok(())
    }
}

/// An MLP in one precision, on the kernels that have not failed so far.
struct Trial {
    shape: LayerShape,
    precision: Precision,
    layers: [Layer; 2],
    kernels: Vec<(Kernel, [Linear; 2])>,
    /// Why kernels were removed.
    dropped: Vec<String>,
}

impl Trial {
    /// A trial of `kernels` for batches of up to `chips` chips.
    fn new(shape: LayerShape, precision: Precision, kernels: &[Kernel], chips: usize) -> Self {
        let LayerShape { inputs, outputs, .. } = shape;
        let layers = [(inputs, outputs), (outputs, inputs)];
        let layers = layers.map(|(inputs, outputs)| Layer::new(inputs, outputs, precision));
        let mut trial = Self { shape, precision, layers, kernels: Vec::new(), dropped: Vec::new() };
        for kernel in kernels {
            let plan = Plan::only(*kernel, shape.rows(chips));
            let [first, second] = trial.layers.each_ref().map(|layer| layer.linear(&plan));
            match first.and_then(|first| Ok([first, second?])) {
                Ok(mlp) => trial.kernels.push((*kernel, mlp)),
                Err(cause) => trial.drop(*kernel, &cause),
            }
        }
        trial
    }

    /// Times every kernel; one that fails is removed from the candidates.
    fn time(&mut self, chips: usize) -> Result<Vec<Timing>, ChoiceError> {
        let x = self.layers[0].input(self.shape.rows(chips));
        let mut timings = Vec::new();
        for (kernel, [first, second]) in std::mem::take(&mut self.kernels) {
            let run = || second.try_forward(&first.try_forward(&x, Activation::Gelu)?, Activation::None);
            match fastest(run) {
                Ok(took) => {
                    timings.push(Timing { kernel, chips, took });
                    self.kernels.push((kernel, [first, second]));
                }
                Err(cause) => self.drop(kernel, &cause),
            }
        }
        if timings.is_empty() {
            return Err(ChoiceError::None { precision: self.precision, causes: self.dropped.join("; ") });
        }
        Ok(timings)
    }

    fn drop(&mut self, kernel: Kernel, cause: &KernelError) {
        let (kernel, precision) = (kernel.name(), self.precision.name());
        tracing::warn!(kernel, precision, %cause, "a kernel does not compute linear layers on this processor");
        self.dropped.push(format!("{kernel}: {cause}"));
    }
}

/// The weights of the layer that is timed.
struct Layer {
    weight: Tensor,
    bias: Tensor,
    options: (Kind, tch::Device),
}

impl Layer {
    fn new(inputs: usize, outputs: usize, precision: Precision) -> Self {
        let options = (kind(precision), tch::Device::Cpu);
        let [outputs, inputs] = [outputs, inputs].map(|length| length as i64);
        Self { weight: weight(outputs, inputs, options.0), bias: Tensor::ones([outputs], options), options }
    }

    fn linear(&self, plan: &Plan) -> Result<Linear, KernelError> {
        Linear::new(self.weight.shallow_clone(), self.bias.shallow_clone(), plan)
    }

    /// [rows, inputs]
    fn input(&self, rows: i64) -> Tensor {
        Tensor::ones([rows, self.weight.size()[1]], self.options)
    }
}

/// Numbers of trained weights' distribution, about normal, on which the speed of a kernel for int8 depends.
fn weight(outputs: i64, inputs: i64, kind: Kind) -> Tensor {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let values: Vec<f32> =
        (0..outputs * inputs).map(|_| uniform() + uniform() + uniform() + uniform() - 2.0).collect();
    Tensor::from_slice(&values).view([outputs, inputs]).to_kind(kind)
}

/// The fastest of several runs, in the calling thread's own time, so that other load on the
/// processor does not affect the result.
fn fastest<T, E>(run: impl Fn() -> Result<T, E>) -> Result<Duration, E> {
    let timed = || {
        let started = thread_time();
        run().map(|_| thread_time().saturating_sub(started))
    };
    let first = timed()?;
    if first > RUN_MAX {
        return Ok(first);
    }
    let runs = (RUNS_TIME.as_nanos() / first.as_nanos().max(1)).clamp(RUNS_MIN, RUNS_MAX);
    (0..runs).try_fold(first, |fastest, _| Ok(fastest.min(timed()?)))
}

fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Sets the number of threads for the forward passes of this thread until it is dropped.
struct Threads(i32);

impl Threads {
    fn set(threads: usize) -> Self {
        let before = tch::get_num_threads();
        // libgomp keeps a separate number for each thread that starts others.
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        Self(before)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        tch::set_num_threads(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::family::{Family, Preset};

    const SMALL: LayerShape = LayerShape { inputs: 48, outputs: 96, tokens: 10 };

    fn wanted(precision: Precision, kernel: Option<Kernel>) -> Wanted {
        Wanted { precision, kernel, threads: 1, batch_max: 8, speed_min: 0.0 }
    }

    #[test]
    fn every_candidate_is_timed_for_every_batch() {
        let wanted = wanted(Precision::F32, None);
        let Chosen { choice, pace } = choose(SMALL, &wanted).expect("f32 runs everywhere");
        assert_eq!(pace, None);
        let timed: Vec<(usize, Kernel)> = choice.timings.iter().map(|t| (t.chips, t.kernel)).collect();
        let kernels = || Kernel::candidates(Precision::F32, Processor::here());
        let expected: Vec<(usize, Kernel)> =
            [1, 2, 4, 8].iter().flat_map(|chips| kernels().map(|kernel| (*chips, kernel))).collect();
        assert_eq!(timed, expected);
    }

    #[test]
    fn a_kernel_that_is_asked_for_is_taken_or_refused() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            for kernel in [Kernel::Aten, Kernel::OneDnn, Kernel::Tiles, Kernel::Int8] {
                let chosen = choose(SMALL, &wanted(precision, Some(kernel)));
                match kernel.check(precision, Processor::here()) {
                    Ok(()) => assert_eq!(chosen.expect("it runs").choice.largest(kernel), Some(8)),
                    Err(cause) => assert_eq!(chosen, Err(ChoiceError::NotHere(cause))),
                }
            }
        }
    }

    #[test]
    fn a_precision_that_is_too_slow_is_refused_with_its_ratio() {
        let as_it_is = choose(SMALL, &wanted(Precision::Bf16, None)).expect("ATen's bf16 runs everywhere");
        assert!(as_it_is.pace.expect("measured").speed > 0.0);
        let demanding = Wanted { speed_min: f64::INFINITY, ..wanted(Precision::Bf16, None) };
        let refused = choose(SMALL, &demanding).expect_err("nothing is as fast").to_string();
        assert!(refused.contains("of the speed of f32 on this processor"), "{refused}");
    }

    #[test]
    fn a_large_layer_is_timed_in_part() {
        let vast = LayerShape { inputs: 4096, outputs: 65_536, tokens: 16_384 };
        assert_eq!((vast.rows(1), vast.batches(1024)), (18, vec![1]));
        let base = LayerShape::of(&Family::default().preset(Preset::VitBase));
        assert_eq!((base.rows(8), base.batches(8)), (1040, vec![1, 2, 4, 8]));
        assert_eq!(base.batches(64), [1, 2, 4, 8, 16, 32], "32 chips stand for more");
    }

    #[test]
    fn what_libtorch_refuses_drops_a_candidate_and_panics_nowhere() {
        let mut trial = Trial::new(SMALL, Precision::F32, Kernel::of(Precision::F32), 1);
        // Inputs of another size than the layer's.
        trial.layers[0].weight = Tensor::ones([96, 47], trial.layers[0].options);
        let refused = trial.time(1).expect_err("shapes differ").to_string();
        assert!(refused.contains("aten: ") && refused.contains("onednn: "), "{refused}");
        assert_eq!(refused.lines().count(), 1);
    }

    #[test]
    fn the_speed_of_training_is_that_of_a_step() {
        let same = training_speed(SMALL, Precision::F32).expect("f32 runs everywhere");
        assert!((0.02..50.0).contains(&same), "{same}");
        assert!(training_speed(SMALL, Precision::Bf16).expect("so does ATen's bf16") > 0.0);
    }
}
