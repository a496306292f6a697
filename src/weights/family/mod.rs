//! Model families: what a network is made of, and everything about its tensors that the rest of the program asks for.
//!
//! A family is a folder here (its pure half), a file in `model` (its forward pass) and a line in `families!` and
//! `model::build`. What others ask of it is [`FamilyArchitecture`]; nobody else knows names of tensors.

#[cfg(test)]
pub mod toy;
pub mod transoss;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fit::Fit;
use super::misfits::Misfits;
use super::tensors::{NamedTensors, printable};
use crate::chip::{ChipSize, Preprocessing};

/// ln(1 / 0.07), the usual start of a contrastive temperature.
pub const LOGIT_SCALE: f32 = 2.6592;

/// What a family says of itself, and of one of its architectures.
pub trait FamilyArchitecture: fmt::Debug {
    /// The family's name for people.
    fn title() -> &'static str
    where
        Self: Sized;

    /// A tensor that every model of the family has.
    fn anchor() -> &'static str
    where
        Self: Sized;

    /// A preset's network as a configuration wants it, without a classifier.
    fn configured(preset: Preset, options: &Options) -> Self
    where
        Self: Sized;

    /// Reads the architecture off the tensors of a checkpoint, whose names are bare.
    ///
    /// # Errors
    /// A tensor that tells the architecture is absent, or a hint is needed or makes no valid model.
    fn infer(tensors: &NamedTensors, hints: &ArchitectureHints) -> Result<Self, ArchitectureError>
    where
        Self: Sized;

    /// Checks every bound and divisibility.
    ///
    /// # Errors
    /// The first field that fits no model.
    fn validate(&self) -> Result<(), ArchitectureError>;

    /// What becomes of an image before the network reads it.
    fn preprocessing(&self) -> Preprocessing;

    /// Numbers in an embedding.
    fn embed_dim(&self) -> usize;

    /// Length of the sequence that a chip becomes.
    fn token_count(&self) -> usize;

    /// Inputs and outputs of the first layer of a block's MLP; the second goes back.
    fn mlp_widths(&self) -> [usize; 2];

    /// Rows of the classifier; 0 for a model without one.
    fn classes(&self) -> usize;

    fn with_classes(&self, classes: usize) -> Architecture;

    /// Everything that a feature depends on and tensors do not tell, for the model's digest.
    fn digest_bytes(&self) -> Vec<u8>;

