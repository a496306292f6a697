//! A model's output for a chip: a vector of unit length, and the digest that names the model.

mod composition;

use std::fmt;
use std::str::FromStr;

pub use composition::{Composition, CompositionError, DEPTH_MAX, MEMBERS_MAX, Part, make_unit};

/// How far the length of a stored unit vector may be from 1: the f32 rounding error of up to 4,096 values.
const UNIT_TOLERANCE: f64 = 1e-4;
/// Shortest length by which [`Embedding::from_feature`] still divides, as in the reference.
const NORM_MIN: f32 = 1e-12;
/// A mean of unit vectors shorter than this has a direction set by rounding errors.
const MEAN_NORM_MIN: f64 = 1e-3;

/// A feature of unit length, so that the cosine of two embeddings is their dot product.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding(Box<[f32]>);

/// Why a vector is not an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbeddingError {
    #[error("the vector is empty")]
    Empty,
    #[error("the vector has a value that is not finite at index {0}")]
    NotFinite(usize),
    #[error("the vector has no direction: its length is zero")]
    Zero,
    #[error("the vectors cancel each other out: their mean has no direction")]
    Cancelled,
    #[error("the vector has not unit length")]
    NotUnit,
}

impl Embedding {
    /// Divides `feature` (any length above zero) by its L2 norm.
    ///
    /// # Errors
    /// The feature is empty, zero or not finite, so it has no direction.
    pub fn from_feature(mut feature: Vec<f32>) -> Result<Self, EmbeddingError> {
        if feature.is_empty() {
            return Err(EmbeddingError::Empty);
        }
        if let Some(index) = feature.iter().position(|value| !value.is_finite()) {
            return Err(EmbeddingError::NotFinite(index));
        }
        let norm = feature.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32;
        if norm < NORM_MIN {
            return Err(EmbeddingError::Zero);
        }
        feature.iter_mut().for_each(|value| *value /= norm);
        Ok(Self(feature.into_boxed_slice()))
    }

    /// The embedding of a tracklet: the mean of its members' embeddings, normalised to unit length.
    ///
    /// # Errors
    /// There are no members, or they cancel each other out.
    ///
    /// # Panics
    /// The members differ in dimension, which those of one model never do.
    pub fn mean(members: &[Self]) -> Result<Self, EmbeddingError> {
        if let [only] = members {
            return Ok(only.clone());
        }
        let dimension = members.first().ok_or(EmbeddingError::Empty)?.dimension();
        let mut sum = vec![0.0_f64; dimension];
        for member in members {
            assert_eq!(member.dimension(), dimension, "one model has one dimension");
            sum.iter_mut().zip(&member.0).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let norm = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        if norm < MEAN_NORM_MIN * members.len() as f64 {
            return Err(EmbeddingError::Cancelled);
        }
        Self::from_feature(sum.into_iter().map(|value| (value / norm) as f32).collect())
    }

    /// Restores a former embedding bit for bit.
    ///
    /// # Errors
    /// The vector is empty, or its length is not 1.
    pub fn from_unit(values: Vec<f32>) -> Result<Self, EmbeddingError> {
        if values.is_empty() {
            return Err(EmbeddingError::Empty);
        }
        let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        // The comparison also rejects a NaN length.
        if (length - 1.0).abs() <= UNIT_TOLERANCE {
            Ok(Self(values.into_boxed_slice()))
        } else {
            Err(EmbeddingError::NotUnit)
        }
    }

    /// Number of values.
    pub fn dimension(&self) -> usize {
        self.0.len()
    }

    /// The values, in the model's order.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// Cosine similarity in [-1, 1]; both embeddings must come from one model.
    pub fn cosine(&self, other: &Self) -> f32 {
        self.0.iter().zip(&other.0).map(|(a, b)| a * b).sum()
    }

    /// Returns the values by move.
    pub fn into_vec(self) -> Vec<f32> {
        self.0.into_vec()
    }
}

impl AsRef<[f32]> for Embedding {
    fn as_ref(&self) -> &[f32] {
        self.as_slice()
    }
}

/// SHA-256 that identifies a model by what it computes: weights, architecture, feature point and preprocessing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelDigest([u8; 32]);

impl ModelDigest {
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a model digest is 64 hexadecimal digits")]
pub struct DigestError;

impl FromStr for ModelDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestError)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelDigest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_keeps_its_direction_and_gets_unit_length() {
        let embedding = Embedding::from_feature(vec![3.0, 4.0]).expect("a direction");
        assert_eq!(embedding.as_slice(), &[0.6, 0.8]);
        assert!((embedding.cosine(&embedding) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_tracklet_points_between_its_members() {
        let unit = |feature: [f32; 2]| Embedding::from_feature(feature.to_vec()).expect("a direction");
        let (east, north) = (unit([1.0, 0.0]), unit([0.0, 1.0]));
        let between = Embedding::mean(&[east.clone(), north]).expect("a direction");
        assert!((between.cosine(&unit([1.0, 1.0])) - 1.0).abs() < 1e-6);
        assert_eq!(Embedding::mean(std::slice::from_ref(&east)), Ok(east.clone()));
        assert_eq!(Embedding::mean(&[]), Err(EmbeddingError::Empty));
        for almost_west in [[-1.0, 0.0], [-1.0, 1e-6]] {
            let cancelled = Embedding::mean(&[east.clone(), unit(almost_west)]);
            assert_eq!(cancelled, Err(EmbeddingError::Cancelled));
        }
    }

    #[test]
    fn a_digest_reads_what_it_prints() {
        let digest = ModelDigest::new(std::array::from_fn(|index| index as u8 * 7));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("12".parse::<ModelDigest>(), Err(DigestError));
    }

    #[test]
    fn a_vector_without_direction_is_refused() {
        assert_eq!(Embedding::from_feature(vec![]), Err(EmbeddingError::Empty));
        assert_eq!(Embedding::from_feature(vec![0.0; 4]), Err(EmbeddingError::Zero));
        assert_eq!(Embedding::from_feature(vec![1.0, f32::NAN]), Err(EmbeddingError::NotFinite(1)));
        assert_eq!(Embedding::from_unit(vec![1.0, f32::NAN]), Err(EmbeddingError::NotUnit));
        assert_eq!(Embedding::from_unit(vec![1.0, 0.1]), Err(EmbeddingError::NotUnit));
    }
}
