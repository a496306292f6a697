//! A model from wherever it lies: our own folder, packed or not, or a checkpoint of PyTorch.

use std::path::{Path, PathBuf};

use super::architecture::{Architecture, ArchitectureError, ArchitectureHints, FeaturePoint};
use super::digest::digest;
use super::native::{self, Description, NativeError};
use super::packed;
use super::pth::{self, PthError};
use super::rules::{self, Ambiguous, Misfits};
use super::tensors::NamedTensors;
use crate::embedding::ModelDigest;

/// A model that can be served: its tensors are those of its architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenModel {
    pub architecture: Architecture,
    pub feature_point: FeaturePoint,
    pub digest: ModelDigest,
    pub tensors: NamedTensors,
}

/// What a checkpoint of PyTorch leaves open; a folder of ours says it itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints {
    pub feature_point: FeaturePoint,
    pub architecture: ArchitectureHints,
}

/// Why a path holds no model that can be served.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct OpenError {
    path: PathBuf,
    cause: Box<Cause>,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error(transparent)]
    Pth(#[from] PthError),
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    #[error(transparent)]
    Misfits(#[from] Misfits),
    #[error("the tensors have digest {found}, its description says {described}")]
    Digest { described: String, found: ModelDigest },
}

impl OpenModel {
    /// Names a model by its content.
    pub fn new(architecture: Architecture, feature_point: FeaturePoint, tensors: NamedTensors) -> Self {
        let digest = digest(&architecture, feature_point, &tensors);
        Self { architecture, feature_point, digest, tensors }
    }

    /// Reads a model folder, one that is packed into a file, or a `.pth` as PyTorch writes it.
    ///
    /// # Errors
    /// What keeps it from being served, with everything that is missing, unexpected or misshapen in one.
    pub fn open(path: &Path, hints: &Hints) -> Result<Self, OpenError> {
        let opened = if path.is_dir() {
            native::read(path).map_err(Cause::from).and_then(check)
        } else if packed::is_packed(path).unwrap_or(false) {
            packed::read(path).map_err(Cause::from).and_then(check)
        } else {
            open_pth(path, hints)
        };
        opened.map_err(|cause| OpenError { path: path.to_owned(), cause: Box::new(cause) })
    }

    /// Writes the model as a folder of ours; `source` says where it came from.
    ///
    /// # Errors
    /// The folder exists already or cannot be written.
    pub fn save(&self, folder: &Path, source: &str) -> Result<(), NativeError> {
        let description = Description::new(
            self.digest.to_string(),
            self.feature_point,
            source.to_owned(),
            self.architecture,
        );
        native::write(folder, &description, &self.tensors)
    }
}

/// Whether the tensors are those of their description.
fn check((description, tensors): (Description, NamedTensors)) -> Result<OpenModel, Cause> {
    description.architecture.validate()?;
    let tensors = rules::for_serving(&description.architecture, tensors)?;
    let model = OpenModel::new(description.architecture, description.feature_point, tensors);
    if model.digest.to_string() == description.digest {
        Ok(model)
    } else {
        Err(Cause::Digest { described: description.digest, found: model.digest })
    }
}

fn open_pth(path: &Path, hints: &Hints) -> Result<OpenModel, Cause> {
    let tensors = rules::without_module(pth::read(path, rules::WRAPPERS)?)?;
    let architecture = Architecture::infer(&tensors, &hints.architecture)?;
    let tensors = rules::for_serving(&architecture, tensors)?;
    Ok(OpenModel::new(architecture, hints.feature_point, tensors))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::chip::ChipSize;
    use crate::weights::golden;

    fn micro_hints() -> Hints {
        let image = Some(ChipSize { height: 64, width: 32 });
        let architecture = ArchitectureHints { image, heads: Some(2), ..Default::default() };
        Hints { architecture, ..Hints::default() }
    }

    fn recorded() -> OpenModel {
        OpenModel::open(&golden::path("ckpt_plain.pth"), &micro_hints()).expect("a recorded checkpoint")
    }

    #[test]
    fn a_checkpoint_and_its_import_are_the_same_model() {
        let model = recorded();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path().join("model");
        model.save(&place, "ckpt_plain.pth").expect("written");
        assert_eq!(OpenModel::open(&place, &Hints::default()).expect("read"), model);
        assert!(matches!(model.save(&place, "again"), Err(NativeError::Exists(_))));
        let left: Vec<_> = fs::read_dir(folder.path()).expect("readable").collect();
        assert_eq!(left.len(), 1, "no partial folder stays behind");
    }

    #[test]
    fn every_layout_of_a_checkpoint_is_the_same_model() {
        for name in ["ckpt_wrapped.pth", "ckpt_ddp.pth"] {
            let other = OpenModel::open(&golden::path(name), &micro_hints()).expect("recorded");
            assert_eq!(other.digest, recorded().digest, "{name}");
        }
    }

    #[test]
    fn a_path_without_a_model_is_one_line_that_names_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let check = |change: &dyn Fn(&Path), message: &str| {
            let place = folder.path().join("model");
            recorded().save(&place, "test").expect("written");
            change(&place);
            let text = OpenModel::open(&place, &micro_hints()).expect_err("no model").to_string();
            assert!(text.contains(message) && text.contains("model") && text.lines().count() == 1, "{text}");
            fs::remove_dir_all(&place).or_else(|_| fs::remove_file(&place)).expect("removed");
        };
        let edit = |place: &Path, from: &str, to: &str| {
            let path = place.join(native::DESCRIPTION);
            let text = fs::read_to_string(&path).expect("readable");
            assert!(text.contains(from));
            fs::write(path, text.replace(from, to)).expect("writable");
        };
        check(&|place| fs::remove_file(place.join(native::TENSORS)).expect("there"), "No such file");
        check(&|place| edit(place, "format = 1", "format = 2"), "has format 2; this program reads format 1");
        check(&|place| edit(place, "depth = 2", "depth = 1"), "unexpected");
        check(&|place| edit(place, "before_neck", "after_neck"), "its description says");
        check(&|place| edit(place, "heads = 2", "heads = 3"), "not a multiple of heads");
        check(&|place| edit(place, "depth = 2", "deep = 2"), "unknown field");
        check(&|place| fs::write(place.join(native::TENSORS), b"junk").expect("writable"), "safetensors");
        check(
            &|place| {
                fs::remove_dir_all(place).expect("there");
                fs::write(place, b"junk").expect("writable");
            },
            "neither a torch archive",
        );
    }
}
