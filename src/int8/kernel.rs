//! Products of u8 inputs and s8 weights, with the processor's best instructions.

use super::layout::{GROUP, PANEL, STEP};
use super::operands::{Codes, Panel};
#[cfg(target_arch = "x86_64")]
use crate::processor::{Level, Processor};

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    /// The fastest kernel that the processor supports.
    pub fn detect() -> Self {
        Self::every()[0]
    }

    /// All kernels that the processor supports, fastest first.
    #[cfg(target_arch = "x86_64")]
    pub fn every() -> Vec<Self> {
        let kinds = [
            (Level::Amx, Self::Amx),
            (Level::Avx512Vnni, Self::Avx512Vnni),
            (Level::Avx2, Self::Avx2),
            (Level::Portable, Self::Portable),
        ];
        let processor = Processor::here();
        kinds.into_iter().filter(|(level, _)| processor.has(*level)).map(|(_, kernel)| kernel).collect()
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn every() -> Vec<Self> {
        vec![Self::Portable]
    }

    /// The largest code of an input: AVX2 adds pairs of products in 16 bits.
    pub fn code_max(self) -> u8 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 127,
            _ => 255,
        }
    }

    /// The vectors of what comes before and after the products.
    pub fn width(self) -> Width {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx | Self::Avx512Vnni => Width::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Width::Avx2,
            Self::Portable => Width::Portable,
        }
    }

    /// Rows that are computed at a time.
    pub fn rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => super::amx::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => super::avx512::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => super::avx2::ROWS,
            Self::Portable => 1,
        }
    }

    /// Prefetches `ahead` meanwhile, which is at most a panel.
    ///
    /// Writes `sums[row][output] = sum over inputs of codes[row][input] * panel[output][input]`.
    ///
    /// # Panics
    /// If there are more rows than the kernel takes, or they are shorter than the panel is deep.
    pub fn sums(self, rows: Codes<'_>, panel: Panel<'_>, ahead: &[i8], sums: &mut [[i32; PANEL]]) {
        assert!(rows.count <= self.rows() && rows.count <= sums.len());
        let depth = panel.codes.len() / PANEL;
        assert!(rows.count == 0 || rows.codes.len() >= (rows.count - 1) * rows.stride + depth);
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this kernel is only chosen where the processor has the instructions and the system allows
            // them; the rows are as many and as long as was just checked.
            Self::Amx => unsafe { super::amx::sums(rows, panel.codes, ahead, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512Vnni => unsafe { super::avx512::sums(rows, panel.codes, ahead, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx2 => unsafe { super::avx2::sums(rows, panel, ahead, sums) },
            Self::Portable => portable(rows, panel.codes, sums),
        }
    }
}

/// Widths of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

fn portable(rows: Codes<'_>, panel: &[i8], sums: &mut [[i32; PANEL]]) {
    for (row, sums) in sums.iter_mut().enumerate().take(rows.count) {
        let row = &rows.codes[row * rows.stride..];
        *sums = [0; PANEL];
        for (inputs, weights) in row.chunks_exact(GROUP).zip(panel.chunks_exact(STEP)) {
            for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(GROUP)) {
                let products = inputs.iter().zip(weights);
                *sum += products.map(|(input, weight)| i32::from(*input) * i32::from(*weight)).sum::<i32>();
            }
        }
    }
}
