//! Ensembles: models that are made of models.
//!
//! The folder of an ensemble has a `model.toml` of its own, of format 2, which names the members, and a model folder for
//! each: `members/0`, `members/1`, ... It is complete in itself, wherever its members came from.

pub(super) mod error;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;

pub use error::EnsembleError;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::native::{self, DESCRIPTION, DESCRIPTION_BYTES_MAX, FORMAT_OF_ENSEMBLES, NativeError, ReadFile};
use super::open::{OpenError, OpenModel};
use crate::embedding::{Composition, CompositionError, MEMBERS_MAX, ModelDigest, Part};

/// Separates these hashes from any other use of SHA-256, and from a later layout.
const DOMAIN: &[u8] = b"shipreid ensemble digest 1";

/// A model made of models, which embed the same chips.
#[derive(Clone, Debug, PartialEq)]
pub struct Ensemble {
    pub digest: ModelDigest,
    /// One for each part of the composition.
    pub members: Vec<OpenModel>,
    pub composition: Composition,
}

/// `model.toml` of an ensemble.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnsembleDescription {
    format: u32,
    /// 64 hexadecimal digits; verified when the members are read.
    pub digest: String,
    /// Its origin, for display.
    pub source: String,
    pub k: u32,
    pub depth: u32,
    pub members: Vec<MemberDescription>,
}

/// What an ensemble says of a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberDescription {
    /// 64 hexadecimal digits.
    pub digest: String,
    pub weight: f64,
}

/// The folder of a member within the ensemble's.
pub fn member_folder(number: usize) -> String {
    format!("members/{number}")
}

impl Ensemble {
    /// # Errors
    /// A value is out of bounds, or the members cannot embed the same chips.
    pub fn new(members: Vec<OpenModel>, weights: &[f64], k: u32, depth: u32) -> Result<Self, EnsembleError> {
        if weights.len() != members.len() {
            return Err(EnsembleError::Weights { members: members.len(), weights: weights.len() });
        }
        let part = |(member, weight): (&OpenModel, &f64)| Part {
            dimension: member.architecture.embed_dim(),
            weight: *weight,
        };
        let parts: Vec<Part> = members.iter().zip(weights).map(part).collect();
        let composition = Composition::new(&parts, k, depth)?;
        check_members(&members)?;
        let digest = digest(members.iter().map(|member| member.digest), &composition);
        Ok(Self { digest, members, composition })
    }

    pub fn description(&self, source: &str) -> EnsembleDescription {
        let described = |(member, part): (&OpenModel, &Part)| MemberDescription {
            digest: member.digest.to_string(),
            weight: part.weight,
        };
        EnsembleDescription {
            format: FORMAT_OF_ENSEMBLES,
            digest: self.digest.to_string(),
            source: source.to_owned(),
            k: self.composition.k(),
            depth: self.composition.depth() as u32,
            members: self.members.iter().zip(self.composition.parts()).map(described).collect(),
        }
    }

    /// The files of its folder; members keep no history of their own.
    pub(super) fn files(&self, source: &str) -> Vec<(String, Vec<u8>)> {
        let mut files = vec![(DESCRIPTION.to_owned(), self.description(source).to_toml().into_bytes())];
        for (number, member) in self.members.iter().enumerate() {
            let place = |(name, content)| (format!("{}/{name}", member_folder(number)), content);
            files.extend(member.files(source).into_iter().map(place));
        }
        files
    }

