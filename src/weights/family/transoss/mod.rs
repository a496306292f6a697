//! The architecture of a TransOSS, and the names and shapes of its tensors.

pub(super) mod imagenet;
mod seed;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Architecture, ArchitectureError, ArchitectureHints, FamilyArchitecture, Initial, Options, Preset,
    shape_of, within,
};
use crate::chip::{ChipSize, Preprocessing, SarStretch};
use crate::weights::fit::Fit;
use crate::weights::misfits::Misfits;
use crate::weights::tensors::NamedTensors;

/// Channels of every chip; SAR chips repeat their one channel.
const CHANNELS: usize = 3;
/// Optical and SAR.
const MODALITIES: usize = 2;
/// Numbers in the size token: width, height and their ratio.
const SIZE_FEATURES: usize = 3;

const SIDE_MAX: usize = 4096;
pub(super) const TOKENS_MAX: usize = 16_384;
const EMBED_MAX: usize = 4096;
pub(super) const DEPTH_MAX: usize = 64;
const MLP_RATIO_MAX: usize = 16;
const CLASSES_MAX: usize = 1 << 20;

/// The linear layers of a block, in the order in which they are computed.
const BLOCK_LAYERS: [&str; 4] = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"];
const CLASS_TOKEN: &str = "base.cls_token";
const CLASSIFIER: &str = "classifier.weight";
const SCALE: &str = "logit_scale";

/// Everything that determines the shapes and the arithmetic of a TransOSS. Lengths are in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransOssArchitecture {
    pub image: ChipSize,
    /// Side of a square patch.
    pub patch: usize,
    /// Distance between patches; below `patch` they overlap.
    pub stride: usize,
    pub embed_dim: usize,
    pub depth: usize,
    pub heads: usize,
    /// Hidden width of a block's MLP relative to `embed_dim`.
    pub mlp_ratio: usize,
    /// Whether the ship's size is added as a final token (SSE in the paper).
    pub size_token: bool,
    /// Whether every patch and the class token receive a modality embedding (MIE in the paper).
    pub modality_embedding: bool,
    /// Factor of the modality embedding.
    pub mie_coefficient: f32,
    /// How the amplitudes of SAR images become the bytes of chips.
    #[serde(default, skip_serializing_if = "SarStretch::is_default")]
    pub sar_stretch: SarStretch,
    /// Rows of the classifier; 0 for a model without one.
    pub classes: usize,
}

impl TransOssArchitecture {
    /// The authors' model: a ViT-B/16 for chips of 256 x 128 with size token and modality embedding.
    pub const fn vit_base() -> Self {
        Self {
            image: ChipSize { height: 256, width: 128 },
            patch: 16,
            stride: 16,
            embed_dim: 768,
            depth: 12,
            heads: 12,
            mlp_ratio: 4,
            size_token: Options::AUTHORS.size_token,
            modality_embedding: Options::AUTHORS.modality_embedding,
            mie_coefficient: Options::AUTHORS.mie_coefficient,
            sar_stretch: Options::AUTHORS.sar_stretch,
            classes: 0,
        }
    }

    /// The same chips and tokens with the width of a ViT-Tiny and a third of its depth: about a fortieth of
    /// the arithmetic of [`Self::vit_base`], so that demonstrations and tests run quickly on two cores.
    pub const fn small() -> Self {
        Self { embed_dim: 192, depth: 4, heads: 3, ..Self::vit_base() }
    }

    /// [`Self::small`] for chips of half the height and width: a quarter of the tokens and less than a
    /// quarter of the arithmetic, so that two cores can train it from scratch in minutes.
    pub const fn tiny() -> Self {
        Self { image: ChipSize { height: 128, width: 64 }, ..Self::small() }
    }

    /// Rows and columns of patches of a valid architecture.
    pub fn grid(&self) -> (usize, usize) {
        grid(self.image, self.patch, self.stride)
    }

    pub(super) fn patch_count(&self) -> usize {
        let (rows, columns) = self.grid();
        rows * columns
    }

