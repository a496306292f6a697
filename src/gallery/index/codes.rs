//! int8 codes of unit vectors, and bounds on the error of a product of codes.

use super::ROWS;
use super::block::{BLOCK, Block};
use super::grown::Grown;
use super::kernel::{Factor, Rows};
use crate::embedding::Composition;

/// Codes are symmetric, so that opposite vectors have opposite codes.
const CODE_MAX: f32 = 127.0;
/// Covers the rounding of lengths and of scores to f32, for up to 4,096 values.
const ROUNDING: f32 = 4e-6;

/// Allowed difference between two computations of a vector's residual.
const RESIDUAL_ROUNDING: f32 = 1e-5;

/// A vector as codes: one part for each member of an ensemble, or the whole as one part.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    parts: Vec<PartCode>,
}

/// A unit vector as `scale * codes`, and the length of the residual.
///
/// The scale minimises the residual, which is therefore orthogonal to the codes.
#[derive(Clone, Debug, PartialEq)]
struct PartCode {
    codes: Vec<i8>,
    scale: f32,
    residual: f32,
}

/// A part of a [`Code`] stored in an index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeRef<'a> {
    /// One for each value.
    pub codes: &'a [i8],
    pub scale: f32,
    pub residual: f32,
}

impl Code {
    /// The code of a vector with finite values, as one part.
    pub fn new(vector: &[f32]) -> Self {
        Self { parts: vec![PartCode::new(vector)] }
    }

    /// The code of a vector, part by part if it is of an ensemble.
    ///
    /// # Panics
    /// It has another dimension than the ensemble.
    pub fn composed(vector: &[f32], composition: Option<&Composition>) -> Self {
        let Some(composition) = composition else { return Self::new(vector) };
        Self { parts: composition.unit_parts(vector).iter().map(|part| PartCode::new(part)).collect() }
    }

    pub fn parts(&self) -> impl ExactSizeIterator<Item = CodeRef<'_>> {
        self.parts.iter().map(PartCode::view)
    }
}

impl PartCode {
    fn new(vector: &[f32]) -> Self {
        let largest = vector.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        // A step that underflows would divide by zero; such a vector is all residual.
        let step = largest / CODE_MAX;
        let inverse = if step >= f32::MIN_POSITIVE { 1.0 / step } else { 0.0 };
        let codes: Vec<i8> = vector.iter().map(|value| (value * inverse).round() as i8).collect();
        let pairs = || vector.iter().zip(&codes).map(|(value, code)| (f64::from(*value), f64::from(*code)));
        let along: f64 = pairs().map(|(value, code)| value * code).sum();
        let length: f64 = pairs().map(|(_, code)| code * code).sum();
        let scale = if length > 0.0 { (along / length) as f32 } else { 0.0 };
        let residual = residual(vector, &codes, scale);
        Self { codes, scale, residual }
    }

    fn view(&self) -> CodeRef<'_> {
        CodeRef { codes: &self.codes, scale: self.scale, residual: self.residual }
    }
}

/// The length of the residual of a vector.
fn residual(vector: &[f32], codes: &[i8], scale: f32) -> f32 {
    let left = |(value, code): (&f32, &i8)| (f64::from(*value) - f64::from(scale) * f64::from(*code)).powi(2);
    vector.iter().zip(codes).map(left).sum::<f64>().sqrt() as f32
}

impl CodeRef<'_> {
    /// Whether it can be the code of this vector, which rules out vectors of another direction.
    pub fn is_of(&self, vector: &[f32]) -> bool {
        let found = residual(vector, self.codes, self.scale);
        vector.len() == self.codes.len() && (found - self.residual).abs() <= RESIDUAL_ROUNDING
    }
}

/// The codes of a segment's rows, of one part, contiguous in memory.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    dimension: usize,
    blocks: Grown<Block>,
    measures: Grown<Measure>,
    /// Sums of the rows' codes.
    sums: Grown<i32>,
}

/// What a score needs of a row in addition to the product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    pub scale: f32,
    pub residual: f32,
}

impl Codes {
    /// No rows, for vectors with `dimension` values.
    pub fn new(dimension: usize) -> Self {
        Self { dimension, blocks: Grown::new(), measures: Grown::new(), sums: Grown::new() }
    }

    /// Appends a code as a row.
    ///
    /// # Panics
    /// The code has another dimension.
    pub fn push(&mut self, code: CodeRef<'_>) {
        assert_eq!(code.codes.len(), self.dimension, "rows have one dimension");
        let blocks: Vec<Block> = code.codes.chunks(BLOCK).map(Block::padded).collect();
        let sum = code.codes.iter().map(|code| i32::from(*code)).sum();
        self.extend(&blocks, &[Measure { scale: code.scale, residual: code.residual }], &[sum]);
    }

    /// Appends rows, with the sums of their codes.
    pub fn extend(&mut self, blocks: &[Block], measures: &[Measure], sums: &[i32]) {
        self.blocks.extend(blocks, ROWS * self.dimension.div_ceil(BLOCK));
        self.measures.extend(measures, ROWS);
        self.sums.extend(sums, ROWS);
    }

    /// Sum of a row's codes.
    pub fn sum(&self, at: usize) -> i32 {
        self.sums[at]
    }

    pub fn rows<'a>(&'a self, at: &'a [u16]) -> Rows<'a> {
        Rows { blocks: &self.blocks, sums: &self.sums, at }
    }

    pub fn row(&self, at: usize) -> &[Block] {
        let stride = self.dimension.div_ceil(BLOCK);
        &self.blocks[at * stride..][..stride]
    }

    /// One for each row.
    pub fn measures(&self) -> &[Measure] {
        &self.measures
    }

