//! Model families: the structure of a network, and everything that the rest of the program needs to
//! know about its tensors.
//!
//! A family is a folder here (its pure half), a file in `model` (its forward pass) and a line in `families!`
//! and `model::build`. The interface is `FamilyArchitecture`; other modules do not know names of tensors.

pub mod sdf_net;
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
use super::tensors::{HostTensor, NamedTensors, printable};
use crate::chip::{ChipSize, Preprocessing, SarStretch};

/// ln(1 / 0.07), the usual start of a contrastive temperature.
pub const LOGIT_SCALE: f32 = 2.6592;

/// The description of a family and of one of its architectures.
pub trait FamilyArchitecture: fmt::Debug {
    /// The family's display name.
    fn title() -> &'static str
    where
        Self: Sized;

    /// A tensor that every model of the family has.
    fn anchor() -> &'static str
    where
        Self: Sized;

    /// A preset's network with the configured changes, without a classifier.
    fn configured(preset: Preset, options: &Options) -> Self
    where
        Self: Sized;

    /// Infers the architecture from the tensors of a checkpoint, whose names are bare.
    ///
    /// # Errors
    /// If a tensor that determines the architecture is missing, or a hint is needed or leads to an
    /// invalid model.
    fn infer(tensors: &NamedTensors, hints: &ArchitectureHints) -> Result<Self, ArchitectureError>
    where
        Self: Sized;

    /// Checks every bound and divisibility.
    ///
    /// # Errors
    /// The first field with an invalid value.
    fn validate(&self) -> Result<(), ArchitectureError>;

    /// How an image is prepared for the network.
    fn preprocessing(&self) -> Preprocessing;

    /// The feature that the family's authors evaluate.
    fn feature_point(&self) -> FeaturePoint {
        FeaturePoint::default()
    }

    /// Whether its networks separate what modalities share from what is specific to each, as some losses require.
    fn separates_modalities(&self) -> bool {
        false
    }

    /// Length of an embedding.
    fn embed_dim(&self) -> usize;

    /// Length of the sequence that represents a chip.
    fn token_count(&self) -> usize;

    /// Inputs and outputs of the first layer of a block's MLP; the second has the transposed shape.
    fn mlp_widths(&self) -> [usize; 2];

    /// A network of some of this one's tensors that does the same work fewer times, and how many times fewer at most;
    /// `None` if none does.
    fn shortened(&self) -> Option<(Architecture, u32)>;

    /// Rows of the classifier; 0 for a model without one.
    fn classes(&self) -> usize;

    fn with_classes(&self, classes: usize) -> Architecture;

    /// Everything that a feature depends on and that tensors do not determine, for the model's digest.
    fn digest_bytes(&self) -> Vec<u8>;