    /// [`FamilyArchitecture::infer`] for a network that has so many class tokens before its patches.
    pub(super) fn infer_with(
        tensors: &NamedTensors,
        hints: &ArchitectureHints,
        class_tokens: usize,
    ) -> Result<Self, ArchitectureError> {
        let cls = shape_of(tensors, CLASS_TOKEN, 3)?;
        let conv = shape_of(tensors, "base.patch_embed.proj.weight", 4)?;
        let fc1 = shape_of(tensors, "base.blocks.0.mlp.fc1.weight", 2)?;
        let positions = shape_of(tensors, "base.pos_embed", 3)?[1];
        let (embed_dim, patch) = (cls[2], conv[3]);
        within("embed_dim", embed_dim, 1, EMBED_MAX)?;
        within("patch", patch, 1, 64)?;
        let (image, stride) = image_and_stride((class_tokens, positions), patch, hints)?;
        let depth = (0..=DEPTH_MAX)
            .take_while(|block| tensors.contains_key(&format!("base.blocks.{block}.norm1.weight")))
            .count();
        let heads = match hints.heads {
            Some(heads) => heads,
            None if embed_dim.is_multiple_of(64) => embed_dim / 64,
            None => return Err(ArchitectureError::Heads(embed_dim)),
        };
        let architecture = Self {
            image,
            patch,
            stride,
            embed_dim,
            depth,
            heads,
            mlp_ratio: fc1[0] / embed_dim,
            size_token: tensors.contains_key("base.wh_embed.linear_layer.weight"),
            modality_embedding: tensors.contains_key("base.mie_embed"),
            mie_coefficient: hints.mie_coefficient.unwrap_or(Options::AUTHORS.mie_coefficient),
            sar_stretch: hints.sar_stretch.unwrap_or(Options::AUTHORS.sar_stretch),
            classes: shape_of(tensors, CLASSIFIER, 2).map_or(0, |shape| shape[0]),
        };
        architecture.validate()?;
        Ok(architecture)
    }
}

