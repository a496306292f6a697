//! Bytes in whole, aligned cache lines.

use std::slice;

/// Bytes of a cache line, and of the widest vector.
pub const LINE: usize = 64;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Zeroed bytes that start at a cache line.
#[derive(Clone, Debug, Default)]
pub struct Lines(Vec<Line>);

impl Lines {
    /// At least `bytes` bytes.
    pub fn zeroed(bytes: usize) -> Self {
        Self(vec![Line([0; LINE]); bytes.div_ceil(LINE)])
    }

    /// Makes room for `bytes` bytes; what is kept of the former ones is unspecified.
    pub fn reserve(&mut self, bytes: usize) {
        self.0.resize(self.0.len().max(bytes.div_ceil(LINE)), Line([0; LINE]));
    }

    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: a line is 64 bytes and nothing else, so consecutive lines are consecutive bytes.
        unsafe { slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }

    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; every value of a byte is valid.
        unsafe { slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}
