//! Sums by `vpdpbusd` on vectors of 512 bits.

use std::arch::x86_64::*;

use super::layout::{GROUP, PANEL, STEP};
use super::operands::Codes;

/// Two sums a row leave four of the 32 registers for weights and inputs. A chip of 130 tokens is ten times as many.
pub const ROWS: usize = 13;

/// # Safety
/// The rows are as long as the panel is deep, and at most [`ROWS`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn sums(rows: Codes<'_>, panel: &[i8], ahead: &[i8], sums: &mut [[i32; PANEL]]) {
    macro_rules! of_count {
        ($($count:literal)*) => {
            match rows.count {
                // SAFETY: what this function requires.
                $($count => unsafe { of::<$count>(rows, panel, ahead, sums) },)*
                _ => {}
            }
        };
    }
    of_count!(1 2 3 4 5 6 7 8 9 10 11 12 13)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn of<const COUNT: usize>(rows: Codes<'_>, panel: &[i8], ahead: &[i8], sums: &mut [[i32; PANEL]]) {
    let mut all = [[_mm512_setzero_si512(); 2]; COUNT];
    let (inputs, weights) = (rows.codes.as_ptr(), panel.as_ptr());
    for group in 0..panel.len() / STEP {
        // The part that is prefetched is at most a quarter of a panel, and a group is two lines.
        if group % 2 == 0 && group * 32 < ahead.len() {
            // SAFETY: an address within the slice; the instruction affects nothing but caches.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.as_ptr().add(group * 32)) };
        }
        // SAFETY: a group of the panel is two vectors, each aligned to a cache line; rows are as deep.
        unsafe {
            let weights = weights.add(group * STEP);
            let weights = [0, 64].map(|at| _mm512_load_si512(weights.add(at).cast()));
            for (row, sums) in all.iter_mut().enumerate() {
                let four = inputs.add(row * rows.stride + group * GROUP).cast::<i32>().read_unaligned();
                let four = _mm512_set1_epi32(four);
                sums[0] = _mm512_dpbusd_epi32(sums[0], four, weights[0]);
                sums[1] = _mm512_dpbusd_epi32(sums[1], four, weights[1]);
            }
        }
    }
    for (all, sums) in all.iter().zip(sums) {
        // SAFETY: 32 sums are two vectors; the stores need no alignment.
        unsafe {
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), all[0]);
            _mm512_storeu_si512(sums.as_mut_ptr().add(16).cast(), all[1]);
        }
    }
}
