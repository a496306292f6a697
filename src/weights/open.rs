//! Opens a model in any form: our own folder, packed or not, or a checkpoint of another program.

use std::path::{Path, PathBuf};

use super::checkpoint::{Checkpoint, CheckpointError, Expected, Origin};
use super::coded::{self, Quantized};
use super::digest::{digest, digest_in_int8};
use super::ensemble::error::EnsembleError;
use super::family::{Architecture, ArchitectureError, ArchitectureHints, Family, FeaturePoint};
use super::misfits::Misfits;
use super::native::{self, Contents, Description, NativeError};
use super::packed;
use super::quantized::{self, QuantizeError};
use super::rules;
use super::start::BareVit;
use super::tensors::{NamedTensors, printable};
use super::wrapper::WeightsChoice;
use crate::embedding::ModelDigest;

/// Names of a checkpoint that an error message lists.
const LISTED_MAX: usize = 4;

/// A model that can be served: its tensors are those of its architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenModel {
    pub architecture: Architecture,
    pub feature_point: FeaturePoint,
    pub digest: ModelDigest,
    /// Those in f32.
    pub tensors: NamedTensors,
    /// Of a model in int8.
    pub quantized: Option<Quantized>,
}

/// Information that a checkpoint of another program lacks; our own folders contain it.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// `None`: the feature that the family's authors evaluate.
    pub feature_point: Option<FeaturePoint>,
    pub architecture: ArchitectureHints,
    /// Which of several sets of weights in it to use.
    pub weights: WeightsChoice,
}

/// Why a path does not hold a servable model.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct OpenError {
    path: PathBuf,
    cause: Box<Cause>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{0}, which cannot be served; a run can start from it with start.from = \"imagenet\"")]
    BareVit(BareVit),
    #[error("{cause}; its names are {names}")]
    OtherNames { cause: ArchitectureError, names: String },
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    #[error(transparent)]
    Misfits(#[from] Misfits),
    #[error(transparent)]
    Quantized(#[from] QuantizeError),
    #[error(transparent)]
    Ensemble(#[from] EnsembleError),
    #[error("it has digest {found}, its description says {described}")]
    Digest { described: String, found: ModelDigest },
}

impl OpenModel {
    /// Names a model by its content.
    pub fn new(architecture: Architecture, feature_point: FeaturePoint, tensors: NamedTensors) -> Self {
        let digest = digest(&architecture, feature_point, &tensors);
        Self { architecture, feature_point, digest, tensors, quantized: None }
    }

    /// Names a model in int8 by its content and its source.
    pub fn in_int8(
        architecture: Architecture,
        feature_point: FeaturePoint,
        tensors: NamedTensors,
        quantized: Quantized,
    ) -> Self {
        let digest = digest_in_int8(&architecture, feature_point, &tensors, &quantized);
        Self { architecture, feature_point, digest, tensors, quantized: Some(quantized) }
    }

    /// Reads a model folder, a packed model folder, or a checkpoint: a torch or safetensors file.
    ///
    /// # Errors
    /// If it cannot be served; everything that is missing, unexpected or misshapen is reported in one error.
    pub fn open(path: &Path, hints: &Hints) -> Result<Self, OpenError> {
        Self::open_with_origin(path, hints).map(|(model, _)| model)
    }

    /// [`Self::open`], also returning where in a checkpoint the model was.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn open_with_origin(path: &Path, hints: &Hints) -> Result<(Self, Origin), OpenError> {
        let ours = |read: Result<_, NativeError>| Ok((check(read?)?, Origin::default()));
        let opened = if path.is_dir() {
            ours(native::read(path))
        } else if packed::is_packed(path).unwrap_or(false) {
            ours(packed::read(path))
        } else {
            open_checkpoint(path, hints)
        };
        opened.map_err(|cause| OpenError::new(path, cause))
    }

    /// The model in a folder that was read, if its tensors match its description.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub(super) fn verified(path: &Path, contents: Contents) -> Result<Self, OpenError> {
        check(contents).map_err(|cause| OpenError::new(path, cause))
    }

    /// The description of this model in a folder; `source` is its origin.
    pub fn description(&self, source: &str) -> Description {
        Description {
            digest: self.digest.to_string(),
            feature_point: self.feature_point,
            source: source.to_owned(),
            architecture: self.architecture,
            quantization: self.quantized.as_ref().map(|quantized| quantized.origin.clone()),
        }
    }

    /// Writes the model as a folder in our format; `source` is its origin.
    ///
    /// # Errors
    /// If the folder already exists or cannot be written.
    pub fn save(&self, folder: &Path, source: &str) -> Result<(), NativeError> {
        let description = self.description(source);
        native::write(folder, &description, &self.tensor_bytes())
    }

    /// The files of its folder by name; `source` is its origin.
    pub(super) fn files(&self, source: &str) -> Vec<(String, Vec<u8>)> {
        let description = self.description(source).to_toml().into_bytes();
        vec![(native::TENSORS.to_owned(), self.tensor_bytes()), (native::DESCRIPTION.to_owned(), description)]
    }

    /// Its tensors as a safetensors file.
    pub fn tensor_bytes(&self) -> Vec<u8> {
        match &self.quantized {
            Some(quantized) => coded::tensor_bytes(&self.tensors, &quantized.layers),
            None => native::tensor_bytes(&self.tensors),
        }
    }
}