impl FamilyArchitecture for TransOssArchitecture {
    fn title() -> &'static str {
        "TransOSS"
    }

    fn anchor() -> &'static str {
        CLASS_TOKEN
    }

    fn configured(preset: Preset, options: &Options) -> Self {
        let preset = match preset {
            Preset::Tiny => Self::tiny(),
            Preset::Small => Self::small(),
            Preset::VitBase => Self::vit_base(),
        };
        let Options { size_token, modality_embedding, mie_coefficient, stride, image, sar_stretch } =
            *options;
        let image = image.unwrap_or(preset.image);
        Self { image, size_token, modality_embedding, mie_coefficient, stride, sar_stretch, ..preset }
    }

    /// Shapes do not determine the number of heads or the image size behind the number of positions.
    /// Without a hint, heads are 64 wide as in every ViT-B, and the image is 256 x 128 with one of the
    /// strides in use.
    fn infer(tensors: &NamedTensors, hints: &ArchitectureHints) -> Result<Self, ArchitectureError> {
        Self::infer_with(tensors, hints, 1)
    }

    fn validate(&self) -> Result<(), ArchitectureError> {
        within("patch", self.patch, 1, 64)?;
        within("stride", self.stride, 1, self.patch)?;
        within("image.height", self.image.height, self.patch, SIDE_MAX)?;
        within("image.width", self.image.width, self.patch, SIDE_MAX)?;
        within("embed_dim", self.embed_dim, 1, EMBED_MAX)?;
        within("depth", self.depth, 1, DEPTH_MAX)?;
        within("heads", self.heads, 1, self.embed_dim)?;
        within("mlp_ratio", self.mlp_ratio, 1, MLP_RATIO_MAX)?;
        within("classes", self.classes, 0, CLASSES_MAX)?;
        within("the number of tokens", self.token_count(), 1, TOKENS_MAX)?;
        if !self.embed_dim.is_multiple_of(self.heads) {
            return Err(ArchitectureError::UnevenHeads { embed_dim: self.embed_dim, heads: self.heads });
        }
        if !self.mie_coefficient.is_finite() {
            return Err(ArchitectureError::Coefficient(self.mie_coefficient));
        }
        Ok(())
    }

    fn preprocessing(&self) -> Preprocessing {
        Preprocessing::stretched(self.image, self.sar_stretch)
    }

    fn embed_dim(&self) -> usize {
        self.embed_dim
    }

    /// Length of the sequence: the class token, the patches and, if enabled, the size token.
    fn token_count(&self) -> usize {
        1 + self.patch_count() + usize::from(self.size_token)
    }

    fn mlp_widths(&self) -> [usize; 2] {
        [self.embed_dim, self.embed_dim * self.mlp_ratio]
    }

    fn shortened(&self) -> Option<(Architecture, u32)> {
        let times = u32::try_from(self.depth).ok().filter(|depth| *depth > 1)?;
        Some((Self { depth: 1, ..*self }.into(), times))
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn with_classes(&self, classes: usize) -> Architecture {
        Self { classes, ..*self }.into()
    }

    /// All fields but `classes`, on which no feature depends, and `sar_stretch`, which is part of the preprocessing.
    fn digest_bytes(&self) -> Vec<u8> {
        let Self {
            image,
            patch,
            stride,
            embed_dim,
            depth,
            heads,
            mlp_ratio,
            size_token,
            modality_embedding,
            mie_coefficient,
            sar_stretch: _,
            classes: _,
        } = *self;
        let numbers = [image.height, image.width, patch, stride, embed_dim, depth, heads, mlp_ratio];
        let mut bytes: Vec<u8> =
            numbers.into_iter().flat_map(|number| (number as u64).to_le_bytes()).collect();
        bytes.extend([u8::from(size_token), u8::from(modality_embedding)]);
        bytes.extend(mie_coefficient.to_le_bytes());
        bytes
    }

    fn description(&self) -> Vec<(&'static str, String)> {
        let yes_no = |holds: bool| if holds { "yes" } else { "no" };
        let Self { image, depth, embed_dim, heads, mlp_ratio, patch, stride, .. } = self;
        vec![
            ("chip", format!("{} x {} (height x width)", image.height, image.width)),
            ("network", format!("{depth} blocks, {embed_dim} wide, {heads} heads, MLP x{mlp_ratio}")),
            ("tokens", format!("{} (patch {patch}, stride {stride})", self.token_count())),
            ("size token", yes_no(self.size_token).to_owned()),
            ("SAR", self.sar_stretch.description().to_owned()),
            ("modality", format!("{} (factor {})", yes_no(self.modality_embedding), self.mie_coefficient)),
        ]
    }

    /// Those of the blocks.
    fn int8_layers(&self) -> Vec<String> {
        let of_block = |block| BLOCK_LAYERS.map(|layer| format!("base.blocks.{block}.{layer}"));
        (0..self.depth).flat_map(of_block).collect()
    }

    /// `base.fc.*` is omitted: official checkpoints contain it, but no computation uses it.
    fn expected_tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let d = self.embed_dim;
        let mut tensors = BTreeMap::new();
        let mut add = |name: &str, shape: &[usize]| tensors.insert(name.to_owned(), shape.to_vec());
        add(CLASS_TOKEN, &[1, 1, d]);
        add("base.pos_embed", &[1, 1 + self.patch_count(), d]);
        for conv in ["base.patch_embed", "base.patch_embed_SAR"] {
            add(&format!("{conv}.proj.weight"), &[d, CHANNELS, self.patch, self.patch]);
            add(&format!("{conv}.proj.bias"), &[d]);
        }
        if self.modality_embedding {
            add("base.mie_embed", &[MODALITIES, 1, d]);
        }
        if self.size_token {
            add("base.wh_embed.linear_layer.weight", &[d, SIZE_FEATURES]);
            add("base.wh_embed.linear_layer.bias", &[d]);
        }
        for block in 0..self.depth {
            let hidden = d * self.mlp_ratio;
            let widths = [(3 * d, d), (d, d), (hidden, d), (d, hidden)];
            for (layer, (outputs, inputs)) in BLOCK_LAYERS.into_iter().zip(widths) {
                add(&format!("base.blocks.{block}.{layer}.weight"), &[outputs, inputs]);
                add(&format!("base.blocks.{block}.{layer}.bias"), &[outputs]);
            }
            for norm in ["norm1", "norm2"] {
                add(&format!("base.blocks.{block}.{norm}.weight"), &[d]);
                add(&format!("base.blocks.{block}.{norm}.bias"), &[d]);
            }
        }
        for vector in ["base.norm.weight", "base.norm.bias", "bottleneck.weight", "bottleneck.bias"] {
            add(vector, &[d]);
        }
        add("bottleneck.running_mean", &[d]);
        add("bottleneck.running_var", &[d]);
        add("bottleneck.num_batches_tracked", &[]);
        if self.classes > 0 {
            add(CLASSIFIER, &[self.classes, d]);
        }
        add(SCALE, &[]);
        tensors
    }

    fn is_unused_in_serving(&self, name: &str) -> bool {
        name == SCALE || name.starts_with("classifier.") || name.starts_with("base.fc.")
    }

    /// Models here do not have `base.fc.*`.
    fn is_head(&self, name: &str) -> bool {
        name.starts_with("classifier") || name.starts_with("base.fc.")
    }

    /// As in the reference: all except the neck's statistics and its frozen bias.
    fn is_trained(&self, name: &str) -> bool {
        let kept = ["bias", "running_mean", "running_var", "num_batches_tracked"];
        !kept.iter().any(|part| name == format!("bottleneck.{part}"))
    }

    fn is_backbone(&self, name: &str) -> bool {
        name.starts_with("base.")
    }

    fn classifier(&self) -> &'static str {
        CLASSIFIER
    }

    fn logit_scale(&self) -> &'static str {
        SCALE
    }

    fn block_prefix(&self) -> &'static str {
        "base.blocks."
    }

    fn initial(&self, name: &str, shape: &[usize]) -> Initial {
        seed::initial(self, name, shape)
    }

    fn start_from_vit(&self, initial: &mut NamedTensors, checkpoint: NamedTensors) -> Result<Fit, Misfits> {
        imagenet::initialise(initial, self, checkpoint)
    }
}

fn grid(image: ChipSize, patch: usize, stride: usize) -> (usize, usize) {
    ((image.height - patch) / stride + 1, (image.width - patch) / stride + 1)
}

