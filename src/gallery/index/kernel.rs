//! Products of int8 rows, with what the processor has for them.

/// Rows are padded to a multiple of this many codes.
pub(super) const BLOCK: usize = 64;

/// Codes that are loaded at once; a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Block([i8; BLOCK]);

impl Block {
    /// At most a block's codes, and zeros after them.
    pub fn padded(codes: &[i8]) -> Self {
        let mut block = [0; BLOCK];
        block[..codes.len()].copy_from_slice(codes);
        Self(block)
    }

    /// The codes of blocks that lie in a row.
    pub fn flat(blocks: &[Self]) -> &[i8] {
        // SAFETY: a block is 64 codes and nothing else, so blocks in a row are codes in a row.
        unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len() * BLOCK) }
    }
}

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    /// The fastest that the processor runs.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bw") {
                return Self::Vnni;
            }
            if is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// The sums of `query[i] * row[i]` for every row, into `products`; `sums` are the sums of the rows' codes.
    ///
    /// # Panics
    /// When there are not as many sums and products as rows.
    pub fn products(self, query: &[Block], rows: &[&[Block]], sums: &[i32], products: &mut [i32]) {
        assert!(rows.len() == sums.len() && rows.len() == products.len(), "one sum, one product a row");
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has the instructions, or `detect` would not have chosen them.
            Self::Vnni => unsafe { x86::vnni(query, rows, sums, products) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx2 => unsafe { x86::avx2(query, rows, products) },
            Self::Portable => portable(query, rows, products),
        }
    }
}

fn portable(query: &[Block], rows: &[&[Block]], products: &mut [i32]) {
    let query = Block::flat(query);
    for (row, product) in rows.iter().zip(products) {
        let codes = query.iter().zip(Block::flat(row));
        *product = codes.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Block;

    /// The instruction multiplies unsigned by signed bytes, so the query is shifted up by 128 and 128 times the row's
    /// sum is taken off again.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn vnni(query: &[Block], rows: &[&[Block]], sums: &[i32], products: &mut [i32]) {
        let shift = _mm512_set1_epi8(i8::MIN);
        for ((row, sum), product) in rows.iter().zip(sums).zip(products) {
            let mut lanes = _mm512_setzero_si512();
            for (query, row) in query.iter().zip(*row) {
                lanes = _mm512_dpbusd_epi32(lanes, _mm512_xor_si512(load_512(query), shift), load_512(row));
            }
            *product = _mm512_reduce_add_epi32(lanes) - 128 * sum;
        }
    }

    #[target_feature(enable = "avx512f")]
    fn load_512(block: &Block) -> __m512i {
        // SAFETY: a block has 64 bytes, at a multiple of 64.
        unsafe { _mm512_load_si512(block.0.as_ptr().cast()) }
    }

    /// Sixteen codes at a time, widened to 16 bits.
    #[target_feature(enable = "avx2")]
    pub fn avx2(query: &[Block], rows: &[&[Block]], products: &mut [i32]) {
        for (row, product) in rows.iter().zip(products) {
            let mut sum = _mm256_setzero_si256();
            for (query, row) in Block::flat(query).chunks_exact(16).zip(Block::flat(row).chunks_exact(16)) {
                // SAFETY: a chunk has the 16 bytes that are loaded, at any alignment.
                let (query, row) =
                    unsafe { (_mm_loadu_si128(query.as_ptr().cast()), _mm_loadu_si128(row.as_ptr().cast())) };
                let products = _mm256_madd_epi16(_mm256_cvtepi8_epi16(query), _mm256_cvtepi8_epi16(row));
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

    /// Every kind that this processor has.
    fn kernels() -> Vec<Kernel> {
        #[cfg(target_arch = "x86_64")]
        {
            let vnni = Kernel::detect() == Kernel::Vnni;
            let avx2 = is_x86_feature_detected!("avx2");
            let kinds = [(vnni, Kernel::Vnni), (avx2, Kernel::Avx2), (true, Kernel::Portable)];
            kinds.into_iter().filter(|(has, _)| *has).map(|(_, kernel)| kernel).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Kernel::Portable]
    }

    proptest! {
        #[test]
        fn every_kind_of_product_is_the_plain_one(
            dimension in 1..400usize,
            codes in prop::collection::vec(prop::collection::vec(-127..=127_i8, 400), 1..12),
            extreme in any::<bool>(),
        ) {
            let blocks = |codes: &Vec<i8>| {
                let fill = |code: &i8| if extreme { 127 * code.signum() } else { *code };
                let codes: Vec<i8> = codes[..dimension].iter().map(fill).collect();
                codes.chunks(BLOCK).map(Block::padded).collect::<Vec<_>>()
            };
            let rows: Vec<Vec<Block>> = codes.iter().map(blocks).collect();
            let rows: Vec<&[Block]> = rows.iter().map(Vec::as_slice).collect();
            let sum = |row: &&[Block]| Block::flat(row).iter().map(|code| i32::from(*code)).sum();
            let sums: Vec<i32> = rows.iter().map(sum).collect();
            let plain = |row: &&[Block]| {
                let codes = Block::flat(rows[0]).iter().zip(Block::flat(row));
                codes.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
            };
            let expected: Vec<i32> = rows.iter().map(plain).collect();
            for kernel in kernels() {
                let mut products = vec![0; rows.len()];
                kernel.products(rows[0], &rows, &sums, &mut products);
                prop_assert_eq!(&products, &expected, "{:?}", kernel);
            }
        }
    }
}
