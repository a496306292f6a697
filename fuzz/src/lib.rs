//! What the targets share: bounds on the memory and the time that an input may cost, and an account of the worst.

mod allocator;
mod archive;

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use allocator::Bound;
pub use archive::stored_zip;

/// What an input may take of the processor, in this instrumented build.
const HANG: Duration = Duration::from_secs(1);

static CALLS: AtomicU64 = AtomicU64::new(0);
static SLOWEST_NANOS: AtomicU64 = AtomicU64::new(0);
static HEAVIEST_BYTES: AtomicU64 = AtomicU64::new(0);
static HEAVIEST_PER_MILLE: AtomicU64 = AtomicU64::new(0);

/// Runs the part of a target that belongs to the product on an input of `input_bytes`, and ends the process where it
/// has more than `bound` in memory at once, or takes longer than [`HANG`]. Processor time counts, so that a busy
/// machine is no hang.
pub fn watched<T>(bound: Bound, input_bytes: usize, product: impl FnOnce() -> T) -> T {
    static TELL_AT_EXIT: Once = Once::new();
    TELL_AT_EXIT.call_once(|| {
        // SAFETY: `tell` takes and gives nothing, and no destructor can have run what it reads.
        assert_eq!(unsafe { libc::atexit(tell) }, 0, "there is room for an exit handler");
    });
    let limit = bound.of(input_bytes);
    let begun = processor_time();
    let (result, peak) = allocator::bounded(limit, product);
    let spent = processor_time() - begun;
    CALLS.fetch_add(1, Ordering::Relaxed);
    SLOWEST_NANOS.fetch_max(spent.as_nanos() as u64, Ordering::Relaxed);
    HEAVIEST_BYTES.fetch_max(peak as u64, Ordering::Relaxed);
    HEAVIEST_PER_MILLE.fetch_max((peak * 1000 / limit) as u64, Ordering::Relaxed);
    assert!(spent < HANG, "{input_bytes} bytes took {spent:?} of the processor");
    result
}

/// Of this process, all threads together.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec to write to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// One line that scripts/fuzz.py reads.
extern "C" fn tell() {
    eprintln!(
        "watched: calls={} slowest_us={} heaviest_bytes={} heaviest_per_mille_of_bound={}",
        CALLS.load(Ordering::Relaxed),
        SLOWEST_NANOS.load(Ordering::Relaxed) / 1000,
        HEAVIEST_BYTES.load(Ordering::Relaxed),
        HEAVIEST_PER_MILLE.load(Ordering::Relaxed),
    );
}
