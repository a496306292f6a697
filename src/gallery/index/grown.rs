//! Append-only memory: aligned, in huge pages, and shared by clones while it grows.

use std::alloc::{self, Layout};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// On x86-64. Codes spread over many small pages are read at half the speed.
const HUGE_PAGE: usize = 2 << 20;

/// A cache line.
const LINE: usize = 64;

/// Append-only items that never change once written.
///
/// Clones share memory. The clone that has all written items appends in place, which the others do not see; any other
/// clone copies first.
pub(super) struct Grown<T> {
    memory: Arc<Memory<T>>,
    /// Where the memory starts, so that readers need not follow `memory`.
    start: NonNull<T>,
    /// Items of this clone, all of them written.
    len: usize,
}

// SAFETY: `start` is part of `memory`, which is sent and shared alike.
unsafe impl<T: Copy + Send + Sync> Send for Grown<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Send + Sync> Sync for Grown<T> {}

impl<T> Clone for Grown<T> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), start: self.start, len: self.len }
    }
}

impl<T: Copy> Grown<T> {
    pub fn new() -> Self {
        let memory = Memory::new(0);
        Self { start: memory.start, memory: Arc::new(memory), len: 0 }
    }

    fn as_slice(&self) -> &[T] {
        // SAFETY: the first `len` blocks were written before this clone had that length, and are never written again.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Appends items; `room_max` is the largest number of items that there will ever be.
    pub fn extend(&mut self, items: &[T], room_max: usize) {
        let len = self.len + items.len();
        if !self.memory.write(self.len, items) {
            let memory = Memory::new((2 * len).min(room_max).max(len));
            let written = memory.write(0, self.as_slice()) && memory.write(self.len, items);
            assert!(written, "there is room for {len} items");
            self.adopt(memory);
        }
        self.len = len;
    }

    /// Replaces an item, which other clones do not see.
    ///
    /// # Panics
    /// There is no such item.
    pub fn set(&mut self, at: usize, item: T) {
        assert!(at < self.len, "there are {} items", self.len);
        if Arc::get_mut(&mut self.memory).is_none() {
            let memory = Memory::new(self.memory.room);
            assert!(memory.write(0, self.as_slice()), "there is as much room as before");
            self.adopt(memory);
        }
        // SAFETY: the item was written, and nobody else has this memory.
        unsafe { self.start.add(at).write(item) };
    }

    fn adopt(&mut self, memory: Memory<T>) {
        self.start = memory.start;
        self.memory = Arc::new(memory);
    }
}

impl<T: Copy> Deref for Grown<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Copy> Default for Grown<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Grown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grown").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Memory for items that need no drop.
struct Memory<T> {
    start: NonNull<T>,
    room: usize,
    /// Items that were written or are being written.
    taken: AtomicUsize,
}

// SAFETY: an item is written by the one thread that reserved it, before any other thread learns of a length that
// includes it; after that it is only read.
unsafe impl<T: Copy + Send + Sync> Send for Memory<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Send + Sync> Sync for Memory<T> {}

impl<T> Memory<T> {
    fn new(room: usize) -> Self {
        let taken = AtomicUsize::new(0);
        if room == 0 {
            return Self { start: NonNull::dangling(), room, taken };
        }
        let layout = Self::layout(room);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc::alloc(layout) };
        let Some(start) = NonNull::new(start.cast::<T>()) else { alloc::handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.align() == HUGE_PAGE {
            // SAFETY: the range is the allocation that was just made. If the kernel refuses, pages stay small.
            unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Self { start, room, taken }
    }

    fn layout(room: usize) -> Layout {
        let layout = Layout::array::<T>(room).expect("less than the address space");
        let align = if layout.size() >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        layout.align_to(align).expect("a power of two")
    }

    /// Writes items at `at`; `false` if there is no room, or if other items were written after `at`.
    fn write(&self, at: usize, items: &[T]) -> bool
    where
        T: Copy,
    {
        let end = at + items.len();
        // Only one thread can reserve a range. Reads are ordered after the write by the way readers learn of the new
        // length.
        let taken = || self.taken.compare_exchange(at, end, Ordering::Relaxed, Ordering::Relaxed);
        if end > self.room || taken().is_err() {
            return false;
        }
        // SAFETY: the range is within the allocation, and was just reserved by this thread alone.
        unsafe { self.start.add(at).copy_from_nonoverlapping(NonNull::from(items).cast(), items.len()) };
        true
    }
}

impl<T> Drop for Memory<T> {
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

    #[test]
    fn clones_share_memory_and_do_not_see_what_others_add() {
        let mut first = Grown::new();
        first.extend(&[1, 2], 100);
        let (before, mut second) = (first.clone(), first.clone());
        first.extend(&[3], 100);
        second.extend(&[4, 5], 100);
        second.extend(&[6], 100);
        assert!(
            std::ptr::eq(before.as_slice().as_ptr(), first.as_slice().as_ptr()),
            "there was room for four"
        );
        assert_eq!(before.as_slice(), [1, 2]);
        assert_eq!(first.as_slice(), [1, 2, 3]);
        assert_eq!(second.as_slice(), [1, 2, 4, 5, 6]);
        drop((before, first));
        assert_eq!(second.as_slice(), [1, 2, 4, 5, 6]);
    }

    #[test]
    fn clones_do_not_see_what_others_replace() {
        let mut first = Grown::new();
        first.extend(&[1, 2, 3], 4);
        let before = first.clone();
        first.set(1, 7);
        first.extend(&[4], 4);
        let after = first.clone();
        first.set(3, 9);
        assert_eq!(
            (&before[..], &after[..], &first[..]),
            (&[1, 2, 3][..], &[1, 7, 3, 4][..], &[1, 7, 3, 9][..])
        );
        drop((before, after));
        let start = first.as_ptr();
        first.set(0, 5);
        assert_eq!((first.as_ptr(), first[0]), (start, 5), "what nobody shares is not copied");
    }

    #[test]
    fn items_are_read_while_others_are_added() {
        let mut items = Grown::new();
        std::thread::scope(|scope| {
            for count in 0..200_u64 {
                items.extend(&[count], 200);
                let snapshot = items.clone();
                scope.spawn(move || assert!(snapshot.as_slice().iter().copied().eq(0..=count)));
            }
        });
    }

    #[test]
    fn much_memory_lies_in_huge_pages() {
        let mut items = Grown::new();
        let many = HUGE_PAGE / size_of::<u64>();
        (0..many / 64).for_each(|_| items.extend(&[7_u64; 64], many));
        assert_eq!(items.as_slice().as_ptr() as usize % HUGE_PAGE, 0);
        assert_eq!(items.memory.room, many);
    }
}
