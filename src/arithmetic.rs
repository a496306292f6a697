//! Number formats in which a network computes, the kernels that multiply its matrices, and which of
//! them suit a processor.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::processor::{Level, Processor};

/// Number format in which a network runs. Trained weights are f32 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// The reference.
    #[default]
    F32,
    Bf16,
    /// Linear layers of the blocks in int8, the rest in f32; inference only.
    Int8,
}

impl Precision {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// The lowest cosine between the embeddings of a chip by one model in two precisions with which they may be compared,
/// and the lowest mean over chips. Measured in every precision: `docs/processors.md`.
pub const COSINE_MIN: f32 = 0.997;
pub const COSINE_MEAN_MIN: f32 = 0.999;

/// What computes a linear layer, `x W^T + b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Anything that libtorch supports, with gradients, on any device.
    Aten,
    /// oneDNN with weights reordered for it; CPU and inference only.
    OneDnn,
    /// Ours, in f32 as sums of products on AMX's tiles, with weights split for it; CPU and inference only.
    Tiles,
    /// Ours, with weights rounded to int8; CPU and inference only.
    Int8,
}

impl Kernel {
    /// The kernels that compute in a precision, whatever the processor.
    pub fn of(precision: Precision) -> &'static [Self] {
        match precision {
            Precision::F32 => &[Self::Aten, Self::OneDnn, Self::Tiles],
            Precision::Bf16 => &[Self::Aten, Self::OneDnn],
            Precision::Int8 => &[Self::Int8],
        }
    }

    /// Bytes of one weight of a linear layer.
    pub fn weight_bytes(self, precision: Precision) -> u64 {
        match (self, precision) {
            (Self::Tiles, _) => 6,
            (_, Precision::F32) => 4,
            (_, Precision::Bf16) => 2,
            (_, Precision::Int8) => 1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Aten => "aten",
            Self::OneDnn => "onednn",
            Self::Tiles => "tiles",
            Self::Int8 => "int8",
        }
    }

    /// Levels of which a processor must have at least one, beyond the minimum.
    fn needs(self, precision: Precision) -> &'static [Level] {
        match (self, precision) {
            (Self::Aten | Self::Int8, _) | (Self::OneDnn, Precision::F32 | Precision::Int8) => &[],
            // libtorch requires these before it packs weights.
            (Self::OneDnn, Precision::Bf16) => &[Level::Avx512, Level::Avx2Vnni2],
            (Self::Tiles, _) => &[Level::Amx],
        }
    }

    /// # Errors
    /// The processor cannot run this kernel, or none can.
    pub fn check(self, precision: Precision, processor: &Processor) -> Result<(), NotHere> {
        if !Self::of(precision).contains(&self) {
            return Err(NotHere::Never { kernel: self, precision });
        }
        let needs = self.needs(precision);
        if needs.is_empty() || needs.iter().any(|level| processor.has(*level)) {
            return Ok(());
        }
        Err(NotHere::Processor { kernel: self, precision, needs, processor: processor.to_string() })
    }

    /// The kernels that a processor can run.
    pub fn candidates(precision: Precision, processor: &Processor) -> impl Iterator<Item = Self> {
        Self::of(precision).iter().copied().filter(move |kernel| kernel.check(precision, processor).is_ok())
    }
}

/// A kernel that a processor cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    #[error(
        "{} in {} needs {}, which this processor, {processor}, does not have",
        .kernel.name(), .precision.name(), .needs.iter().map(|level| level.name()).collect::<Vec<_>>().join(" or ")
    )]
    Processor { kernel: Kernel, precision: Precision, needs: &'static [Level], processor: String },
    #[error("{} does not compute in {}", .kernel.name(), .precision.name())]
    Never { kernel: Kernel, precision: Precision },
}

/// How long the linear layers of an MLP took for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub kernel: Kernel,
    pub chips: usize,
    pub took: Duration,
}

/// Which kernels compute the linear layers of a model, by batch size.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Batch size limits with their kernels, ascending and never empty; larger batches run on the
    /// last kernel.
    kernels: Vec<(usize, Kernel)>,
    /// The timings behind the decision; empty where there was nothing to decide.
    pub timings: Vec<Timing>,
}

