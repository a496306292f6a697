//! What a model's folder states about it, without reading its parameters.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::at;
use super::calibrator::{CALIBRATOR, read_calibrator};
use super::provenance::{PROVENANCE, Provenance};
use crate::embedding::{Composition, MEMBERS_MAX, ModelDigest};
use crate::matching::Calibrator;
use crate::weights::any::AnyDescription;
use crate::weights::ensemble::member_folder;
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
    /// The network, or those of an ensemble's members.
    pub networks: Vec<Description>,
    /// Of an ensemble.
    pub composition: Option<Composition>,
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
    let length = |name: &String| fs::metadata(place.join(name)).map_or(0, |file| file.len());
    let bytes = files_of(&place).iter().map(length).sum();
    StoredModel { digest, bytes, condition }
}

fn facts(folder: &Path, place: &Path, digest: ModelDigest) -> Result<Facts, String> {
    let description = AnyDescription::read(place).map_err(|cause| cause.to_string())?;
    if description.digest != digest.to_string() {
        return Err(format!("its description is of model {}", description.digest));
    }
    for (network, folder) in description.networks.iter().zip(description.folders()) {
        check_files(network, &place.join(folder))?;
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
    let AnyDescription { networks, composition, .. } = description;
    Ok(Facts { networks, composition, provenance, calibrator: calibrator.map(Arc::new) })
}

/// Whether a network can be what its folder says, judging by the length of its tensors.
fn check_files(network: &Description, folder: &Path) -> Result<(), String> {
    network.architecture.validate().map_err(|cause| cause.to_string())?;
    let tensors = folder.join(native::TENSORS);
    let length = fs::metadata(&tensors).map_err(|cause| at(&tensors)(cause).to_string())?.len();
    if length < network.tensor_bytes_min() {
        return Err(format!("{} has {length} bytes, too few for its tensors", tensors.display()));
    }
    Ok(())
}

/// The files of a model's folder, in the order in which they are packed. A model is complete without history and
/// calibrator; an ensemble has its members' files in folders of their own.
pub fn files_of(place: &Path) -> Vec<String> {
    let mut files = vec![native::DESCRIPTION.to_owned()];
    let optional = [PROVENANCE, CALIBRATOR].into_iter().filter(|name| place.join(name).exists());
    files.extend(optional.map(str::to_owned));
    let members = (0..MEMBERS_MAX).map(member_folder).take_while(|folder| place.join(folder).is_dir());
    let of_member =
        |folder: String| [native::DESCRIPTION, native::TENSORS].map(|name| format!("{folder}/{name}"));
    let of_members: Vec<String> = members.flat_map(of_member).collect();
    if of_members.is_empty() {
        files.push(native::TENSORS.to_owned());
    }
    files.extend(of_members);
    files
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