impl OpenError {
    pub(super) fn new(path: &Path, cause: impl Into<Cause>) -> Self {
        Self { path: path.to_owned(), cause: Box::new(cause.into()) }
    }

    pub(super) fn other_digest(path: &Path, described: String, found: ModelDigest) -> Self {
        Self::new(path, Cause::Digest { described, found })
    }
}

/// Whether the tensors match their description.
fn check(Contents { description, tensors, layers }: Contents) -> Result<OpenModel, Cause> {
    let Description { architecture, feature_point, .. } = description;
    architecture.validate()?;
    let model = match description.quantization {
        Some(origin) => {
            quantized::check_family(&architecture)?;
            let tensors = quantized::for_serving(&architecture, tensors, &layers)?;
            OpenModel::in_int8(architecture, feature_point, tensors, Quantized { origin, layers })
        }
        None => OpenModel::new(architecture, feature_point, rules::for_serving(&architecture, tensors)?),
    };
    if model.digest.to_string() == description.digest {
        Ok(model)
    } else {
        Err(Cause::Digest { described: description.digest, found: model.digest })
    }
}

fn open_checkpoint(path: &Path, hints: &Hints) -> Result<(OpenModel, Origin), Cause> {
    let expected = Expected { first: rules::WRAPPERS, anchors: &Family::anchors(), choice: &hints.weights };
    let Checkpoint { tensors, mut origin } = Checkpoint::read(path, &expected)?;
    let architecture =
        Architecture::infer(&tensors, &hints.architecture).map_err(|cause| unknown(cause, &tensors))?;
    let found: Vec<String> = tensors.keys().cloned().collect();
    let tensors = rules::for_serving(&architecture, tensors).map_err(|mut misfits| {
        misfits.explain(&origin.unread());
        misfits
    })?;
    origin.dropped = found.into_iter().filter(|name| !tensors.contains_key(name)).collect();
    let feature_point = hints.feature_point.unwrap_or_else(|| architecture.feature_point());
    Ok((OpenModel::new(architecture, feature_point, tensors), origin))
}

/// Explains why tensors that lack one required of every model of a family do not belong to that family.
fn unknown(cause: ArchitectureError, tensors: &NamedTensors) -> Cause {
    match cause {
        ArchitectureError::Absent(name, _) if !tensors.contains_key(name) => {
            if let Some(vit) = BareVit::of(tensors, Family::default()) {
                return Cause::BareVit(vit);
            }
            let names = tensors.keys().take(LISTED_MAX).map(|name| printable(name));
            Cause::OtherNames { cause, names: names.collect::<Vec<_>>().join(", ") }
        }
        other => other.into(),
    }
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
        check(
            &|place| edit(place, "format = 1", "format = 3"),
            "has format 3; this program reads formats 1 and 2",
        );
        check(&|place| edit(place, "format = 1", "format = 2"), "is of an ensemble");
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
