//! Dot products of int8 rows, with the processor's best instructions.

use super::block::{BLOCK, Block};
#[cfg(target_arch = "x86_64")]
use crate::processor::{Level, Processor};

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    /// The fastest kernel that the processor supports.
    fn detect() -> Self {
        Self::every()[0]
    }

    /// All kernels that the processor supports, fastest first.
    #[cfg(target_arch = "x86_64")]
    fn every() -> Vec<Self> {
        let kinds =
            [(Level::Avx512Vnni, Self::Vnni), (Level::Avx2, Self::Avx2), (Level::Portable, Self::Portable)];
        let processor = Processor::here();
        kinds.into_iter().filter(|(level, _)| processor.has(*level)).map(|(_, kernel)| kernel).collect()
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn every() -> Vec<Self> {
        vec![Self::Portable]
    }
}

/// The codes that many rows are multiplied by.
#[derive(Debug)]
pub(super) struct Factor {
    /// Supported by the processor.
    kernel: Kernel,
    /// In the form that the kernel needs.
    blocks: Vec<Block>,
}

impl Factor {
    pub fn new(codes: &[i8]) -> Self {
        Self::with(Kernel::detect(), codes)
    }

    fn with(kernel: Kernel, codes: &[i8]) -> Self {
        let mut blocks: Vec<Block> = codes.chunks(BLOCK).map(Block::padded).collect();
        #[cfg(target_arch = "x86_64")]
        if kernel == Kernel::Vnni {
            // The instruction multiplies unsigned by signed bytes, so the factor is shifted up by 128.
            blocks.iter_mut().flat_map(Block::codes_mut).for_each(|code| *code ^= i8::MIN);
        }
        Self { kernel, blocks }
    }

    /// Writes the sums of `factor[i] * row[i]` for all rows into `products`, and prefetches the rows `ahead`.
    ///
    /// # Panics
    /// The numbers of products and rows differ.
    pub fn products(&self, rows: Rows<'_>, ahead: Rows<'_>, products: &mut [i32]) {
        assert_eq!(rows.at.len(), products.len(), "one product a row");
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this kernel is only chosen where the processor has the instructions.
            Kernel::Vnni => unsafe { x86::vnni(&self.blocks, rows, ahead, products) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kernel::Avx2 => unsafe { x86::avx2(&self.blocks, rows, ahead, products) },
            Kernel::Portable => portable(&self.blocks, rows, products),
        }
    }
}

/// Selected rows of a segment's codes.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// All rows, contiguous.
    pub blocks: &'a [Block],
    /// Sums of each row's codes, which one kernel needs.
    pub sums: &'a [i32],
    /// The selected rows.
    pub at: &'a [u16],
}

// Without the attributes the compiler inlines little into functions with other target features, and a call per row
// halves the speed. For the same reason these functions take rows, not iterators.
impl<'a> Rows<'a> {
    pub const NONE: Self = Self { blocks: &[], sums: &[], at: &[] };

    /// Row `at` of rows with `stride` blocks.
    #[inline(always)]
    fn row(self, at: u16, stride: usize) -> &'a [Block] {
        &self.blocks[usize::from(at) * stride..][..stride]
    }

    /// Prefetches one row: prefetching all at once would delay the rows that are needed next.
    #[inline(always)]
    fn prefetch(self, number: usize, stride: usize) {
        if let Some(at) = self.at.get(number) {
            for block in self.row(*at, stride) {
                block.prefetch();
            }
        }
    }
}

