//! What a model's folder states about it, without reading its parameters.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::at;
use super::calibrator::{CALIBRATOR, read_calibrator};
use super::provenance::{PROVENANCE, Provenance};
use crate::embedding::ModelDigest;
use crate::matching::Calibrator;
use crate::weights::coded::Quantization;
use crate::weights::family::Architecture;
use crate::weights::native::{self, Description};

/// A model on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredModel {
    pub digest: ModelDigest,
    /// Bytes on disk.
    pub bytes: u64,
    pub condition: Condition,
}

/// Whether a model on disk can be used, as far as is known.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    Intact(Box<Facts>),
    /// The reason.
    Damaged(String),
}

/// What a model's folder states about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    pub architecture: Architecture,
    /// Of a model in int8.
    pub quantization: Option<Quantization>,
    pub provenance: Provenance,
    /// Of this model.
    pub calibrator: Option<Arc<Calibrator>>,
}

impl StoredModel {
    /// Seconds since 1970; 0 for a damaged model.
    pub(super) fn created_at(&self) -> u64 {
        match &self.condition {
            Condition::Intact(facts) => facts.provenance.created_at,
            Condition::Damaged(_) => 0,
        }
    }
}

/// Inspects a model without reading its parameters, which keeps the start fast with any number of models.
pub(super) fn inspect(folder: &Path, digest: ModelDigest) -> StoredModel {
    let place = folder.join(digest.to_string());
    let condition = match facts(folder, &place, digest) {
        Ok(facts) => Condition::Intact(Box::new(facts)),
        Err(reason) => Condition::Damaged(relative(folder, reason)),
    };
    let length = |name| fs::metadata(place.join(name)).map_or(0, |file| file.len());
    let bytes = files_of(&place).map(length).sum();
    StoredModel { digest, bytes, condition }
}

fn facts(folder: &Path, place: &Path, digest: ModelDigest) -> Result<Facts, String> {
    let description = native::read_description(place).map_err(|cause| cause.to_string())?;
    if description.digest != digest.to_string() {
        return Err(format!("its description is of model {}", description.digest));
    }
    description.architecture.validate().map_err(|cause| cause.to_string())?;
    let tensors = place.join(native::TENSORS);
    let length = fs::metadata(&tensors).map_err(|cause| at(&tensors)(cause).to_string())?.len();
    if length < description.tensor_bytes_min() {
        return Err(format!("{} has {length} bytes, too few for its tensors", tensors.display()));
    }
    let provenance = read_provenance(place).unwrap_or_else(|cause| {
        let cause = relative(folder, cause);
        tracing::error!(model = %digest, cause, "the history of a model is damaged; the model is not");
        Provenance::lost(&cause)
    });
    let calibrator = read_calibrator(place, digest).unwrap_or_else(|cause| {
        let cause = relative(folder, cause);
        tracing::error!(model = %digest, cause, "a model is served without its calibrator");
        None
    });
    let Description { architecture, quantization, .. } = description;
    Ok(Facts { architecture, quantization, provenance, calibrator: calibrator.map(Arc::new) })
}

/// The files of a model's folder, in the order in which they are packed. A model is complete without history and
/// calibrator.
pub fn files_of(place: &Path) -> impl Iterator<Item = &'static str> {
    let is_optional = |name: &str| [PROVENANCE, CALIBRATOR].contains(&name);
    let files = [native::DESCRIPTION, PROVENANCE, CALIBRATOR, native::TENSORS].into_iter();
    files.filter(move |name| !is_optional(name) || place.join(name).exists())
}

pub(super) fn read_provenance(place: &Path) -> Result<Provenance, String> {
    let path = place.join(PROVENANCE);
    let text = fs::read_to_string(&path).map_err(|cause| at(&path)(cause).to_string())?;
    Provenance::from_toml(&text).map_err(|cause| format!("{}: {cause}", path.display()))
}

/// Makes paths in a reason relative to the registry's folder, whose location is not disclosed.
pub(super) fn relative(folder: &Path, reason: impl fmt::Display) -> String {
    reason.to_string().replace(&format!("{}/", folder.display()), "")
}
