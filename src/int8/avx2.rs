//! Sums by `vpmaddubsw` on vectors of 256 bits, for inputs of 7 bits.

use std::arch::x86_64::*;

use super::chain::{Chains, LONG, SHORT, STRIP};
use super::layout::{GROUP, PANEL, STEP};
use super::memory::LINE;
use super::operands::{Codes, Panel};

/// Sums in 32 and in 16 bits, two of each a row, leave four of the 16 registers for weights and inputs.
pub const ROWS: usize = 3;

/// # Safety
/// The rows are as long as the panel is deep, and at most [`ROWS`].
#[target_feature(enable = "avx2")]
pub unsafe fn sums(rows: Codes<'_>, panel: Panel<'_>, ahead: &[i8], sums: &mut [[i32; PANEL]]) {
    let ahead = ahead.chunks(ahead.len().div_ceil(panel.chains.len()).next_multiple_of(LINE).max(LINE));
    let ahead = ahead.chain(std::iter::repeat(&[][..]));
    for (strip, (chains, ahead)) in panel.chains.iter().zip(ahead).enumerate() {
        let weights = &panel.codes[strip * STRIP * GROUP..];
        // SAFETY: what this function requires.
        unsafe {
            match rows.count {
                1 => of::<1>(rows, weights, chains, ahead, &mut sums[..], strip * STRIP),
                2 => of::<2>(rows, weights, chains, ahead, &mut sums[..], strip * STRIP),
                3 => of::<3>(rows, weights, chains, ahead, &mut sums[..], strip * STRIP),
                _ => {}
            }
        }
    }
}

type Sums<const COUNT: usize> = [[__m256i; 2]; COUNT];

#[target_feature(enable = "avx2")]
unsafe fn of<const COUNT: usize>(
    rows: Codes<'_>,
    weights: &[i8],
    chains: &Chains,
    ahead: &[i8],
    sums: &mut [[i32; PANEL]],
    at: usize,
) {
    let mut all = [[_mm256_setzero_si256(); 2]; COUNT];
    let (long, rest) = chains.order.split_at(chains.long * LONG);
    let (short, single) = rest.split_at(chains.short * SHORT);
    // A strip has about as many chains as lines are to be fetched, and what is left follows at its end.
    let mut ahead = ahead.chunks(LINE);
    // SAFETY: the order has numbers of the panel's groups, and rows are as deep.
    unsafe {
        for chain in long.as_chunks::<LONG>().0 {
            ahead.next().into_iter().for_each(fetch);
            add(chain, rows, weights, &mut all);
        }
        for chain in short.as_chunks::<SHORT>().0 {
            add(chain, rows, weights, &mut all);
        }
        for chain in single.as_chunks::<1>().0 {
            add(chain, rows, weights, &mut all);
        }
    }
    ahead.for_each(fetch);
    for (all, sums) in all.iter().zip(sums) {
        let sums = &mut sums[at..][..STRIP];
        // SAFETY: 16 sums are two vectors; the stores need no alignment.
        unsafe {
            _mm256_storeu_si256(sums.as_mut_ptr().cast(), all[0]);
            _mm256_storeu_si256(sums.as_mut_ptr().add(8).cast(), all[1]);
        }
    }
}

/// Into the second-level cache: a panel of the widest layers fills the first one.
#[inline]
fn fetch(line: &[i8]) {
    // SAFETY: it affects nothing but caches.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr()) };
}

/// Adds the products of a chain of groups, whose sums fit 16 bits.
///
/// # Safety
/// Groups have such numbers that rows and weights reach to them.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add<const COUNT: usize, const LENGTH: usize>(
    chain: &[u16; LENGTH],
    rows: Codes<'_>,
    weights: &[i8],
    all: &mut Sums<COUNT>,
) {
    let mut narrow = [[_mm256_setzero_si256(); 2]; COUNT];
    for (number, group) in chain.iter().enumerate() {
        let group = usize::from(*group);
        // SAFETY: what this function requires; loads of weights are aligned as they are whole vectors of a panel.
        let weights: [__m256i; 2] = unsafe {
            let weights = weights.as_ptr().add(group * STEP);
            [0, 32].map(|at| _mm256_load_si256(weights.add(at).cast()))
        };
        for (row, narrow) in narrow.iter_mut().enumerate() {
            // SAFETY: likewise.
            let four = unsafe {
                let inputs = rows.codes.as_ptr().add(row * rows.stride + group * GROUP);
                _mm256_set1_epi32(inputs.cast::<i32>().read_unaligned())
            };
            for (narrow, weights) in narrow.iter_mut().zip(weights) {
                let products = _mm256_maddubs_epi16(four, weights);
                *narrow = if number == 0 { products } else { _mm256_add_epi16(*narrow, products) };
            }
        }
    }
    let ones = _mm256_set1_epi16(1);
    for (all, narrow) in all.iter_mut().zip(narrow) {
        for (all, narrow) in all.iter_mut().zip(narrow) {
            *all = _mm256_add_epi32(*all, _mm256_madd_epi16(narrow, ones));
        }
    }
}
