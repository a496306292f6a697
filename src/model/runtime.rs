//! The state of libtorch in this process: devices, threads, memory formats.

use std::ffi::CStr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

use super::linear::disable_tf32;
use crate::memory;
use crate::processor::{Level, Processor, SPINS_OF_TRAINING};

const WAIT_POLICY: &str = "OMP_WAIT_POLICY";
const THREADS: &str = "OMP_NUM_THREADS";

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(pub(super) tch::Device);

/// The configuration names a device that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("{0} is neither \"cpu\" nor \"cuda:N\"")]
    Unknown(String),
    #[error("{device} is not available: {reason}")]
    Unavailable { device: String, reason: String },
}

impl Device {
    pub fn is_cpu(self) -> bool {
        self.0 == tch::Device::Cpu
    }

    /// By libtorch's name.
    pub fn tch(self) -> tch::Device {
        self.0
    }

    /// The device with this name, `cpu` or `cuda:N`. On a GPU, TF32 is switched off for the
    /// process, so that f32 is computed as f32.
    ///
    /// # Errors
    /// For another name, if the CUDA libraries are missing next to libtorch, or if there are fewer
    /// GPUs than the number requires.
    pub fn open(name: &str) -> Result<Self, DeviceError> {
        if name == "cpu" {
            return Ok(Self(tch::Device::Cpu));
        }
        let number = name.strip_prefix("cuda:").and_then(|number| number.parse::<usize>().ok());
        let number = number.ok_or_else(|| DeviceError::Unknown(name.to_owned()))?;
        let unavailable = |reason: String| DeviceError::Unavailable { device: name.to_owned(), reason };
        load_cuda().map_err(unavailable)?;
        disable_tf32().map_err(|cause| unavailable(cause.to_string()))?;
        let count = tch::Cuda::device_count();
        if i64::try_from(number).is_ok_and(|number| number < count) {
            Ok(Self(tch::Device::Cuda(number)))
        } else {
            Err(unavailable(format!("libtorch sees {count} GPUs")))
        }
    }
}

/// Loads libtorch's CUDA half, which is not linked, so that one binary runs with and without it.
fn load_cuda() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            // SAFETY: loading runs the library's initialisers, which is their purpose; the handle
            // is never closed.
            let handle =
                unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            if !handle.is_null() {
                return Ok(());
            }
            // SAFETY: after a failed dlopen, dlerror is null or a string that is valid until the next call.
            let message = unsafe {
                let text = libc::dlerror();
                if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
            };
            Err(format!(
                "libtorch_cuda.so cannot be loaded ({message}); install the CUDA tree (docs/processors.md)"
            ))
        })
        .clone()
}

/// Re-executes this process where libraries, which read their environment before `main` or once, would
/// otherwise misbehave. Threads of a forward pass then sleep while they wait, unless the environment sets
/// their wait policy, and no library exceeds the level that [`LIMIT`](crate::processor::LIMIT) allows.
///
/// libgomp's default of spinning multiplies the work where cores are shared. A single thread per
/// worker never waits.
pub fn prepare_process(threads_per_worker: usize) {
    restart_with(required(threads_per_worker));
}

/// The same for one of `processes` that train together on this machine, whose allocator also keeps what is freed in large
/// pages, and whose threads spin for a moment before they sleep. Several compute on a thread each unless `OMP_NUM_THREADS`
/// is set, as torchrun has it: sums depend on the number of threads in their last bits, and a run must not depend on who
/// starts its processes.
pub fn prepare_training(threads: usize, processes: usize) {
    let single = processes > 1 && std::env::var_os(THREADS).is_none();
    let of_threads = single.then_some((THREADS, "1"));
    let threads = if single { 1 } else { threads };
    let of_training = memory::OF_TRAINING.into_iter().chain([SPINS_OF_TRAINING]);
    restart_with(required(threads).chain(of_threads).chain(of_training));
}

/// What the environment has to say.
fn required(threads: usize) -> impl Iterator<Item = (&'static str, &'static str)> {
    let of_limit = Processor::here().limit().map(Level::of_libtorch).into_iter().flatten();
    let waits = threads > 1 && std::env::var_os(WAIT_POLICY).is_none();
    of_limit.chain(waits.then_some((WAIT_POLICY, "PASSIVE")))
}

fn restart_with(wanted: impl Iterator<Item = (&'static str, &'static str)>) {
    let differs = |(name, value): &(&str, &str)| std::env::var_os(name).is_none_or(|found| found != *value);
    let wanted: Vec<_> = wanted.filter(differs).collect();
    if wanted.is_empty() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let failed = Command::new(program).args(std::env::args_os().skip(1)).envs(wanted).exec();
        tracing::warn!(cause = %failed, "threads that wait spin, and libtorch uses all of the processor");
    }
}
