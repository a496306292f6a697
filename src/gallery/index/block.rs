//! Codes that are loaded at once.

use std::slice;

/// Rows are padded to a multiple of this many codes.
pub(super) const BLOCK: usize = 64;

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