    pub fn code(&self, at: usize) -> CodeRef<'_> {
        let Measure { scale, residual } = self.measures[at];
        CodeRef { codes: &Block::flat(self.row(at))[..self.dimension], scale, residual }
    }
}

/// A unit query in two planes of codes: the second encodes the residual of the first.
pub(super) struct QueryCode {
    coarse: Plane,
    fine: Plane,
}

struct Plane {
    factor: Factor,
    scale: f32,
    residual: f32,
}

/// Bounds on the cosine of two vectors, computed from their codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounds {
    pub lower: f32,
    pub upper: f32,
}

impl QueryCode {
    pub fn new(query: &[f32]) -> Self {
        let coarse = PartCode::new(query);
        let rest = |(value, code): (&f32, &i8)| value - coarse.scale * f32::from(*code);
        let fine = PartCode::new(&query.iter().zip(&coarse.codes).map(rest).collect::<Vec<_>>());
        Self { coarse: Plane::new(&coarse), fine: Plane::new(&fine) }
    }

    pub fn coarse(&self) -> &Factor {
        &self.coarse.factor
    }

    pub fn fine(&self) -> &Factor {
        &self.fine.factor
    }

    /// Upper bound of the cosine, from the product of the coarse plane with the row.
    ///
    /// With q = q' + r and x = x' + s (codes and residuals): q x = q' x' + q' s + r x. Each of the last two terms is at
    /// most the product of its factors' lengths, and q' and x have a length of at most 1.
    pub fn upper(&self, product: i32, row: Measure) -> f32 {
        product as f32 * self.coarse.scale * row.scale + row.residual + self.coarse.residual + ROUNDING
    }

    /// Bounds from the products of both planes with the row.
    ///
    /// Here r is almost zero, and s is orthogonal to x', so only the component of q' orthogonal to x' contributes to q'
    /// s: the closer the vectors, the narrower the bounds.
    pub fn bounds(&self, products: [i32; 2], row: Measure) -> Bounds {
        let [coarse, fine] = products.map(|product| product as f32);
        let score = (coarse * self.coarse.scale + fine * self.fine.scale) * row.scale;
        let length = 1.0 - row.residual * row.residual;
        // No unit vector has a longer residual; where a code claims one, nothing is known of the orthogonal component.
        let along = if length > 0.5 { score * score / length } else { 0.0 };
        let beside = (1.0 - along + ROUNDING).clamp(0.0, 1.0).sqrt() + self.fine.residual;
        let error = beside * row.residual + self.fine.residual + ROUNDING;
        Bounds { lower: score - error, upper: score + error }
    }
}

impl Plane {
    fn new(code: &PartCode) -> Self {
        Self { factor: Factor::new(&code.codes), scale: code.scale, residual: code.residual }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::embedding::Embedding;

    /// The bounds of the coarse plane and of both for two vectors, and their cosine; `None` where one has no direction.
    fn look(query: Vec<f32>, row: Vec<f32>) -> Option<(f32, Bounds, f64)> {
        let query = Embedding::from_feature(query).ok()?;
        let row = Embedding::from_feature(row).ok()?;
        let mut codes = Codes::new(row.dimension());
        codes.push(PartCode::new(row.as_slice()).view());
        let code = QueryCode::new(query.as_slice());
        let measure = codes.measures()[0];
        let products = [code.coarse(), code.fine()].map(|plane| {
            let mut product = [0];
            plane.products(codes.rows(&[0]), codes.rows(&[]), &mut product);
            product[0]
        });
        let values = query.as_slice().iter().zip(row.as_slice());
        let cosine = values.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        Some((code.upper(products[0], measure), code.bounds(products, measure), cosine))
    }

    fn check(query: Vec<f32>, row: Vec<f32>) {
        let Some((coarse, Bounds { lower, upper }, cosine)) = look(query, row) else { return };
        assert!(cosine <= f64::from(coarse), "{cosine} {coarse}");
        assert!(f64::from(lower) <= cosine && cosine <= f64::from(upper), "{lower} {cosine} {upper}");
    }

    proptest! {
        #[test]
        fn the_cosine_lies_within_its_bounds(
            pairs in prop::collection::vec((-1.0..1.0_f32, -1.0..1.0_f32), 1..300),
            spike in 0.0..1e6_f32,
            shrink in prop::sample::select(vec![1.0_f32, 1e-3, 1e-20]),
            apart in prop::sample::select(vec![1e-6_f32, 1e-4, 1e-2, 0.1]),
        ) {
            let (mut a, mut b): (Vec<f32>, Vec<f32>) = pairs.into_iter().map(|(a, b)| (a, b * shrink)).unzip();
            check(a.clone(), b.clone());
            check(a.clone(), a.clone());
            check(a.clone(), a.iter().zip(&b).map(|(a, b)| a + b * apart).collect());
            check(a.clone(), a.iter().zip(&b).map(|(a, b)| b * apart - a).collect());
            a[0] += spike;
            b[0] -= spike;
            check(a, b);
        }
    }

    #[test]
    fn bounds_are_narrow_and_narrower_for_vectors_that_are_close() {
        let width = |apart: f32| {
            let wave =
                |phase: f32| (0..768).map(|n| (n as f32 * phase).sin() + (n as f32 * 0.7).sin()).collect();
            let (_, bounds, cosine) = look(wave(0.31), wave(0.31 + apart)).expect("two directions");
            (cosine, bounds.upper - bounds.lower)
        };
        let (far, near, same) = (width(0.1), width(0.001), width(0.0));
        assert!(far.0 < 0.6 && far.1 < 0.014, "{far:?}");
        assert!(near.0 > 0.9 && near.1 < 0.5 * far.1, "{near:?}");
        assert!(same.1 < 1e-3, "{same:?}");
    }
}