    /// Titles and values, for display.
    fn description(&self) -> Vec<(&'static str, String)>;

    /// Linear layers that can be computed in int8, as the names of their tensors begin; empty if none can.
    fn int8_layers(&self) -> Vec<String>;

    /// Name and shape of every tensor of the model's state dict.
    fn expected_tensors(&self) -> BTreeMap<String, Vec<usize>>;

    /// Whether a served checkpoint may lack a tensor or hold it in another shape, because serving
    /// does not read it.
    fn is_unused_in_serving(&self, name: &str) -> bool;

    /// Whether a training that starts from a checkpoint ignores its tensor, because the training
    /// learns its own.
    fn is_head(&self, name: &str) -> bool;

    /// Whether training updates a tensor by its gradient.
    fn is_trained(&self, name: &str) -> bool;

    /// Whether training computes with a tensor in the precision of the run; it uses f32 for the others.
    fn is_backbone(&self, name: &str) -> bool;

    /// The class weights, [classes, embed_dim].
    fn classifier(&self) -> &'static str;

    /// The logarithm of the factor of the cosines in a contrastive loss.
    fn logit_scale(&self) -> &'static str;

    /// Prefix of the block number in the names of a block's tensors.
    fn block_prefix(&self) -> &'static str;

    /// The initial distribution of a tensor in a model that is created from a seed.
    fn initial(&self, name: &str, shape: &[usize]) -> Initial;

    /// Replaces tensors of `initial` by those of a ViT trained on ImageNet, named as in timm.
    ///
    /// # Errors
    /// Names that the model lacks, and tensors with values that are not finite; `initial` is then unchanged.
    fn start_from_vit(&self, initial: &mut NamedTensors, checkpoint: NamedTensors) -> Result<Fit, Misfits>;

    /// A tensor of another model of the family, changed where the size of chips changes it; otherwise unchanged.
    fn adapted(&self, _name: &str, tensor: HostTensor) -> HostTensor {
        tensor
    }

    /// Number of values in the tensors that serving reads.
    fn parameters(&self) -> u64 {
        let tensors = self.expected_tensors();
        let served = tensors.iter().filter(|(name, _)| !self.is_unused_in_serving(name));
        served.map(|(_, shape)| shape.iter().map(|length| *length as u64).product::<u64>()).sum()
    }
}

/// Defines [`Family`] and [`Architecture`] from a list: variant, name in stored descriptions, type
/// of its architectures.
macro_rules! families {
    ($($(#[$attribute:meta])* $variant:ident, $name:literal, $architecture:ty;)+) => {
        /// A model family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Family {
            $($(#[$attribute])* $variant,)+
        }

        /// The architecture of a model of some family.
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

            /// The display name.
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
            /// If it does not describe a model of this family.
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

// A checkpoint that matches several families is assigned to the first whose anchor it has: an SDF-Net has TransOSS's.
families! {
    SdfNet, "sdf_net", sdf_net::SdfNetArchitecture;
    TransOss, "transoss", transoss::TransOssArchitecture;
    #[cfg(test)]
    Toy, "toy", toy::ToyArchitecture;
}

/// The family of models that are stored without a family name, because they predate the second family.
impl Default for Family {
    fn default() -> Self {
        Self::TransOss
    }
}

/// The family name is unknown.
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
    /// Whether this family is omitted from descriptions.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The family to which tensors belong, whose names are bare; `None` if they have no family's anchor.
    pub fn of(tensors: &NamedTensors) -> Option<Self> {
        Self::ALL.iter().copied().find(|family| tensors.contains_key(family.anchor()))
    }

    /// An unmodified preset.
    pub fn preset(self, preset: Preset) -> Architecture {
        self.configured(preset, &Options::default())
    }

    /// Tensors of which every checkpoint of some family has at least one.
    pub fn anchors() -> Vec<&'static str> {
        Self::ALL.iter().map(|family| family.anchor()).collect()
    }
}

impl Architecture {
    /// Determines the family of a checkpoint from its tensors, whose names are bare, and infers the
    /// architecture.
    ///
    /// # Errors
    /// See [`FamilyArchitecture::infer`].
    pub fn infer(tensors: &NamedTensors, hints: &ArchitectureHints) -> Result<Self, ArchitectureError> {
        Family::of(tensors).unwrap_or_default().infer(tensors, hints)
    }
}

/// Sizes in which a family is available without a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    Tiny,
    Small,
    VitBase,
}

/// Configurable changes to a preset; the defaults are the authors'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Whether the ship's size is added as another token.
    pub size_token: bool,
    /// Whether tokens receive a modality embedding.
    pub modality_embedding: bool,
    pub mie_coefficient: f32,
    /// Distance between patches, in pixels.
    pub stride: usize,
    /// Size of chips; `None`: the preset's.
    pub image: Option<ChipSize>,
    pub sar_stretch: SarStretch,
}

impl Options {
    pub const AUTHORS: Self = Self {
        size_token: true,
        modality_embedding: true,
        mie_coefficient: 3.0,
        stride: 16,
        image: None,
        sar_stretch: SarStretch::Maximum,
    };
}

impl Default for Options {
    fn default() -> Self {
        Self::AUTHORS
    }
}

/// A caller's knowledge about a bare checkpoint, overriding or completing what shapes determine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ArchitectureHints {
    pub image: Option<ChipSize>,
    pub stride: Option<usize>,
    pub heads: Option<usize>,
    pub mie_coefficient: Option<f32>,
    pub sar_stretch: Option<SarStretch>,
}

/// Where the feature is taken from the network: TransOSS is evaluated before the neck, SDF-Net after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeaturePoint {
    /// The class token after the last LayerNorm, or the sum of those of SDF-Net.
    #[default]
    BeforeNeck,
    /// The same after the BatchNorm neck.
    AfterNeck,
}

/// The initial distribution of a tensor that no checkpoint provides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    Constant(f32),
    /// Uniform within plus and minus the bound.
    Uniform(f64),
    /// Truncated normal, with this standard deviation.
    Normal(f64),
}

/// Why an architecture is invalid.
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
    #[error("embed_dim {0} is not a multiple of 64, so the number of heads is not known: give it")]
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

/// Errors give the line in the whole document.
fn table_of<A: DeserializeOwned + Into<Architecture>>(
    document: &str,
) -> Result<Architecture, toml::de::Error> {
    #[derive(Deserialize)]
    struct Document<A> {
        architecture: A,
    }
    toml::from_str(document).map(|Document::<A> { architecture }| architecture.into())
}