fn portable(factor: &[Block], rows: Rows<'_>, products: &mut [i32]) {
    for (at, product) in rows.at.iter().zip(products) {
        let codes = Block::flat(factor).iter().zip(Block::flat(rows.row(*at, factor.len())));
        *product = codes.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::block::Block;
    use super::Rows;

    /// `factor` is shifted up by 128, so 128 times the row's sum is subtracted.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn vnni(factor: &[Block], rows: Rows<'_>, ahead: Rows<'_>, products: &mut [i32]) {
        // The lengths of known models.
        match factor.len() {
            3 => vnni_of::<3>(factor, rows, ahead, products),
            12 => vnni_of::<12>(factor, rows, ahead, products),
            _ => vnni_any(factor, rows, ahead, products),
        }
    }

    /// With a factor of known length, which stays in registers: this halves the number of loads.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn vnni_of<const BLOCKS: usize>(factor: &[Block], rows: Rows<'_>, ahead: Rows<'_>, products: &mut [i32]) {
        let factor: [__m512i; BLOCKS] = std::array::from_fn(|block| load_512(&factor[block]));
        for (number, (at, product)) in rows.at.iter().zip(products).enumerate() {
            ahead.prefetch(number, BLOCKS);
            let row = rows.row(*at, BLOCKS);
            // Two independent sums, so that one does not wait for the other.
            let mut sums = [_mm512_setzero_si512(); 2];
            for (block, (factor, row)) in factor.iter().zip(row).enumerate() {
                sums[block % 2] = _mm512_dpbusd_epi32(sums[block % 2], *factor, load_512(row));
            }
            *product = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]))
                - 128 * rows.sums[usize::from(*at)];
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn vnni_any(factor: &[Block], rows: Rows<'_>, ahead: Rows<'_>, products: &mut [i32]) {
        for (number, (at, product)) in rows.at.iter().zip(products).enumerate() {
            ahead.prefetch(number, factor.len());
            let mut sum = _mm512_setzero_si512();
            for (factor, row) in factor.iter().zip(rows.row(*at, factor.len())) {
                sum = _mm512_dpbusd_epi32(sum, load_512(factor), load_512(row));
            }
            *product = _mm512_reduce_add_epi32(sum) - 128 * rows.sums[usize::from(*at)];
        }
    }

    #[target_feature(enable = "avx512f")]
    fn load_512(block: &Block) -> __m512i {
        // SAFETY: a block has 64 bytes and is aligned to 64.
        unsafe { _mm512_load_si512(block.as_ptr().cast()) }
    }

    /// Sixteen codes at a time, widened to 16 bits.
    #[target_feature(enable = "avx2")]
    pub fn avx2(factor: &[Block], rows: Rows<'_>, ahead: Rows<'_>, products: &mut [i32]) {
        for (number, (at, product)) in rows.at.iter().zip(products).enumerate() {
            ahead.prefetch(number, factor.len());
            let row = Block::flat(rows.row(*at, factor.len()));
            let mut sum = _mm256_setzero_si256();
            for (factor, row) in Block::flat(factor).chunks_exact(16).zip(row.chunks_exact(16)) {
                // SAFETY: a chunk has the 16 bytes that are loaded; the load needs no alignment.
                let (factor, row) = unsafe {
                    (_mm_loadu_si128(factor.as_ptr().cast()), _mm_loadu_si128(row.as_ptr().cast()))
                };
                let products = _mm256_madd_epi16(_mm256_cvtepi8_epi16(factor), _mm256_cvtepi8_epi16(row));
                sum = _mm256_add_epi32(sum, products);
            }
            let mut lanes = [0_i32; 8];
            // SAFETY: eight lanes of 32 bits are 32 bytes.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
            *product = lanes.iter().sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_search_uses_what_the_processor_has_and_may_use() {
        let expected = match Processor::here().level() {
            Level::Portable => Kernel::Portable,
            Level::Avx2 | Level::Avx2Vnni2 | Level::Avx512 => Kernel::Avx2,
            Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => Kernel::Vnni,
        };
        assert_eq!(Factor::new(&[1, 2, 3]).kernel, expected);
    }

    proptest! {
        #[test]
        fn every_kind_of_product_is_the_plain_one(
            dimension in prop_oneof![1..400usize, Just(768)],
            codes in prop::collection::vec(prop::collection::vec(-127..=127_i8, 768), 1..12),
            extreme in any::<bool>(),
            step in 1..3usize,
        ) {
            let blocks = |codes: &Vec<i8>| {
                let fill = |code: &i8| if extreme { 127 * code.signum() } else { *code };
                let codes: Vec<i8> = codes[..dimension].iter().map(fill).collect();
                codes.chunks(BLOCK).map(Block::padded).collect::<Vec<_>>()
            };
            let parts: Vec<Vec<Block>> = codes.iter().map(blocks).collect();
            let sum = |row: &Vec<Block>| Block::flat(row).iter().map(|code| i32::from(*code)).sum();
            let (flat, sums): (Vec<Block>, Vec<i32>) = (parts.concat(), parts.iter().map(sum).collect());
            let at: Vec<u16> = (0..parts.len() as u16).rev().step_by(step).collect();
            let rows = Rows { blocks: &flat, sums: &sums, at: &at };
            let plain = |at: &u16| {
                let codes = Block::flat(&parts[0]).iter().zip(Block::flat(&parts[usize::from(*at)]));
                codes.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
            };
            let expected: Vec<i32> = at.iter().map(plain).collect();
            for kernel in Kernel::every() {
                let mut products = vec![0; at.len()];
                Factor::with(kernel, Block::flat(&parts[0])).products(rows, rows, &mut products);
                prop_assert_eq!(&products, &expected, "{:?}", kernel);
            }
        }
    }
}
