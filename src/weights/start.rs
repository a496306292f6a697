//! Starting points of training, from any supported file, validated as such.

use std::path::Path;

use super::checkpoint::{Checkpoint, CheckpointError, Expected, Origin};
use super::family::{Architecture, Family};
use super::fit::{Blocks, Fit, Untaken, UntakenReason};
use super::misfits::Misfits;
use super::names::bare;
use super::native::{self, Contents, NativeError};
use super::packed;
use super::rules;
use super::tensors::{NamedTensors, printable};
use super::wrapper::WeightsChoice;
use crate::embedding::ModelDigest;

/// Keys under which a ViT trained on ImageNet is first expected to hold its tensors, the outermost first.
pub const VIT_WRAPPERS: &[&str] = &["model", "state_dict"];
/// A tensor that every ViT has, and the common prefix of its blocks' tensors.
const VIT_ANCHOR: &str = "cls_token";
const VIT_BLOCKS: &str = "blocks.";
/// Names of a checkpoint that an error message lists.
const LISTED_MAX: usize = 4;
/// Maximum bytes of a report's line, excluding its last item.
const LINE_BYTES_MAX: usize = 2000;

/// The rules by which a network is initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A ViT trained on ImageNet: heads are ignored, positions are resized.
    Imagenet,
    /// A model of the same family: everything except its heads is used unchanged.
    Model,
}

/// What a run starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartingPoint {
    pub origin: Origin,
    pub fit: Fit,
}

/// Why a file is not a starting point for a network.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error(transparent)]
    Misfits(#[from] Misfits),
    #[error("{0}: start.from = \"imagenet\" takes it")]
    BareVit(BareVit),
    #[error("it is a model of the family {}, and the configuration's model.family is {}{}",
        .found.name(), .wanted.name(),
        if .found.is_default() { "; start.from = \"imagenet\" takes its ViT" } else { "" }
    )]
    OtherFamily { found: Family, wanted: Family },
    #[error(
        "it is a model in int8, which cannot be trained; start from the model that it was made from, {0}"
    )]
    Int8(ModelDigest),
    #[error(
        "no block of the network fits, so that the run would start from random weights: {example}; choose the \
         model.preset that it was made for, or another starting point"
    )]
    NoBlockFits { example: String },
    #[error(
        "it has no tensor named blocks.0... as timm names the blocks of a ViT, so that the run would start from random \
         weights; its names are {names}"
    )]
    NoBlocks { names: String },
}

/// A ViT where a model of the family is required.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is a ViT without the parts of a {} (it has {VIT_ANCHOR} where a {} has {})",
    .0.title(), .0.title(), .0.anchor()
)]
pub struct BareVit(Family);

impl BareVit {
    /// `Some` if these tensors belong to a ViT without the parts of `wanted`.
    pub(super) fn of(tensors: &NamedTensors, wanted: Family) -> Option<Self> {
        let is_bare = tensors.contains_key(VIT_ANCHOR) && !tensors.contains_key(wanted.anchor());
        is_bare.then_some(Self(wanted))
    }
}

impl StartingPoint {
    /// Replaces tensors of `initial`, which are all of `architecture`, by those of a file or model folder.
    ///
    /// # Errors
    /// If it cannot be read, has tensors that `kind` does not allow, or no block of the network can be taken
    /// from it; `initial` is then unusable.
    pub fn take(
        initial: &mut NamedTensors,
        architecture: &Architecture,
        path: &Path,
        (kind, choice): (Kind, &WeightsChoice),
    ) -> Result<Self, StartError> {
        let family = architecture.family();
        let (first, anchors) = match kind {
            Kind::Imagenet => (VIT_WRAPPERS, vec![VIT_ANCHOR]),
            Kind::Model => (rules::WRAPPERS, Family::anchors()),
        };
        let Checkpoint { tensors, origin } = read(path, &Expected { first, anchors: &anchors, choice })?;
        if kind == Kind::Model {
            check_family(&tensors, family)?;
        }
        let names: Vec<String> = tensors.keys().map(|name| printable(name)).collect();
        let mut fit = match kind {
            Kind::Imagenet => architecture.start_from_vit(initial, tensors)?,
            Kind::Model => rules::start_from(initial, architecture, tensors)?,
        };
        if let Blocks { touched: 0, of: 1.., .. } = fit.blocks {
            return Err(no_block(architecture, &fit, &names));
        }
        fit.untaken.extend(left(&origin));
        fit.untaken.sort();
        Ok(Self { origin, fit })
    }

