//! Products of int8 rows, with what the processor has for them.

/// Rows are padded to a multiple of this many codes.
pub const BLOCK: usize = 64;

/// Sum of `query[i] * row[i]`; `row_sum` is the sum of the row's codes.
///
/// # Panics
/// When the lengths differ or are no multiple of [`BLOCK`].
pub fn dot(query: &[i8], row: &[i8], row_sum: i32) -> i32 {
    assert!(query.len() == row.len() && row.len().is_multiple_of(BLOCK), "whole blocks of one length");
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has the instructions; the lengths are equal whole blocks.
            return unsafe { x86::dot_vnni(query, row, row_sum) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { x86::dot_avx2(query, row) };
        }
    }
    let _ = row_sum;
    dot_portable(query, row)
}

fn dot_portable(query: &[i8], row: &[i8]) -> i32 {
    query.iter().zip(row).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::BLOCK;

    /// The instruction multiplies unsigned by signed bytes, so the query is shifted up by 128 and 128 times the row's
    /// sum is taken off again.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn dot_vnni(query: &[i8], row: &[i8], row_sum: i32) -> i32 {
        let shift = _mm512_set1_epi8(i8::MIN);
        let mut sum = _mm512_setzero_si512();
        for (query, row) in query.chunks_exact(BLOCK).zip(row.chunks_exact(BLOCK)) {
            // SAFETY: a chunk has the 64 bytes that are loaded, at any alignment.
            let (query, row) = unsafe {
                (_mm512_loadu_si512(query.as_ptr().cast()), _mm512_loadu_si512(row.as_ptr().cast()))
            };
            sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(query, shift), row);
        }
        _mm512_reduce_add_epi32(sum) - 128 * row_sum
    }

    /// Sixteen codes at a time, widened to 16 bits.
    #[target_feature(enable = "avx2")]
    pub fn dot_avx2(query: &[i8], row: &[i8]) -> i32 {
        let mut sum = _mm256_setzero_si256();
        for (query, row) in query.chunks_exact(16).zip(row.chunks_exact(16)) {
            // SAFETY: a chunk has the 16 bytes that are loaded, at any alignment.
            let (query, row) =
                unsafe { (_mm_loadu_si128(query.as_ptr().cast()), _mm_loadu_si128(row.as_ptr().cast())) };
            let products = _mm256_madd_epi16(_mm256_cvtepi8_epi16(query), _mm256_cvtepi8_epi16(row));
            sum = _mm256_add_epi32(sum, products);
        }
        let mut lanes = [0_i32; 8];
        // SAFETY: eight lanes of 32 bits are 32 bytes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_kind_of_product_is_the_plain_one(
            blocks in 1..8usize,
            codes in prop::collection::vec((-127..=127_i8, -127..=127_i8), 512),
            extreme in any::<bool>(),
        ) {
            let (mut query, mut row): (Vec<i8>, Vec<i8>) = codes.into_iter().unzip();
            if extreme {
                query.fill(-127);
                row.fill(127);
            }
            query.truncate(blocks * BLOCK);
            row.truncate(blocks * BLOCK);
            let expected = dot_portable(&query, &row);
            let row_sum = row.iter().map(|code| i32::from(*code)).sum();
            prop_assert_eq!(dot(&query, &row, row_sum), expected);
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has the instructions; the lengths are equal whole blocks.
                    prop_assert_eq!(unsafe { x86::dot_avx2(&query, &row) }, expected);
                }
                if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bw") {
                    // SAFETY: as above.
                    prop_assert_eq!(unsafe { x86::dot_vnni(&query, &row, row_sum) }, expected);
                }
            }
        }
    }
}
