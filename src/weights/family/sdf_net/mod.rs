//! The architecture of an SDF-Net, and the names and shapes of its tensors: a TransOSS with a second class token, which
//! each modality has of its own, and another neck.

mod positions;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::transoss::{self, DEPTH_MAX, TOKENS_MAX, TransOssArchitecture};
use super::{
    Architecture, ArchitectureError, ArchitectureHints, FamilyArchitecture, FeaturePoint, Initial, Options,
    Preset, within,
};
use crate::chip::{ChipSize, Preprocessing};
use crate::weights::fit::Fit;
use crate::weights::misfits::Misfits;
use crate::weights::tensors::{HostTensor, NamedTensors};

/// The shared class token and the modality's own.
const CLASS_TOKENS: usize = 2;
const SPECIFIC_OPTICAL: &str = "base.cls_token_spe_rgb";
const SPECIFIC_SAR: &str = "base.cls_token_spe_sar";
const POSITIONS: &str = "base.pos_embed";
const NECK: &str = "bottleneck_fuse.";
/// TransOSS's neck, which released checkpoints have and nothing reads.
const OLD_NECK: &str = "bottleneck.";
/// Chips of fine-tuned checkpoints with 16 x 16 patches, beside the authors' 256 x 128.
const SQUARE: ChipSize = ChipSize { height: 256, width: 256 };

/// Everything that determines the shapes and the arithmetic of an SDF-Net: that of the TransOSS without the second class
/// token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SdfNetArchitecture(pub TransOssArchitecture);

impl SdfNetArchitecture {
    /// Blocks after which the losses read the patches: half of them, the authors' 6 of 12.
    pub fn structure_depth(&self) -> usize {
        self.0.depth / 2
    }
}

impl FamilyArchitecture for SdfNetArchitecture {
    fn title() -> &'static str {
        "SDF-Net"
    }

    fn anchor() -> &'static str {
        SPECIFIC_OPTICAL
    }

    fn configured(preset: Preset, options: &Options) -> Self {
        Self(TransOssArchitecture::configured(preset, options))
    }

    /// As for a TransOSS; without a hint, the image may also be 256 x 256.
    fn infer(tensors: &NamedTensors, hints: &ArchitectureHints) -> Result<Self, ArchitectureError> {
        let infer =
            |hints: &ArchitectureHints| TransOssArchitecture::infer_with(tensors, hints, CLASS_TOKENS);
        let mut backbone = infer(hints);
        if hints.image.is_none() && matches!(backbone, Err(ArchitectureError::Positions { .. })) {
            let square = infer(&ArchitectureHints { image: Some(SQUARE), ..*hints });
            backbone = square.or(backbone);
        }
        let architecture = Self(backbone?);
        architecture.validate()?;
        Ok(architecture)
    }

    fn validate(&self) -> Result<(), ArchitectureError> {
        self.0.validate()?;
        let (rows, columns) = self.0.grid();
        within("depth", self.0.depth, 2, DEPTH_MAX)?;
        within("the number of rows of patches", rows, 2, TOKENS_MAX)?;
        within("the number of columns of patches", columns, 2, TOKENS_MAX)?;
        within("the number of tokens", self.token_count(), 1, TOKENS_MAX)
    }

    fn preprocessing(&self) -> Preprocessing {
        self.0.preprocessing()
    }

    /// The authors' program evaluates after the neck, whatever its configuration says.
    fn feature_point(&self) -> FeaturePoint {
        FeaturePoint::AfterNeck
    }

    fn separates_modalities(&self) -> bool {
        true
    }

    fn embed_dim(&self) -> usize {
        self.0.embed_dim()
    }

    fn token_count(&self) -> usize {
        self.0.token_count() + CLASS_TOKENS - 1
    }

    fn mlp_widths(&self) -> [usize; 2] {
        self.0.mlp_widths()
    }

    fn shortened(&self) -> Option<(Architecture, u32)> {
        let times = u32::try_from(self.0.depth).ok().filter(|depth| *depth > 1)?;
        Some((Self(TransOssArchitecture { depth: 1, ..self.0 }).into(), times))
    }

    fn classes(&self) -> usize {
        self.0.classes
    }

    fn with_classes(&self, classes: usize) -> Architecture {
        Self(TransOssArchitecture { classes, ..self.0 }).into()
    }

    fn digest_bytes(&self) -> Vec<u8> {
        self.0.digest_bytes()
    }

    fn description(&self) -> Vec<(&'static str, String)> {
        let tokens = format!("{}, two of them of classes", self.token_count());
        let mut described = self.0.description();
        described.retain(|(title, _)| *title != "tokens");
        described.push(("tokens", tokens));
        described
    }

    fn int8_layers(&self) -> Vec<String> {
        self.0.int8_layers()
    }

    /// `base.fc.*` and `bottleneck.*` are omitted: released checkpoints contain them, but no computation uses them.
    fn expected_tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let own_name = |name: String| match name.strip_prefix(OLD_NECK) {
            Some(part) => format!("{NECK}{part}"),
            None => name,
        };
        let of_transoss = self.0.expected_tensors().into_iter();
        let mut tensors: BTreeMap<_, _> = of_transoss.map(|(name, shape)| (own_name(name), shape)).collect();
        let width = self.0.embed_dim;
        tensors.extend([SPECIFIC_OPTICAL, SPECIFIC_SAR].map(|token| (token.to_owned(), vec![1, 1, width])));
        tensors.insert(POSITIONS.to_owned(), vec![1, CLASS_TOKENS + self.0.patch_count(), width]);
        tensors
    }

    fn is_unused_in_serving(&self, name: &str) -> bool {
        self.0.is_unused_in_serving(name) || name.starts_with(OLD_NECK)
    }

    fn is_head(&self, name: &str) -> bool {
        self.0.is_head(name) || name.starts_with(OLD_NECK)
    }

    fn is_trained(&self, name: &str) -> bool {
        self.0.is_trained(&of_transoss(name))
    }

    fn is_backbone(&self, name: &str) -> bool {
        self.0.is_backbone(name)
    }

    fn classifier(&self) -> &'static str {
        self.0.classifier()
    }

    fn logit_scale(&self) -> &'static str {
        self.0.logit_scale()
    }

    fn block_prefix(&self) -> &'static str {
        self.0.block_prefix()
    }

    /// As in a TransOSS; the modalities' class tokens are truncated normal with deviation 0.02, as the shared one.
    fn initial(&self, name: &str, shape: &[usize]) -> Initial {
        self.0.initial(&of_transoss(name), shape)
    }

    /// Both class tokens get the position of the ViT's. The ViT may be that of a TransOSS.
    fn start_from_vit(
        &self,
        initial: &mut NamedTensors,
        mut checkpoint: NamedTensors,
    ) -> Result<Fit, Misfits> {
        if let Some(found) = checkpoint.get_mut("pos_embed")
            && let Some(adapted) = positions::from_vit(found, self.0.grid())
        {
            *found = adapted;
        }
        transoss::imagenet::initialise(initial, &self.0, checkpoint)
    }

    /// Positions are resized to the grid of patches.
    fn adapted(&self, name: &str, tensor: HostTensor) -> HostTensor {
        if name != POSITIONS {
            return tensor;
        }
        positions::resized(&tensor, self.0.grid()).unwrap_or(tensor)
    }
}

/// The name of the tensor that plays the same part in a TransOSS.
fn of_transoss(name: &str) -> String {
    match name.strip_prefix(NECK) {
        Some(part) => format!("{OLD_NECK}{part}"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