/// A second kernel costs a second copy of the weights, so it must be faster than the first by this factor, which is more
/// than timings beside the reading of a model differ by.
const WORTH_A_COPY: f64 = 1.25;

impl Choice {
    /// One kernel for every batch; tuned for batches of `chips` chips.
    pub fn only(kernel: Kernel, chips: usize) -> Self {
        Self { kernels: vec![(chips.max(1), kernel)], timings: Vec::new() }
    }

    /// The fastest kernel for the largest timed batch, which is what a busy server runs. For batches from the
    /// smallest up to some size, another kernel is chosen where its speed justifies its memory. Batches have
    /// up to `chips` chips. `None` without timings.
    pub fn fastest(timings: Vec<Timing>, chips: usize) -> Option<Self> {
        let mut sizes: Vec<usize> = timings.iter().map(|timing| timing.chips).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let best = |chips: usize| timings.iter().filter(|t| t.chips == chips).min_by_key(|t| t.took);
        let main = best(*sizes.last()?)?.kernel;
        let of_main = |chips: usize| timings.iter().find(|t| t.chips == chips && t.kernel == main);
        let paying = |chips: usize| {
            let pays = |fastest: &&Timing| {
                of_main(chips).is_none_or(|of_main| of_main.took > fastest.took.mul_f64(WORTH_A_COPY))
            };
            best(chips).filter(pays).map(|fastest| fastest.kernel)
        };
        let small = sizes.iter().map_while(|chips| Some((*chips, paying(*chips)?)));
        let mut kernels: Vec<(usize, Kernel)> = small.collect();
        kernels.extend(sizes.iter().skip(kernels.len()).map(|chips| (*chips, main)));
        if let Some((most, _)) = kernels.last_mut() {
            *most = chips.max(*most);
        }
        Some(Self { kernels, timings })
    }

    /// The kernel that computes a batch.
    pub fn kernel(&self, chips: usize) -> Kernel {
        let found = self.kernels.iter().find(|(most, _)| chips <= *most).or(self.kernels.last());
        found.map_or(Kernel::Aten, |(_, kernel)| *kernel)
    }

    /// Batch size limits with their kernels, ascending; larger batches run on the last kernel.
    pub fn kernels(&self) -> &[(usize, Kernel)] {
        &self.kernels
    }

    /// The largest batch that runs on a kernel; `None` for a kernel that runs nothing.
    pub fn largest(&self, kernel: Kernel) -> Option<usize> {
        self.kernels.iter().rev().find(|(_, of_size)| *of_size == kernel).map(|(chips, _)| *chips)
    }
}

/// Human-readable: `aten 1 to 8`, or `aten 1, onednn 2 to 8`, in chips per batch.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut from = 1;
        for (number, group) in self.kernels.chunk_by(|a, b| a.1 == b.1).enumerate() {
            let (to, kernel) = (group.last().map_or(from, |(chips, _)| *chips), group[0].1.name());
            let comma = if number > 0 { ", " } else { "" };
            write!(
                f,
                "{comma}{kernel} {}",
                if from == to { from.to_string() } else { format!("{from} to {to}") }
            )?;
            from = to + 1;
        }
        Ok(())
    }
}

/// Fraction of f32's speed that another precision must reach unless configured otherwise. A precision half as
/// fast was hardly intended: without instructions for it, bf16 is seven to a hundred times slower.
pub const PRECISION_SPEED_MIN: f64 = 0.5;

/// How the speed of a precision compares with f32 on a processor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    pub precision: Precision,
    /// Its speed relative to f32.
    pub speed: f64,
    level: Level,
}

impl Pace {
    pub fn new(precision: Precision, speed: f64, processor: &Processor) -> Self {
        Self { precision, speed, level: processor.level() }
    }