    /// Reads the files of an ensemble's folder, and verifies them.
    ///
    /// # Errors
    /// A file is missing, malformed or too large, or the members are not those that the ensemble names.
    pub(super) fn read(path: &Path, read: ReadFile<'_>) -> Result<Self, OpenError> {
        let ours = |cause: NativeError| OpenError::new(path, cause);
        let text = read(DESCRIPTION, DESCRIPTION_BYTES_MAX).map_err(ours)?;
        let described = EnsembleDescription::parse(&path.join(DESCRIPTION), &text).map_err(ours)?;
        let member = |number: usize| -> Result<OpenModel, OpenError> {
            let folder = member_folder(number);
            let place = path.join(&folder);
            let contents = native::read_with(&place, &|name, max| read(&format!("{folder}/{name}"), max));
            let member = OpenModel::verified(&place, contents.map_err(ours)?)?;
            let named = &described.members[number].digest;
            if member.digest.to_string() == *named {
                Ok(member)
            } else {
                Err(OpenError::other_digest(&place, named.clone(), member.digest))
            }
        };
        let members = (0..described.members.len()).map(member).collect::<Result<Vec<_>, OpenError>>()?;
        let weights: Vec<f64> = described.members.iter().map(|member| member.weight).collect();
        let found = Self::new(members, &weights, described.k, described.depth);
        let found = found.map_err(|cause| OpenError::new(path, cause))?;
        if found.description(&described.source) == described {
            Ok(found)
        } else {
            Err(OpenError::other_digest(path, described.digest, found.digest))
        }
    }
}

impl EnsembleDescription {
    /// The form that is written to disk.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a description is a table")
    }

    /// The description in `bytes`, which were read from `path`.
    ///
    /// # Errors
    /// It is malformed, of another format, or of too few or too many members.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, NativeError> {
        let text = String::from_utf8_lossy(bytes);
        let described: Self =
            native::parse_toml(path, &text, FORMAT_OF_ENSEMBLES, |text| toml::from_str(text))?;
        let refused = |cause: String| NativeError::Description { path: path.to_owned(), cause };
        let members = described.members.len();
        if !(2..=MEMBERS_MAX).contains(&members) {
            return Err(refused(CompositionError::Members(members).to_string()));
        }
        // Before any of them takes memory.
        let mut named = BTreeSet::new();
        for MemberDescription { digest, .. } in &described.members {
            let digest: ModelDigest =
                digest.parse().map_err(|_| refused(format!("{digest} is no digest")))?;
            if !named.insert(digest) {
                return Err(refused(EnsembleError::Twice(digest).to_string()));
            }
        }
        Ok(described)
    }

    /// How vectors of members with these dimensions are composed.
    ///
    /// # Errors
    /// A value is out of bounds.
    pub fn composition(&self, dimensions: &[usize]) -> Result<Composition, CompositionError> {
        let weights = self.members.iter().map(|member| member.weight);
        let parts =
            dimensions.iter().zip(weights).map(|(dimension, weight)| Part { dimension: *dimension, weight });
        Composition::new(&parts.collect::<Vec<_>>(), self.k, self.depth)
    }
}

fn check_members(members: &[OpenModel]) -> Result<(), EnsembleError> {
    let Some((first, others)) = members.split_first() else { return Ok(()) };
    for (number, other) in others.iter().enumerate() {
        if members[..=number].iter().any(|earlier| earlier.digest == other.digest) {
            return Err(EnsembleError::Twice(other.digest));
        }
        let pair = (first.digest, other.digest);
        if first.architecture.preprocessing() != other.architecture.preprocessing() {
            return Err(EnsembleError::Preprocessing { first: pair.0, other: pair.1 });
        }
        if first.quantized.is_some() != other.quantized.is_some() {
            return Err(EnsembleError::Precision { first: pair.0, other: pair.1 });
        }
    }
    Ok(())
}

/// Over the members and everything that decides how they are combined.
fn digest(members: impl Iterator<Item = ModelDigest>, composition: &Composition) -> ModelDigest {
    let mut hasher = Sha256::new();
    hasher.update((DOMAIN.len() as u64).to_le_bytes());
    hasher.update(DOMAIN);
    hasher.update(composition.k().to_le_bytes());
    hasher.update((composition.depth() as u64).to_le_bytes());
    for (member, part) in members.zip(composition.parts()) {
        hasher.update(member.as_bytes());
        hasher.update(part.weight.to_le_bytes());
    }
    ModelDigest::new(hasher.finalize().into())
}
