//! int8 codes of unit vectors, and how far a product of codes can be from the product of the vectors.

use super::dot::{BLOCK, dot};

/// Codes are symmetric, so that a vector and its opposite have opposite codes.
const CODE_MAX: f32 = 127.0;
/// Covers the rounding of lengths and of scores to f32, for up to 4,096 values.
const ROUNDING: f32 = 4e-6;

/// One vector as `scale * codes`, and the length of what that leaves out.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    /// Padded with zeros to a whole number of blocks.
    codes: Vec<i8>,
    scale: f32,
    residual: f32,
}

impl Code {
    /// The code of a vector of any length above zero; its values are finite.
    pub fn new(vector: &[f32]) -> Self {
        let largest = vector.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        // A scale that underflows would divide by zero; such a vector is all residual.
        let scale = largest / CODE_MAX;
        let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
        let mut codes: Vec<i8> = vector.iter().map(|value| (value * inverse).round() as i8).collect();
        let left = |(value, code): (&f32, &i8)| f64::from(*value) - f64::from(scale) * f64::from(*code);
        let residual = vector.iter().zip(&codes).map(left).map(|left| left * left).sum::<f64>().sqrt();
        codes.resize(vector.len().next_multiple_of(BLOCK), 0);
        Self { codes, scale, residual: residual as f32 }
    }
}

/// The codes of many unit vectors, row after row in one piece of memory.
#[derive(Clone, Debug)]
pub struct Codes {
    /// Bytes of a row.
    stride: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    residuals: Vec<f32>,
    /// Sums of the rows' codes, which one kind of product needs.
    sums: Vec<i32>,
}

/// Where the cosine of two vectors lies, as far as their codes tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    pub lower: f32,
    pub upper: f32,
}

impl Codes {
    /// No rows yet, of vectors with `dimension` values.
    pub fn new(dimension: usize) -> Self {
        let stride = dimension.next_multiple_of(BLOCK);
        Self { stride, codes: vec![], scales: vec![], residuals: vec![], sums: vec![] }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// Adds a unit vector as the last row.
    ///
    /// # Panics
    /// When it has another dimension.
    pub fn push(&mut self, vector: &[f32]) {
        let code = Code::new(vector);
        assert_eq!(code.codes.len(), self.stride, "rows have one dimension");
        self.sums.push(code.codes.iter().map(|code| i32::from(*code)).sum());
        self.codes.extend(&code.codes);
        self.scales.push(code.scale);
        self.residuals.push(code.residual);
    }

    /// Bounds on the cosine of a unit query and row `row`.
    ///
    /// With q = q' + r and x = x' + s (codes and residuals): q x = q' x' + q' s + r x, and of the last two terms
    /// neither is longer than the product of its factors' lengths.
    pub fn bounds(&self, query: &Code, row: usize) -> Bounds {
        let codes = &self.codes[row * self.stride..][..self.stride];
        let product = dot(&query.codes, codes, self.sums[row]);
        let score = product as f32 * query.scale * self.scales[row];
        let error = (1.0 + query.residual) * self.residuals[row] + query.residual + ROUNDING;
        Bounds { lower: score - error, upper: score + error }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::embedding::Embedding;

    fn check(a: Vec<f32>, b: Vec<f32>) {
        let [Ok(a), Ok(b)] = [a, b].map(Embedding::from_feature) else { return };
        let mut codes = Codes::new(b.dimension());
        codes.push(b.as_slice());
        let Bounds { lower, upper } = codes.bounds(&Code::new(a.as_slice()), 0);
        let values = a.as_slice().iter().zip(b.as_slice());
        let cosine: f64 = values.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!(f64::from(lower) <= cosine && cosine <= f64::from(upper), "{lower} {cosine} {upper}");
    }

    proptest! {
        #[test]
        fn the_cosine_lies_within_its_bounds(
            pairs in prop::collection::vec((-1.0..1.0_f32, -1.0..1.0_f32), 1..300),
            spike in 0.0..1e6_f32,
            shrink in prop::sample::select(vec![1.0_f32, 1e-3, 1e-20]),
        ) {
            let (mut a, mut b): (Vec<f32>, Vec<f32>) = pairs.into_iter().map(|(a, b)| (a, b * shrink)).unzip();
            check(a.clone(), b.clone());
            check(a.clone(), a.clone());
            a[0] += spike;
            b[0] -= spike;
            check(a, b);
        }
    }

    #[test]
    fn bounds_of_ordinary_vectors_are_narrow() {
        let wave = |phase: f32| Embedding::from_feature((0..768).map(|n| (n as f32 * phase).sin()).collect());
        let (a, b) = (wave(0.31).expect("a direction"), wave(0.32).expect("a direction"));
        let mut codes = Codes::new(768);
        codes.push(b.as_slice());
        let Bounds { lower, upper } = codes.bounds(&Code::new(a.as_slice()), 0);
        assert!(upper - lower < 0.02, "{lower} {upper}");
    }
}