    /// Whether f32 would be faster.
    pub fn is_slow(&self) -> bool {
        self.speed < 1.0
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { precision, speed, level } = self;
        write!(f, "{} runs at {speed:.2} of the speed of f32 on this processor ({level})", precision.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timings(took: &[(usize, u64, u64)]) -> Vec<Timing> {
        let timing = |kernel, chips, ms| Timing { kernel, chips, took: Duration::from_millis(ms) };
        took.iter()
            .flat_map(|(chips, aten, onednn)| {
                [timing(Kernel::Aten, *chips, *aten), timing(Kernel::OneDnn, *chips, *onednn)]
            })
            .collect()
    }

    #[test]
    fn the_largest_batch_decides_and_a_smaller_one_differs_where_it_pays() {
        let check = |took: &[(usize, u64, u64)], expected: &str| {
            let choice = Choice::fastest(timings(took), 8).expect("timings");
            assert_eq!(choice.to_string(), expected);
        };
        check(&[(1, 100, 90), (2, 200, 180), (8, 800, 720)], "onednn 1 to 8");
        check(&[(1, 100, 95), (2, 200, 190), (8, 700, 720)], "aten 1 to 8");
        check(&[(1, 100, 75), (2, 200, 190), (8, 700, 720)], "onednn 1, aten 2 to 8");
        check(&[(1, 100, 85), (2, 200, 190), (8, 700, 720)], "aten 1 to 8");
        // A single outlier among the sizes is noise.
        check(&[(1, 100, 95), (2, 200, 100), (8, 700, 720)], "aten 1 to 8");
    }

    #[test]
    fn a_batch_runs_on_the_kernel_of_the_next_size_up() {
        let timings = timings(&[(1, 100, 200), (4, 400, 300), (8, 800, 500)]);
        let choice = Choice::fastest(timings, 16).expect("timings");
        assert_eq!(choice.to_string(), "aten 1, onednn 2 to 16");
        let kernels = [1, 2, 3, 4, 8, 100].map(|chips| choice.kernel(chips));
        assert_eq!(kernels[0], Kernel::Aten);
        assert!(kernels[1..].iter().all(|kernel| *kernel == Kernel::OneDnn));
        assert_eq!(choice.largest(Kernel::Aten), Some(1));
        assert_eq!(choice.largest(Kernel::OneDnn), Some(16));
        assert_eq!(Choice::only(Kernel::Aten, 8).largest(Kernel::OneDnn), None);
        assert_eq!(Choice::fastest(Vec::new(), 8), None);
    }

    #[test]
    fn a_kernel_that_a_processor_cannot_run_is_no_candidate() {
        let check = |level: Level, precision, expected: &[Kernel]| {
            let processor = Processor::with(level);
            let found: Vec<Kernel> = Kernel::candidates(precision, &processor).collect();
            assert_eq!(found, expected, "{level}");
        };
        for level in Level::ALL {
            let tiles: &[Kernel] = if level == Level::Amx { &[Kernel::Tiles] } else { &[] };
            check(level, Precision::F32, &[&[Kernel::Aten, Kernel::OneDnn], tiles].concat());
            check(level, Precision::Int8, &[Kernel::Int8]);
        }
        for level in [Level::Portable, Level::Avx2] {
            check(level, Precision::Bf16, &[Kernel::Aten]);
        }
        for level in [Level::Avx2Vnni2, Level::Avx512, Level::Avx512Vnni, Level::Avx512Bf16, Level::Amx] {
            check(level, Precision::Bf16, &[Kernel::Aten, Kernel::OneDnn]);
        }
        let refused = Kernel::OneDnn.check(Precision::Bf16, &Processor::with(Level::Avx2)).expect_err("AVX2");
        assert_eq!(
            refused.to_string(),
            "onednn in bf16 needs avx512 or avx2_vnni_2, which this processor, a test (avx2), does not have"
        );
        let refused =
            Kernel::Aten.check(Precision::Int8, &Processor::with(Level::Amx)).expect_err("ours only");
        assert_eq!(refused.to_string(), "aten does not compute in int8");
    }

    #[test]
    fn a_precision_is_slow_below_the_speed_of_f32() {
        let pace = |speed| Pace::new(Precision::Bf16, speed, &Processor::with(Level::Avx2));
        assert!(pace(0.99).is_slow() && !pace(1.0).is_slow());
        assert_eq!(pace(0.14).to_string(), "bf16 runs at 0.14 of the speed of f32 on this processor (avx2)");
    }
}
