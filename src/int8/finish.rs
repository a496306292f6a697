//! From sums of products to a layer's outputs: scales, bias, activation, residual.

use super::kernel::Width;
use super::layout::PANEL;
use super::rows::Scaling;

/// What follows a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Nothing,
    /// The exact form, with erf, to within 2e-5.
    Gelu,
}

/// The largest difference between [`gelu`] and GELU: far below a step of the inputs of the next layer.
#[cfg(test)]
pub const GELU_ERROR: f32 = 2e-5;

/// What turns the sums of a panel's outputs into outputs.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    pub scales: &'a [f32; PANEL],
    /// Sums of each output's weights.
    pub sums: &'a [i32; PANEL],
    pub bias: &'a [f32; PANEL],
    pub after: After,
}

/// What is added to the outputs.
pub type Residual<'a> = Option<&'a [f32]>;

/// Writes the outputs of one row, in one loop of vectors.
#[inline(always)]
fn row<const FMA: bool, const GELU: bool>(
    sums: &[i32; PANEL],
    scaling: Scaling,
    columns: &Columns<'_>,
    residual: Option<&[f32; PANEL]>,
    out: &mut [f32; PANEL],
) {
    let output = |at: usize| {
        // Neither overflows, by INPUTS_MAX; checks would prevent vectors.
        let sum = sums[at].wrapping_sub(scaling.zero.wrapping_mul(columns.sums[at]));
        let output = add::<FMA>(sum as f32, scaling.scale * columns.scales[at], columns.bias[at]);
        if GELU { gelu::<FMA>(output) } else { output }
    };
    match residual {
        Some(residual) => (0..PANEL).for_each(|at| out[at] = output(at) + residual[at]),
        None => (0..PANEL).for_each(|at| out[at] = output(at)),
    }
}

/// x times the normal distribution function of x: an odd polynomial for erf, exact at [`GELU_END`] and beyond.
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    // Comparisons, unlike `clamp`, are one instruction each; a number that is none stays so by the product at the end.
    let bounded = if x < GELU_END { x } else { GELU_END };
    let bounded = if bounded > -GELU_END { bounded } else { -GELU_END };
    let u = add::<FMA>(bounded * bounded, 2.0 / (GELU_END * GELU_END), -1.0);
    let [c0, c1, c2, c3, c4, c5, c6, c7, c8, c9] = ERF_RATIO;
    let step = |ratio: f32, coefficient: f32| add::<FMA>(ratio, u, coefficient);
    let ratio = [c8, c7, c6, c5, c4, c3, c2, c1, c0].into_iter().fold(c9, step);
    let erf = ratio * bounded;
    let half = 0.5 * x;
    add::<FMA>(half, erf, half)
}

/// `a * b + c`, by one instruction where there is one.
#[inline(always)]
fn add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

const GELU_END: f32 = 4.5;

/// erf(x / sqrt(2)) / x as a polynomial in `2 x^2 / GELU_END^2 - 1`, of which x times the error is smallest, with the
/// value `1 / GELU_END` at 1.
#[expect(clippy::excessive_precision, reason = "as they were computed")]
const ERF_RATIO: [f32; 10] = [
    0.3138085603713989,
    -0.15435190498828888,
    0.10943607985973358,
    -0.0808616578578949,
    0.05663307011127472,
    -0.03504352644085884,
    0.021535489708185196,
    -0.015522646717727184,
    0.008535917848348618,
    -0.0019471575506031513,
];

/// A block of rows of one panel.
pub struct Block<'a> {
    pub sums: &'a [[i32; PANEL]],
    pub scaling: &'a [Scaling],
    /// Of the whole layer: rows of `stride` numbers, of which the panel's begin at `start`, up to `width`.
    pub out: &'a mut [f32],
    pub residual: Residual<'a>,
    pub stride: usize,
    pub start: usize,
    pub width: usize,
}

pub fn block(width: Width, block: Block<'_>, columns: &Columns<'_>) {
    match width {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a kernel is only chosen where the processor has its instructions.
        Width::Avx512 => unsafe { avx512(block, columns) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Width::Avx2 => unsafe { avx2(block, columns) },
        Width::Portable => rows::<false>(block, columns),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
fn avx512(block: Block<'_>, columns: &Columns<'_>) {
    rows::<true>(block, columns);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(block: Block<'_>, columns: &Columns<'_>) {
    rows::<true>(block, columns);
}

#[inline(always)]
fn rows<const FMA: bool>(block: Block<'_>, columns: &Columns<'_>) {
    match columns.after {
        After::Nothing => each_row::<FMA, false>(block, columns),
        After::Gelu => each_row::<FMA, true>(block, columns),
    }
}

#[inline(always)]
fn each_row<const FMA: bool, const GELU: bool>(block: Block<'_>, columns: &Columns<'_>) {
    for (number, (sums, scaling)) in block.sums.iter().zip(block.scaling).enumerate() {
        let start = number * block.stride + block.start;
        let out = &mut block.out[start..start + block.width];
        let residual = block.residual.map(|residual| &residual[start..start + block.width]);
        if let Ok(out) = <&mut [f32; PANEL]>::try_from(&mut *out) {
            let residual = residual.map(|residual| residual.try_into().expect("as many as outputs"));
            row::<FMA, GELU>(sums, *scaling, columns, residual, out);
            continue;
        }
        let (mut outputs, mut padded) = ([0.0; PANEL], [0.0; PANEL]);
        padded[..block.width].copy_from_slice(residual.unwrap_or(out));
        let residual = residual.is_some().then_some(&padded);
        row::<FMA, GELU>(sums, *scaling, columns, residual, &mut outputs);
        out.copy_from_slice(&outputs[..block.width]);
    }
}
