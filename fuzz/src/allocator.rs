//! The system's allocator with an account of what is allocated, and an end to it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most that an input may have in memory at once: so much, and so much for each of its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub bytes: usize,
    pub per_input_byte: usize,
}

impl Bound {
    pub(crate) fn of(self, input_bytes: usize) -> usize {
        self.bytes + self.per_input_byte * input_bytes
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Runs `work` with `limit` bytes to allocate; says how many it had at most at once.
pub(crate) fn bounded<T>(limit: usize, work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    LIMIT.store(before + limit, Ordering::Relaxed);
    let result = work();
    LIMIT.store(usize::MAX, Ordering::Relaxed);
    (result, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

struct Counting;

impl Counting {
    /// Counts `bytes` more, before they are allocated.
    fn grow(bytes: usize) {
        let live = LIVE.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        PEAK.fetch_max(live, Ordering::Relaxed);
        let limit = LIMIT.load(Ordering::Relaxed);
        if live > limit {
            // Telling it allocates as well.
            LIMIT.store(usize::MAX, Ordering::Relaxed);
            eprintln!("{bytes} bytes are asked for, {} more than may be", live - limit);
            std::process::abort();
        }
    }

    fn shrink(bytes: usize) {
        LIVE.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size());
        // SAFETY: what holds for our caller holds for the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while the content moves.
        Self::grow(size);
        // SAFETY: as above.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        Self::shrink(layout.size());
        moved
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) };
        Self::shrink(layout.size());
    }
}
