//! Sums by `tdpbusd` on tiles of 16 rows of 64 bytes.

use std::arch::asm;

use super::layout::{DEPTH, PANEL, STEP};
use super::operands::Codes;

/// Two tiles of inputs, by two of weights, make four tiles of sums.
pub const ROWS: usize = 32;
const TILE_ROWS: usize = 16;

/// What `ldtilecfg` reads: rows and bytes of a row for each of the eight tiles.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Tiles 0 to 3 hold sums, 4 and 5 inputs, 6 and 7 weights.
    const fn new(count: usize) -> Self {
        let first = if count < TILE_ROWS { count } else { TILE_ROWS } as u8;
        let second = (count - first as usize) as u8;
        // A tile without rows is an error, and so is its use.
        let second = if second == 0 { 1 } else { second };
        let mut rows = [0; 16];
        let of_tiles = [first, first, second, second, first, second, TILE_ROWS as u8, TILE_ROWS as u8];
        let mut tile = 0;
        while tile < 8 {
            rows[tile] = of_tiles[tile];
            tile += 1;
        }
        let mut row_bytes = [0; 16];
        let mut tile = 0;
        while tile < 8 {
            row_bytes[tile] = 64;
            tile += 1;
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// For each number of rows.
static SHAPES: [Shapes; ROWS + 1] = {
    let mut shapes = [const { Shapes::new(1) }; ROWS + 1];
    let mut count = 1;
    while count <= ROWS {
        shapes[count] = Shapes::new(count);
        count += 1;
    }
    shapes
};

/// # Safety
/// The processor has [`Level::Amx`](crate::processor::Level), which the system has to allow; the rows are as long as the panel is deep, and at most [`ROWS`].
pub unsafe fn sums(rows: Codes<'_>, panel: &[i8], ahead: &[i8], sums: &mut [[i32; PANEL]]) {
    if rows.count == 0 {
        return;
    }
    let steps = panel.len() / (PANEL * DEPTH);
    let first = rows.codes.as_ptr();
    let second = if rows.count > TILE_ROWS { TILE_ROWS * rows.stride } else { 0 };
    let (ahead_from, advance) =
        if ahead.is_empty() { (panel.as_ptr(), 0) } else { (ahead.as_ptr(), 512_usize) };
    // SAFETY: tile registers are not used by compiled code. Loads read 64 bytes of each of the rows that the shapes
    // name, and whole steps of the panel; stores write the sums of those rows.
    unsafe {
        asm!("ldtilecfg [{shapes}]", shapes = in(reg) &raw const SHAPES[rows.count], options(nostack));
        if rows.count > TILE_ROWS {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{first} + {stride}]",
                "tileloadd tmm6, [{weights} + {step}]",
                "tileloadd tmm7, [{weights} + {step} + 64]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{second} + {stride}]",
                "tdpbusd tmm1, tmm4, tmm7",
                "prefetcht0 [{ahead} + 0]",
                "prefetcht0 [{ahead} + 64]",
                "prefetcht0 [{ahead} + 128]",
                "prefetcht0 [{ahead} + 192]",
                "prefetcht0 [{ahead} + 256]",
                "prefetcht0 [{ahead} + 320]",
                "prefetcht0 [{ahead} + 384]",
                "prefetcht0 [{ahead} + 448]",
                "tdpbusd tmm2, tmm5, tmm6",
                "tdpbusd tmm3, tmm5, tmm7",
                "add {first}, 64",
                "add {second}, 64",
                "add {weights}, 2048",
                "add {ahead}, {advance}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{out} + {step}], tmm0",
                "tilestored [{out} + {step} + 64], tmm1",
                "tilestored [{out} + {step} + 2048], tmm2",
                "tilestored [{out} + {step} + 2112], tmm3",
                first = inout(reg) first => _,
                second = inout(reg) first.add(second) => _,
                weights = inout(reg) panel.as_ptr() => _,
                steps = inout(reg) steps => _,
                ahead = inout(reg) ahead_from => _,
                advance = in(reg) advance,
                stride = in(reg) rows.stride,
                step = in(reg) STEP,
                out = in(reg) sums.as_mut_ptr(),
                options(nostack)
            );
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1",
                "2:",
                "tileloadd tmm4, [{first} + {stride}]",
                "tileloadd tmm6, [{weights} + {step}]",
                "tileloadd tmm7, [{weights} + {step} + 64]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tdpbusd tmm1, tmm4, tmm7",
                "prefetcht0 [{ahead} + 0]",
                "prefetcht0 [{ahead} + 64]",
                "prefetcht0 [{ahead} + 128]",
                "prefetcht0 [{ahead} + 192]",
                "prefetcht0 [{ahead} + 256]",
                "prefetcht0 [{ahead} + 320]",
                "prefetcht0 [{ahead} + 384]",
                "prefetcht0 [{ahead} + 448]",
                "add {first}, 64",
                "add {weights}, 2048",
                "add {ahead}, {advance}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{out} + {step}], tmm0",
                "tilestored [{out} + {step} + 64], tmm1",
                first = inout(reg) first => _,
                weights = inout(reg) panel.as_ptr() => _,
                steps = inout(reg) steps => _,
                ahead = inout(reg) ahead_from => _,
                advance = in(reg) advance,
                stride = in(reg) rows.stride,
                step = in(reg) STEP,
                out = in(reg) sums.as_mut_ptr(),
                options(nostack)
            );
        }
    }
}
