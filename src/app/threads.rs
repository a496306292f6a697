//! The number of threads for each kind of work, where the configuration does not set it.

use std::num::NonZeroUsize;
use std::thread;

use crate::config::Config;

/// Device threads.
pub fn worker_count(config: &Config) -> usize {
    match (config.encoder.workers, config.encoder.device.as_str()) {
        (0, "cpu") => cores(),
        (0, _) => 1,
        (workers, _) => workers,
    }
}

/// Threads inside one forward pass.
pub fn threads_per_worker(config: &Config) -> usize {
    match config.encoder.threads_per_worker {
        0 => (cores() / worker_count(config)).max(1),
        threads => threads,
    }
}

/// Threads that search galleries.
pub fn search_threads(config: &Config) -> usize {
    or_cores(config.matching.search_threads)
}

/// Threads that decode chips.
pub fn decode_threads(config: &Config) -> usize {
    or_cores(config.chips.decode_threads)
}

fn or_cores(threads: usize) -> usize {
    if threads == 0 { cores() } else { threads }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