    /// Titles and values, for people.
    fn description(&self) -> Vec<(&'static str, String)>;

    /// Name and shape of every tensor of the model's state dict.
    fn expected_tensors(&self) -> BTreeMap<String, Vec<usize>>;

    /// Whether a served checkpoint may lack a tensor or hold it in another shape: nothing served reads it.
    fn is_unused_in_serving(&self, name: &str) -> bool;

    /// Whether a training that starts from a checkpoint leaves a tensor out, since it learns its own.
    fn is_head(&self, name: &str) -> bool;

    /// Whether training changes a tensor by its gradient.
    fn is_trained(&self, name: &str) -> bool;

    /// Whether training computes with a tensor in the precision of the run; with the others it computes in f32.
    fn is_backbone(&self, name: &str) -> bool;

    /// The class weights, [classes, embed_dim].
    fn classifier(&self) -> &'static str;

    /// The logarithm of the factor of the cosines in a contrastive loss.
    fn logit_scale(&self) -> &'static str;

    /// What stands before the number of a block in the names of its tensors.
    fn block_prefix(&self) -> &'static str;

    /// How a tensor of a model that is made from a seed starts.
    fn initial(&self, name: &str, shape: &[usize]) -> Initial;

    /// Replaces tensors of `initial` by those of a ViT that was trained on ImageNet, named as timm names them.
    ///
    /// # Errors
    /// Names that the model lacks, and tensors with values that are not finite; `initial` is then unchanged.
    fn start_from_vit(&self, initial: &mut NamedTensors, checkpoint: NamedTensors) -> Result<Fit, Misfits>;

    /// Numbers in the tensors that a served model reads.
    fn parameters(&self) -> u64 {
        let tensors = self.expected_tensors();
        let served = tensors.iter().filter(|(name, _)| !self.is_unused_in_serving(name));
        served.map(|(_, shape)| shape.iter().map(|length| *length as u64).product::<u64>()).sum()
    }
}

/// Makes [`Family`] and [`Architecture`] of a list: variant, name in stored descriptions, type of its architectures.
macro_rules! families {
    ($($(#[$attribute:meta])* $variant:ident, $name:literal, $architecture:ty;)+) => {
        /// A model family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Family {
            $($(#[$attribute])* $variant,)+
        }

        /// What a model of some family is made of.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Architecture {
            $($(#[$attribute])* $variant($architecture),)+
        }

        impl Family {
            pub const ALL: &[Self] = &[$($(#[$attribute])* Self::$variant,)+];

            /// As in stored descriptions and configurations.
            pub fn name(self) -> &'static str {
                match self { $($(#[$attribute])* Self::$variant => $name,)+ }
            }

            /// For people.
            pub fn title(self) -> &'static str {
                match self { $($(#[$attribute])* Self::$variant => <$architecture>::title(),)+ }
            }

            /// A tensor that every model of the family has.
            pub fn anchor(self) -> &'static str {
                match self { $($(#[$attribute])* Self::$variant => <$architecture>::anchor(),)+ }
            }

            /// See [`FamilyArchitecture::configured`].
            pub fn configured(self, preset: Preset, options: &Options) -> Architecture {
                match self {
                    $($(#[$attribute])* Self::$variant => <$architecture>::configured(preset, options).into(),)+
                }
            }

            fn infer(
                self,
                tensors: &NamedTensors,
                hints: &ArchitectureHints,
            ) -> Result<Architecture, ArchitectureError> {
                match self {
                    $($(#[$attribute])* Self::$variant => Ok(<$architecture>::infer(tensors, hints)?.into()),)+
                }
            }

            /// The table `architecture` of a TOML document.
            ///
            /// # Errors
            /// There is none of this family.
            pub fn architecture_in(self, document: &str) -> Result<Architecture, toml::de::Error> {
                match self {
                    $($(#[$attribute])* Self::$variant => table_of::<$architecture>(document),)+
                }
            }
        }

        impl Architecture {
            pub fn family(&self) -> Family {
                match self { $($(#[$attribute])* Self::$variant(_) => Family::$variant,)+ }
            }
        }

        impl Deref for Architecture {
            type Target = dyn FamilyArchitecture;

            fn deref(&self) -> &Self::Target {
                match self { $($(#[$attribute])* Self::$variant(architecture) => architecture,)+ }
            }
        }

        $($(#[$attribute])* impl From<$architecture> for Architecture {
            fn from(architecture: $architecture) -> Self {
                Self::$variant(architecture)
            }
        })+
    };
}

// A checkpoint that could be of several is of the first whose anchor it has.
families! {
    TransOss, "transoss", transoss::TransOssArchitecture;
    #[cfg(test)]
    Toy, "toy", toy::ToyArchitecture;
}

/// The family of models that are stored without a name: they are older than the second family.
impl Default for Family {
    fn default() -> Self {
        Self::TransOss
    }
}

/// Nobody here knows a family of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no model family {}; this program knows {}",
    printable(.0), Family::ALL.iter().map(|family| family.name()).collect::<Vec<_>>().join(", ")
)]
pub struct UnknownFamily(String);

impl FromStr for Family {
    type Err = UnknownFamily;

    fn from_str(name: &str) -> Result<Self, UnknownFamily> {
        let found = Self::ALL.iter().copied().find(|family| family.name() == name);
        found.ok_or_else(|| UnknownFamily(name.to_owned()))
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Family {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Family {
    /// Whether it is the one that descriptions leave out.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// A preset as it is.
    pub fn preset(self, preset: Preset) -> Architecture {
        self.configured(preset, &Options::default())
    }

    /// Tensors of which every checkpoint of some family has one.
    pub fn anchors() -> Vec<&'static str> {
        Self::ALL.iter().map(|family| family.anchor()).collect()
    }
}

impl Architecture {
    /// Finds the family of a checkpoint by its tensors, whose names are bare, and reads the architecture off them.
    ///
    /// # Errors
    /// See [`FamilyArchitecture::infer`].
    pub fn infer(tensors: &NamedTensors, hints: &ArchitectureHints) -> Result<Self, ArchitectureError> {
        let found = Family::ALL.iter().find(|family| tensors.contains_key(family.anchor()));
        found.copied().unwrap_or_default().infer(tensors, hints)
    }
}

/// Sizes in which a family comes without a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    Tiny,
    Small,
    VitBase,
}

/// What a configuration may change about a preset; the defaults are the authors'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Whether the ship's size enters as one more token.
    pub size_token: bool,
    /// Whether tokens are told their modality.
    pub modality_embedding: bool,
    pub mie_coefficient: f32,
    /// Distance between patches, in pixels.
    pub stride: usize,
}

impl Options {
    pub const AUTHORS: Self =
        Self { size_token: true, modality_embedding: true, mie_coefficient: 3.0, stride: 16 };
}

impl Default for Options {
    fn default() -> Self {
        Self::AUTHORS
    }
}

/// What a caller knows about a bare checkpoint, in place of what shapes tell or leave open.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ArchitectureHints {
    pub image: Option<ChipSize>,
    pub stride: Option<usize>,
    pub heads: Option<usize>,
    pub mie_coefficient: Option<f32>,
}

/// Where the feature leaves the network: the authors evaluate before the neck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeaturePoint {
    /// The class token after the last LayerNorm.
    #[default]
    BeforeNeck,
    /// The same after the BatchNorm neck.
    AfterNeck,
}

/// How a tensor starts that no checkpoint has given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    Constant(f32),
    /// Within plus and minus the bound.
    Uniform(f64),
    /// Truncated normal, with this standard deviation.
    Normal(f64),
}

/// Why there is no such model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ArchitectureError {
    #[error("{field} is {value}; it must be between {min} and {max}")]
    OutOfBounds { field: &'static str, value: usize, min: usize, max: usize },
    #[error("embed_dim {embed_dim} is not a multiple of heads {heads}")]
    UnevenHeads { embed_dim: usize, heads: usize },
    #[error("mie_coefficient is {0}; it must be finite")]
    Coefficient(f32),
    #[error("the checkpoint has no tensor {0} with {1} axes to tell the architecture from")]
    Absent(&'static str, usize),
    #[error(
        "base.pos_embed has {positions} positions, which no image size and stride known here gives: name them"
    )]
    Positions { positions: usize },
    #[error("embed_dim {0} is no multiple of 64, so the number of heads is open: name it")]
    Heads(usize),
}

fn within(field: &'static str, value: usize, min: usize, max: usize) -> Result<(), ArchitectureError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(ArchitectureError::OutOfBounds { field, value, min, max })
    }
}

fn shape_of<'a>(
    tensors: &'a NamedTensors,
    name: &'static str,
    axes: usize,
) -> Result<&'a [usize], ArchitectureError> {
    match tensors.get(name) {
        Some(tensor) if tensor.shape.len() == axes => Ok(&tensor.shape),
        _ => Err(ArchitectureError::Absent(name, axes)),
    }
}

/// Errors name the line of the whole document.
fn table_of<A: DeserializeOwned + Into<Architecture>>(
    document: &str,
) -> Result<Architecture, toml::de::Error> {
    #[derive(Deserialize)]
    struct Document<A> {
        architecture: A,
    }
    toml::from_str(document).map(|Document::<A> { architecture }| architecture.into())
}