    /// The full report in lines of bounded length: tensors taken, tensors not taken and why, and
    /// tensors left unchanged.
    pub fn report(&self) -> Vec<String> {
        let Fit { loaded, kept, untaken, .. } = &self.fit;
        let mut lines = vec![format!("{} tensors taken, {} kept as they were", loaded.len(), kept.len())];
        if !self.origin.is_plain() {
            lines.push(format!("the weights are {}", self.origin));
        }
        lines.extend(self.warning().map(|warning| format!("warning: {warning}")));
        lines.extend(in_lines("not taken: ", untaken.iter().map(ToString::to_string)));
        lines.extend(in_lines("kept as they were: ", kept.iter().cloned()));
        lines
    }

    /// A warning for users who expect the whole network to start from the file.
    pub fn warning(&self) -> Option<String> {
        let Blocks { whole, of, .. } = self.fit.blocks;
        (whole < of).then(|| format!("only {whole} of {of} blocks start from it; the others are random"))
    }
}

/// Whether tensors are those of a model of the family, as far as it can be told from their names.
fn check_family(tensors: &NamedTensors, wanted: Family) -> Result<(), StartError> {
    match Family::of(tensors) {
        Some(found) if found != wanted => Err(StartError::OtherFamily { found, wanted }),
        Some(_) => Ok(()),
        None => BareVit::of(tensors, wanted).map_or(Ok(()), |vit| Err(StartError::BareVit(vit))),
    }
}

fn read(path: &Path, expected: &Expected) -> Result<Checkpoint, StartError> {
    let Contents { description, tensors, .. } = if path.is_dir() {
        native::read(path)?
    } else if packed::is_packed(path).unwrap_or(false) {
        packed::read(path)?
    } else {
        return Ok(Checkpoint::read(path, expected)?);
    };
    if let Some(quantization) = description.quantization {
        return Err(StartError::Int8(quantization.source));
    }
    let (tensors, naming) =
        bare(tensors, expected.anchors, &WeightsChoice::Own).map_err(CheckpointError::from)?;
    Ok(Checkpoint { tensors, origin: Origin { naming, ..Origin::default() } })
}

/// Entries in the file other than the tensors of a network.
fn left(origin: &Origin) -> impl Iterator<Item = Untaken> {
    let outside = origin.naming.outside.iter().map(|(name, shape)| Untaken {
        name: name.clone(),
        found: Some(shape.clone()),
        expected: None,
        reason: UntakenReason::Outside,
    });
    let skipped = origin.skipped.iter().map(|(name, kind)| Untaken {
        name: name.clone(),
        found: None,
        expected: None,
        reason: UntakenReason::Unread(kind.clone()),
    });
    outside.chain(skipped)
}

/// As many items per line as its length allows.
fn in_lines(head: &str, items: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        match lines.last_mut() {
            Some(line) if line.len() + item.len() < LINE_BYTES_MAX => {
                line.push_str("; ");
                line.push_str(&item);
            }
            _ => lines.push(format!("{head}{item}")),
        }
    }
    lines
}

fn no_block(architecture: &Architecture, fit: &Fit, names: &[String]) -> StartError {
    let is_block = |name: &str| name.starts_with(architecture.block_prefix()) || name.starts_with(VIT_BLOCKS);
    match fit.untaken.iter().find(|tensor| is_block(&tensor.name)) {
        Some(tensor) => StartError::NoBlockFits { example: tensor.to_string() },
        None => {
            let mut listed = names.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
            if names.len() > LISTED_MAX {
                listed.push_str(", ...");
            }
            StartError::NoBlocks { names: listed }
        }
    }
}
