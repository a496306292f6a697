//! How the vectors of an ensemble are composed of its members', and how its members' ranked lists are fused.

use std::ops::Range;

/// Members of an ensemble.
pub const MEMBERS_MAX: usize = 8;
/// Ranks of each member that count.
pub const DEPTH_MAX: u32 = 1000;
const K_MAX: u32 = 1000;
/// Weights differ by a factor of at most a million, so that no part of a vector vanishes in f32.
const WEIGHT_MIN: f64 = 1e-3;
const WEIGHT_MAX: f64 = 1e3;
/// A part shorter than this has no direction.
const PART_MIN: f64 = 1e-12;

/// The members' vectors one after the other, and the parameters of the fusion of their ranked lists.
///
/// With weights w, member m has the share s(m) = w(m) / (sum of w). Its unit vector is multiplied by the root of s(m), so
/// that the whole has unit length, and the cosine of two wholes is the mean of the members' cosines, weighted by w.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Composition {
    /// The first `members` of them.
    parts: [Part; MEMBERS_MAX],
    members: usize,
    k: u32,
    depth: u32,
}

/// What one member contributes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// Values of the member's vectors.
    pub dimension: usize,
    pub weight: f64,
}

/// Why there is no such ensemble.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum CompositionError {
    #[error("an ensemble has 2 to {MEMBERS_MAX} members, not {0}")]
    Members(usize),
    #[error("the vectors of a member have no values")]
    Dimension,
    #[error("a weight is {0}; it must be {WEIGHT_MIN} to {WEIGHT_MAX}")]
    Weight(f64),
    #[error("k is {0}; it must be 1 to {K_MAX}")]
    K(u32),
    #[error("depth is {0}; it must be 1 to {DEPTH_MAX}")]
    Depth(u32),
}

impl Composition {
    /// # Errors
    /// A value is out of bounds.
    pub fn new(parts: &[Part], k: u32, depth: u32) -> Result<Self, CompositionError> {
        let members = parts.len();
        if !(2..=MEMBERS_MAX).contains(&members) {
            return Err(CompositionError::Members(members));
        }
        if parts.iter().any(|part| part.dimension == 0) {
            return Err(CompositionError::Dimension);
        }
        let is_weight = |part: &&Part| (WEIGHT_MIN..=WEIGHT_MAX).contains(&part.weight);
        if let Some(part) = parts.iter().find(|part| !is_weight(part)) {
            return Err(CompositionError::Weight(part.weight));
        }
        if !(1..=K_MAX).contains(&k) {
            return Err(CompositionError::K(k));
        }
        if !(1..=DEPTH_MAX).contains(&depth) {
            return Err(CompositionError::Depth(depth));
        }
        let mut of = [Part::default(); MEMBERS_MAX];
        of[..members].copy_from_slice(parts);
        Ok(Self { parts: of, members, k, depth })
    }

    /// One for each member.
    pub fn parts(&self) -> &[Part] {
        &self.parts[..self.members]
    }

    /// The constant of the fusion: rank r counts 1 / (k + r).
    pub fn k(&self) -> u32 {
        self.k
    }

    /// Ranks of each member that count.
    pub fn depth(&self) -> usize {
        self.depth as usize
    }

    /// Values of a whole vector.
    pub fn dimension(&self) -> usize {
        self.parts().iter().map(|part| part.dimension).sum()
    }

    /// Where each member's values are in a whole vector.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.parts().iter().scan(0, |end, part| {
            let start = *end;
            *end += part.dimension;
            Some(start..*end)
        })
    }

    /// The members' vectors in a whole one, each of unit length; a part without direction is all zero.
    ///
    /// # Panics
    /// `vector` has another dimension.
    pub fn unit_parts(&self, vector: &[f32]) -> Vec<Vec<f32>> {
        let unit = |range: Range<usize>| {
            let mut part = vector[range].to_vec();
            make_unit(&mut part);
            part
        };
        self.ranges().map(unit).collect()
    }

    /// The whole of the members' unit vectors; it has unit length.
    ///
    /// # Panics
    /// They are not one for each member, with its dimension.
    pub fn compose<'v>(&self, vectors: impl IntoIterator<Item = &'v [f32]>) -> Vec<f32> {
        let sum: f64 = self.parts().iter().map(|part| part.weight).sum();
        let mut whole = Vec::with_capacity(self.dimension());
        let mut vectors = vectors.into_iter();
        for Part { dimension, weight } in self.parts() {
            let vector = vectors.next().expect("one for each member");
            assert_eq!(vector.len(), *dimension, "of its dimension");
            let factor = (weight / sum).sqrt() as f32;
            whole.extend(vector.iter().map(|value| value * factor));
        }
        whole
    }
}

/// Divides by the length; a vector without direction becomes zero.
pub fn make_unit(values: &mut [f32]) {
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length < PART_MIN {
        values.fill(0.0);
    } else {
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(dimension: usize, weight: f64) -> Part {
        Part { dimension, weight }
    }

    fn cosine(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    #[test]
    fn the_cosine_of_the_whole_is_the_weighted_mean_of_the_members() {
        let composition = Composition::new(&[part(2, 1.0), part(3, 0.5)], 3, 100).expect("an ensemble");
        let (a, b) = ([vec![0.6, 0.8], vec![0.0, 1.0, 0.0]], [vec![1.0, 0.0], vec![0.0, -0.6, 0.8]]);
        let whole = |members: &[Vec<f32>; 2]| composition.compose(members.iter().map(Vec::as_slice));
        assert_eq!(composition.dimension(), 5);
        assert!((cosine(&whole(&a), &whole(&a)) - 1.0).abs() < 1e-6);
        assert!((cosine(&whole(&a), &whole(&b)) - (0.6 - 0.5 * 0.6) / 1.5).abs() < 1e-6);
        for (found, member) in composition.unit_parts(&whole(&a)).iter().zip(&a) {
            assert!(found.iter().zip(member).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        }
        assert_eq!(composition.unit_parts(&[0.6, 0.8, 0.0, 0.0, 0.0])[1], [0.0; 3]);
    }

    #[test]
    fn what_is_no_ensemble_is_refused() {
        let two = [part(2, 1.0), part(3, 1.0)];
        let check = |parts: &[Part], k, depth, expected: &str| {
            let error = Composition::new(parts, k, depth).expect_err("no ensemble").to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&two[..1], 3, 100, "2 to 8 members, not 1");
        check(&[two[0]; 9], 3, 100, "not 9");
        check(&[two[0], part(0, 1.0)], 3, 100, "no values");
        check(&two, 0, 100, "k is 0");
        check(&two, 3, 0, "depth is 0");
        check(&two, 3, 1001, "1 to 1000");
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-4] {
            check(&[two[0], part(3, weight)], 3, 100, "a weight is");
        }
    }
}
