//! Memory for codes: aligned, in huge pages, and shared by clones while it grows.

use std::alloc::{self, Layout};
use std::fmt;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows are padded to a multiple of this many codes.
pub(super) const BLOCK: usize = 64;
/// On x86-64. Codes spread over many small pages are read at half the speed.
const HUGE_PAGE: usize = 2 << 20;

/// Codes that are loaded at once: one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Block([i8; BLOCK]);

impl Block {
    /// At most a block's worth of codes, padded with zeros.
    pub fn padded(codes: &[i8]) -> Self {
        let mut block = [0; BLOCK];
        block[..codes.len()].copy_from_slice(codes);
        Self(block)
    }

    /// Prefetches the block into the second-level cache, which accepts more requests at a time than the first.
    #[inline(always)]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: every x86-64 processor has the instruction, and it affects nothing but caches.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.0.as_ptr()) };
        }
    }

    pub fn as_ptr(&self) -> *const i8 {
        self.0.as_ptr()
    }

    pub fn codes_mut(&mut self) -> &mut [i8; BLOCK] {
        &mut self.0
    }

    /// The memory of consecutive blocks.
    pub fn bytes_mut(blocks: &mut [Self]) -> &mut [u8] {
        // SAFETY: a block is 64 bytes and nothing else, and every byte is a code.
        unsafe { slice::from_raw_parts_mut(blocks.as_mut_ptr().cast(), blocks.len() * BLOCK) }
    }

    /// The codes of consecutive blocks.
    pub fn flat(blocks: &[Self]) -> &[i8] {
        // SAFETY: a block is 64 codes and nothing else, so consecutive blocks are consecutive codes.
        unsafe { slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len() * BLOCK) }
    }
}

/// Append-only blocks that never change once written.
///
/// Clones share memory. The clone that has all written blocks appends in place, which the others do not see; any other
/// clone copies first.
#[derive(Clone)]
pub(super) struct Blocks {
    memory: Arc<Memory>,
    /// Blocks of this clone, all of them written.
    len: usize,
}

impl Blocks {
    pub fn new() -> Self {
        Self { memory: Arc::new(Memory::new(0)), len: 0 }
    }

    pub fn as_slice(&self) -> &[Block] {
        // SAFETY: the first `len` blocks were written before this clone had that length, and are never written again.
        unsafe { slice::from_raw_parts(self.memory.start.as_ptr(), self.len) }
    }

    /// Appends blocks; `room_max` is the largest number of blocks that there will ever be.
    pub fn extend(&mut self, blocks: &[Block], room_max: usize) {
        let len = self.len + blocks.len();
        if !self.memory.write(self.len, blocks) {
            let memory = Memory::new((2 * len).min(room_max).max(len));
            let written = memory.write(0, self.as_slice()) && memory.write(self.len, blocks);
            assert!(written, "there is room for {len} blocks");
            self.memory = Arc::new(memory);
        }
        self.len = len;
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocks").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Memory for blocks.
struct Memory {
    start: NonNull<Block>,
    room: usize,
    /// Blocks that were written or are being written.
    taken: AtomicUsize,
}

// SAFETY: a block is written by the one thread that reserved it, before any other thread learns of a length that
// includes it; after that it is only read.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(room: usize) -> Self {
        let taken = AtomicUsize::new(0);
        if room == 0 {
            return Self { start: NonNull::dangling(), room, taken };
        }
        let layout = Self::layout(room);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc::alloc(layout) };
        let Some(start) = NonNull::new(start.cast::<Block>()) else { alloc::handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.align() == HUGE_PAGE {
            // SAFETY: the range is the allocation that was just made. If the kernel refuses, pages stay small.
            unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Self { start, room, taken }
    }

    fn layout(room: usize) -> Layout {
        let layout = Layout::array::<Block>(room).expect("less than the address space");
        let align = if layout.size() >= HUGE_PAGE { HUGE_PAGE } else { layout.align() };
        layout.align_to(align).expect("a power of two")
    }

    /// Writes blocks at `at`; `false` if there is no room, or if other blocks were written after `at`.
    fn write(&self, at: usize, blocks: &[Block]) -> bool {
        let end = at + blocks.len();
        // Only one thread can reserve a range. Reads are ordered after the write by the way readers learn of the new
        // length.
        let taken = || self.taken.compare_exchange(at, end, Ordering::Relaxed, Ordering::Relaxed);
        if end > self.room || taken().is_err() {
            return false;
        }
        // SAFETY: the range is within the allocation, and was just reserved by this thread alone.
        unsafe { self.start.add(at).copy_from_nonoverlapping(NonNull::from(blocks).cast(), blocks.len()) };
        true
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.room > 0 {
            // SAFETY: it was allocated with this layout.
            unsafe { alloc::dealloc(self.start.as_ptr().cast(), Self::layout(self.room)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(code: i8) -> Block {
        Block::padded(&[code; BLOCK])
    }

    fn codes(blocks: &Blocks) -> Vec<i8> {
        Block::flat(blocks.as_slice()).iter().step_by(BLOCK).copied().collect()
    }

    #[test]
    fn clones_share_memory_and_do_not_see_what_others_add() {
        let mut first = Blocks::new();
        first.extend(&[block(1), block(2)], 100);
        let (before, mut second) = (first.clone(), first.clone());
        first.extend(&[block(3)], 100);
        second.extend(&[block(4), block(5)], 100);
        second.extend(&[block(6)], 100);
        assert!(
            std::ptr::eq(before.as_slice().as_ptr(), first.as_slice().as_ptr()),
            "there was room for four"
        );
        assert_eq!(codes(&before), [1, 2]);
        assert_eq!(codes(&first), [1, 2, 3]);
        assert_eq!(codes(&second), [1, 2, 4, 5, 6]);
        drop((before, first));
        assert_eq!(codes(&second), [1, 2, 4, 5, 6]);
    }

    #[test]
    fn blocks_are_read_while_others_are_added() {
        let mut blocks = Blocks::new();
        std::thread::scope(|scope| {
            for count in 0..200 {
                blocks.extend(&[block(count as i8)], 200);
                let snapshot = blocks.clone();
                scope.spawn(move || {
                    let expected: Vec<i8> = (0..=count).map(|code| code as i8).collect();
                    assert_eq!(codes(&snapshot), expected);
                });
            }
        });
    }

    #[test]
    fn much_memory_lies_in_huge_pages() {
        let mut blocks = Blocks::new();
        let many = HUGE_PAGE / BLOCK;
        (0..many).for_each(|_| blocks.extend(&[block(7)], many));
        assert_eq!(blocks.as_slice().as_ptr() as usize % HUGE_PAGE, 0);
        assert_eq!(blocks.memory.room, many);
    }
}
