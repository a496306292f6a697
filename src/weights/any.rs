//! A model in any form: one network or an ensemble, from any source.

use std::path::Path;

use super::checkpoint::Origin;
use super::coded::Quantization;
use super::ensemble::{Ensemble, EnsembleDescription, member_folder};
use super::native::{self, DESCRIPTION, DESCRIPTION_BYTES_MAX, Description, NativeError, ReadFile};
use super::open::{Hints, OpenError, OpenModel};
use super::packed;
use crate::chip::Preprocessing;
use crate::durable::write_folder;
use crate::embedding::{Composition, ModelDigest};

/// A model that can be served.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there are few, and what they own is much larger")]
pub enum AnyModel {
    Network(OpenModel),
    Ensemble(Ensemble),
}

/// What a model's folder states about it; whether its tensors match is not verified.
#[derive(Clone, Debug, PartialEq)]
pub struct AnyDescription {
    /// 64 hexadecimal digits.
    pub digest: String,
    /// The network, or those of an ensemble's members.
    pub networks: Vec<Description>,
    /// Of an ensemble.
    pub composition: Option<Composition>,
}

impl From<OpenModel> for AnyModel {
    fn from(model: OpenModel) -> Self {
        Self::Network(model)
    }
}

impl From<Ensemble> for AnyModel {
    fn from(ensemble: Ensemble) -> Self {
        Self::Ensemble(ensemble)
    }
}

impl AnyModel {
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
        let of_folder = |name: &str, max| native::read_bounded(&path.join(name), max);
        let of_pack = |name: &str, max| packed::read_part(path, name, max);
        let read: ReadFile<'_> = if path.is_dir() { &of_folder } else { &of_pack };
        let is_ours = path.is_dir() || packed::is_packed(path).unwrap_or(false);
        if is_ours && is_ensemble(path, read).map_err(|cause| OpenError::new(path, cause))? {
            return Ok((Ensemble::read(path, read)?.into(), Origin::default()));
        }
        let (model, origin) = OpenModel::open_with_origin(path, hints)?;
        Ok((model.into(), origin))
    }

    pub fn digest(&self) -> ModelDigest {
        match self {
            Self::Network(model) => model.digest,
            Self::Ensemble(ensemble) => ensemble.digest,
        }
    }

    /// The network, or those of an ensemble's members.
    pub fn networks(&self) -> &[OpenModel] {
        match self {
            Self::Network(model) => std::slice::from_ref(model),
            Self::Ensemble(ensemble) => &ensemble.members,
        }
    }

    /// Of an ensemble.
    pub fn composition(&self) -> Option<Composition> {
        match self {
            Self::Network(_) => None,
            Self::Ensemble(ensemble) => Some(ensemble.composition),
        }
    }

    /// How an image is prepared, which the members of an ensemble have in common.
    pub fn preprocessing(&self) -> Preprocessing {
        self.networks()[0].architecture.preprocessing()
    }

    /// Length of an embedding.
    pub fn dimension(&self) -> usize {
        self.networks().iter().map(|network| network.architecture.embed_dim()).sum()
    }

    /// How the network was rounded, if it is in int8 and no ensemble.
    pub fn quantization(&self) -> Option<&Quantization> {
        match self {
            Self::Network(model) => model.quantized.as_ref().map(|quantized| &quantized.origin),
            Self::Ensemble(_) => None,
        }
    }

    /// The description of this model in a folder; `source` is its origin.
    pub fn description(&self, source: &str) -> AnyDescription {
        AnyDescription {
            digest: self.digest().to_string(),
            networks: self.networks().iter().map(|network| network.description(source)).collect(),
            composition: self.composition(),
        }
    }

    /// The files of the model's folder by name, which may be a path in it; `source` is the model's origin.
    pub fn files(&self, source: &str) -> Vec<(String, Vec<u8>)> {
        match self {
            Self::Network(model) => model.files(source),
            Self::Ensemble(ensemble) => ensemble.files(source),
        }
    }

    /// Writes the model as a folder in our format; `source` is its origin.
    ///
    /// # Errors
    /// If the folder already exists or cannot be written.
    pub fn save(&self, folder: &Path, source: &str) -> Result<(), NativeError> {
        if folder.exists() {
            return Err(NativeError::Exists(folder.to_owned()));
        }
        let files = self.files(source);
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
        write_folder(folder, &files).map_err(|cause| NativeError::Io { path: folder.to_owned(), cause })
    }
}

impl AnyDescription {
    /// Reads what a model folder states, without the tensors.
    ///
    /// # Errors
    /// A description is missing, malformed, too large or of another format.
    pub fn read(folder: &Path) -> Result<Self, NativeError> {
        let read = |name: &str, max| native::read_bounded(&folder.join(name), max);
        if !is_ensemble(folder, &read)? {
            let network = native::read_description(folder)?;
            return Ok(Self { digest: network.digest.clone(), networks: vec![network], composition: None });
        }
        let path = folder.join(DESCRIPTION);
        let ensemble = EnsembleDescription::parse(&path, &read(DESCRIPTION, DESCRIPTION_BYTES_MAX)?)?;
        let member = |number: usize| native::read_description(&folder.join(member_folder(number)));
        let networks = (0..ensemble.members.len()).map(member).collect::<Result<Vec<_>, NativeError>>()?;
        let dimensions: Vec<usize> =
            networks.iter().map(|network| network.architecture.embed_dim()).collect();
        let composition = ensemble
            .composition(&dimensions)
            .map_err(|cause| NativeError::Description { path, cause: cause.to_string() })?;
        Ok(Self { digest: ensemble.digest, networks, composition: Some(composition) })
    }

    /// Where each network's files are in the model's folder.
    pub fn folders(&self) -> Vec<String> {
        match self.composition {
            None => vec![String::new()],
            Some(_) => (0..self.networks.len()).map(member_folder).collect(),
        }
    }
}

fn is_ensemble(path: &Path, read: ReadFile<'_>) -> Result<bool, NativeError> {
    let text = read(DESCRIPTION, DESCRIPTION_BYTES_MAX)?;
    Ok(native::format_of(&path.join(DESCRIPTION), &String::from_utf8_lossy(&text))?
        == native::FORMAT_OF_ENSEMBLES)
}