/// The first pair, hints first, whose grid and class tokens add up to the positions.
fn image_and_stride(
    (class_tokens, positions): (usize, usize),
    patch: usize,
    hints: &ArchitectureHints,
) -> Result<(ChipSize, usize), ArchitectureError> {
    let image = hints.image.unwrap_or(TransOssArchitecture::vit_base().image);
    within("image.height", image.height, patch, SIDE_MAX)?;
    within("image.width", image.width, patch, SIDE_MAX)?;
    let strides = match hints.stride {
        Some(stride) => vec![stride],
        None => vec![patch, 14, 12, 11, 8],
    };
    for stride in strides {
        within("stride", stride, 1, patch)?;
        let (rows, columns) = grid(image, patch, stride);
        if class_tokens + rows * columns == positions {
            return Ok((image, stride));
        }
    }
    Err(ArchitectureError::Positions { positions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::golden;

    const MICRO: TransOssArchitecture = golden::MICRO;

    #[test]
    fn the_tensors_of_a_model_are_those_of_the_recorded_checkpoints() {
        for (file, architecture) in [
            ("micro_weights", MICRO),
            ("tiny_weights", TransOssArchitecture { embed_dim: 48, depth: 3, heads: 3, ..MICRO }),
        ] {
            let mut recorded = golden::tensors(file);
            recorded.retain(|name, _| !name.starts_with("base.fc.") && !name.starts_with("stride12."));
            let shapes: BTreeMap<_, _> =
                recorded.into_iter().map(|(name, tensor)| (name, tensor.shape)).collect();
            assert_eq!(architecture.expected_tensors(), shapes);
        }
    }

    #[test]
    fn a_size_token_and_overlapping_patches_change_the_number_of_tokens() {
        let check = |architecture: TransOssArchitecture, grid, tokens| {
            assert_eq!((architecture.grid(), architecture.token_count()), (grid, tokens));
        };
        check(TransOssArchitecture::vit_base(), (16, 8), 130);
        check(MICRO, (4, 2), 10);
        check(TransOssArchitecture { size_token: false, ..MICRO }, (4, 2), 9);
        check(TransOssArchitecture { stride: 12, ..MICRO }, (5, 2), 12);
    }

    #[test]
    fn presets_are_valid_and_a_wrong_field_is_named() {
        let check = |architecture: TransOssArchitecture, message: &str| {
            let error = architecture.validate().expect_err("no such model");
            assert!(error.to_string().contains(message), "{error}");
        };
        assert_eq!(TransOssArchitecture::vit_base().validate(), Ok(()));
        assert_eq!(TransOssArchitecture::small().validate(), Ok(()));
        check(TransOssArchitecture { heads: 5, ..MICRO }, "embed_dim 16 is not a multiple of heads 5");
        check(TransOssArchitecture { stride: 0, ..MICRO }, "stride is 0");
        check(TransOssArchitecture { stride: 17, ..MICRO }, "stride is 17; it must be between 1 and 16");
        check(
            TransOssArchitecture { image: ChipSize { height: 8, width: 32 }, ..MICRO },
            "image.height is 8",
        );
        check(
            TransOssArchitecture { stride: 1, image: ChipSize { height: 512, width: 512 }, ..MICRO },
            "number of tokens",
        );
        check(TransOssArchitecture { depth: usize::MAX, ..MICRO }, "depth");
        check(TransOssArchitecture { mie_coefficient: f32::NAN, ..MICRO }, "must be finite");
    }

    #[test]
    fn an_architecture_is_read_off_the_shapes_with_the_hints_it_needs() {
        let micro = golden::tensors("micro_weights");
        let hints = ArchitectureHints { image: Some(MICRO.image), heads: Some(2), ..Default::default() };
        assert_eq!(TransOssArchitecture::infer(&micro, &hints), Ok(MICRO));
        assert_eq!(
            TransOssArchitecture::infer(&micro, &ArchitectureHints::default()),
            Err(ArchitectureError::Positions { positions: 9 })
        );
        assert_eq!(
            TransOssArchitecture::infer(&micro, &ArchitectureHints { heads: None, ..hints }),
            Err(ArchitectureError::Heads(16))
        );
        assert_eq!(
            TransOssArchitecture::infer(&NamedTensors::new(), &hints),
            Err(ArchitectureError::Absent("base.cls_token", 3))
        );
    }

    #[test]
    fn an_architecture_survives_toml_and_an_unknown_key_does_not() {
        let text = toml::to_string(&MICRO).expect("plain fields");
        assert_eq!(toml::from_str::<TransOssArchitecture>(&text).expect("its own text"), MICRO);
        assert!(toml::from_str::<TransOssArchitecture>(&format!("dept = 3\n{text}")).is_err());
    }
}
