//! TransOSS: a vision transformer with one patch embedding per modality, a modality embedding and a
//! size token.
//!
//! Shapes: B batch, P patches, N tokens, D embedding, H heads, h = D / H.

#[cfg(test)]
mod golden;

use tch::{Kind, Tensor};

use super::linear::{Linear, Plan};
use super::network::{Input, Mode, Network};
use super::shared::SharedLayers;
use super::shim::Activation;
use super::tensors::Tensors;
use super::training;
use crate::arithmetic::Choice;
use crate::chip::Modality;
use crate::processor::{Level, Processor};
use crate::weights::family::FamilyArchitecture as _;
use crate::weights::family::transoss::TransOssArchitecture;

const LAYER_NORM_EPS: f64 = 1e-6;
const BATCH_NORM_EPS: f64 = 1e-5;
/// Weight of a batch in the neck's running statistics.
const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// The network.
#[derive(Debug)]
pub struct TransOss {
    embedding: TokenEmbedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    neck: Neck,
}

impl TransOss {
    /// See [`super::build::network`].
    pub fn new(
        architecture: &TransOssArchitecture,
        tensors: &Tensors,
        choice: &Choice,
        shared: &SharedLayers,
    ) -> Self {
        let plan = &Plan::new(choice, architecture.token_count());
        let names = Names { tensors, prefix: String::new(), plan, shared };
        let base = names.sub("base");
        Self {
            embedding: TokenEmbedding::new(architecture, &base),
            blocks: blocks(architecture, &base),
            norm: LayerNorm::new(&base.sub("norm")),
            neck: Neck::new(&names.sub("bottleneck")),
        }
    }
}

impl Network for TransOss {
    /// [B, D], the class token after the last LayerNorm.
    fn forward_before_neck(&self, input: &Input, mode: &mut Mode) -> Tensor {
        let x = self.embedding.forward(input);
        let class = class_tokens(&self.blocks, x, 1, mode, |_, _| ());
        self.norm.forward(&class.select(1, 0))
    }

    fn forward_neck(&self, before_neck: &Tensor, mode: &Mode) -> Tensor {
        self.neck.forward(before_neck, mode)
    }
}

pub(super) fn blocks(architecture: &TransOssArchitecture, base: &Names) -> Vec<Block> {
    let block = |number| Block::new(&base.sub(&format!("blocks.{number}")), architecture.heads as i64);
    (0..architecture.depth).map(block).collect()
}

/// What the blocks make of the first `count` tokens, which are of classes: [B, N, D] -> [B, count, D]. `seen` is given
/// the number of every block but the last, and its output [B, N, D].
pub(super) fn class_tokens(
    blocks: &[Block],
    mut x: Tensor,
    count: i64,
    mode: &mut Mode,
    mut seen: impl FnMut(usize, &Tensor),
) -> Tensor {
    let last = blocks.len().saturating_sub(1);
    for (number, block) in blocks.iter().enumerate() {
        let place = number as f64 / last.max(1) as f64;
        // Of the last block's output only these tokens are read.
        x = match mode {
            Mode::Evaluate if number == last => block.first_tokens(&x, count),
            Mode::Train { .. } if number == last => block.trained(&x, &x.narrow(1, 0, count), mode, place),
            Mode::Train { .. } | Mode::Evaluate => block.forward(x, mode, place),
        };
        if number < last {
            seen(number, &x);
        }
    }
    x
}

/// Looks up tensors by their position in the network.
pub(super) struct Names<'a> {
    pub tensors: &'a Tensors,
    pub prefix: String,
    pub plan: &'a Plan,
    pub shared: &'a SharedLayers,
}

impl Names<'_> {
    pub fn sub(&self, part: &str) -> Names<'_> {
        Names { prefix: format!("{}{part}.", self.prefix), ..*self }
    }

    pub fn get(&self, name: &str) -> Tensor {
        let name = format!("{}{name}", self.prefix);
        self.tensors.get(&name).unwrap_or_else(|| panic!("the model has no tensor {name}")).shallow_clone()
    }

    fn linear(&self, name: &str) -> Linear {
        let layer = self.sub(name);
        let make = || Linear::new(layer.get("weight"), layer.get("bias"), self.plan);
        let linear = self.shared.layer(&format!("{}{name}", self.prefix), make);
        linear.unwrap_or_else(|cause| panic!("{}: {cause}", layer.prefix))
    }
}

/// Pixels and size to tokens: class, patches, size.
#[derive(Debug)]
pub(super) struct TokenEmbedding {
    optical: PatchEmbedding,
    sar: PatchEmbedding,
    /// [1, 1, D]
    class: Tensor,
    /// [1, C + P, D] for C class tokens
    positions: Tensor,
    /// [2, 1, D]
    modality: Option<Tensor>,
    modality_factor: f64,
    /// `[D, 3]` and `[D]`
    size: Option<(Tensor, Tensor)>,
}

impl TokenEmbedding {
    pub fn new(architecture: &TransOssArchitecture, base: &Names) -> Self {
        let patches = |name| PatchEmbedding {
            weight: base.get(&format!("{name}.proj.weight")),
            bias: base.get(&format!("{name}.proj.bias")),
            stride: architecture.stride as i64,
        };
        let size = architecture.size_token.then(|| {
            let layer = base.sub("wh_embed.linear_layer");
            (layer.get("weight"), layer.get("bias"))
        });
        Self {
            optical: patches("patch_embed"),
            sar: patches("patch_embed_SAR"),
            class: base.get("cls_token"),
            positions: base.get("pos_embed"),
            modality: architecture.modality_embedding.then(|| base.get("mie_embed")),
            modality_factor: f64::from(architecture.mie_coefficient),
            size,
        }
    }

    /// [B, N, D]
    fn forward(&self, input: &Input) -> Tensor {
        self.forward_after(&[self.class_of(input)], input)
    }

    /// The class token of every chip: [B, 1, D].
    pub fn class_of(&self, input: &Input) -> Tensor {
        self.class.expand([input.modalities.len() as i64, -1, -1], false)
    }

    /// [B, N, D], of which the first tokens are `classes`, [B, 1, D] each.
    pub fn forward_after(&self, classes: &[Tensor], input: &Input) -> Tensor {
        let mut tokens: Vec<Tensor> = classes.iter().map(Tensor::shallow_clone).collect();
        tokens.push(self.patches(input));
        let mut tokens = Tensor::cat(&tokens, 1) + &self.positions;
        if let Some(modality) = &self.modality {
            let index = modality_index(input.modalities, tokens.device());
            tokens += modality.index_select(0, &index) * self.modality_factor;
        }
        match &self.size {
            None => tokens,
            Some((weight, bias)) => {
                let size = input.size_tokens.linear(weight, Some(bias)).unsqueeze(1);
                Tensor::cat(&[tokens, size], 1)
            }
        }
    }

    /// Passes every chip through its own modality's convolution: [B, P, D].
    ///
    /// In training, a convolution without chips runs as well, so that its gradient is zero rather
    /// than absent.
    fn patches(&self, input: &Input) -> Tensor {
        let rows_of = |wanted| -> Vec<i64> {
            let chips = input.modalities.iter().enumerate();
            chips.filter(|(_, modality)| **modality == wanted).map(|(row, _)| row as i64).collect()
        };
        let mut order = rows_of(Modality::Optical);
        let optical_count = order.len() as i64;
        order.extend(rows_of(Modality::Sar));
        if !self.optical.weight.requires_grad() {
            if optical_count == order.len() as i64 {
                return self.optical.forward(input.pixels);
            }
            if optical_count == 0 {
                return self.sar.forward(input.pixels);
            }
        }
        let mut place = vec![0_i64; order.len()];
        for (sorted, row) in order.iter().enumerate() {
            place[*row as usize] = sorted as i64;
        }
        let device = input.pixels.device();
        let sorted = input.pixels.index_select(0, &Tensor::from_slice(&order).to_device(device));
        let sar_count = order.len() as i64 - optical_count;
        let optical = self.optical.forward(&sorted.narrow(0, 0, optical_count));
        let sar = self.sar.forward(&sorted.narrow(0, optical_count, sar_count));
        Tensor::cat(&[optical, sar], 0).index_select(0, &Tensor::from_slice(&place).to_device(device))
    }
}

/// 0 for optical chips, 1 for SAR: `[B]`.
pub(super) fn modality_index(modalities: &[Modality], device: tch::Device) -> Tensor {
    let index: Vec<i64> = modalities.iter().map(|modality| i64::from(*modality == Modality::Sar)).collect();
    Tensor::from_slice(&index).to_device(device)
}

/// A convolution whose output grid is flattened row by row.
#[derive(Debug)]
struct PatchEmbedding {
    /// [D, 3, patch, patch]
    weight: Tensor,
    /// `[D]`
    bias: Tensor,
    stride: i64,
}

impl PatchEmbedding {
    /// [B, 3, height, width] -> [B, P, D]
    fn forward(&self, pixels: &Tensor) -> Tensor {
        let stride = [self.stride, self.stride];
        let grid = pixels.conv2d(&self.weight, Some(&self.bias), stride, [0, 0], [1, 1], 1); // [B, D, rows, columns]
        grid.flatten(2, 3).transpose(1, 2)
    }
}

/// A pre-norm transformer block.
#[derive(Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(names: &Names, heads: i64) -> Self {
        Self {
            norm1: LayerNorm::new(&names.sub("norm1")),
            attention: Attention {
                qkv: names.linear("attn.qkv"),
                proj: names.linear("attn.proj"),
                heads,
                in_bf16: names.plan.is_int8() && Processor::here().has(Level::Avx512Bf16),
            },
            norm2: LayerNorm::new(&names.sub("norm2")),
            mlp: Mlp { fc1: names.linear("mlp.fc1"), fc2: names.linear("mlp.fc2") },
        }
    }

    /// [B, N, D] -> [B, N, D]; `place` is the position in the stack, from 0 to 1.
    fn forward(&self, x: Tensor, mode: &mut Mode, place: f64) -> Tensor {
        if matches!(mode, Mode::Evaluate) {
            let x = self.attention.added_to(&x, &self.norm1.forward(&x));
            return self.mlp.added_to(&x, &self.norm2.forward(&x));
        }
        self.trained(&x, &x, mode, place)
    }

    /// What becomes of the first tokens of `x` [B, N, D] in training, which are `first` [B, F, D]: [B, F, D].
    fn trained(&self, x: &Tensor, first: &Tensor, mode: &mut Mode, place: f64) -> Tensor {
        let count = first.size()[1];
        let attend = |x: &Tensor| self.attention.trained(&self.norm1.forward(x), count);
        let first = with_branch(first, x, mode, place, attend);
        with_branch(&first, &first, mode, place, |x| self.mlp.trained(&self.norm2.forward(x)))
    }

    /// The first tokens alone, which are all that is used of the last block: [B, N, D] -> [B, count, D].
    fn first_tokens(&self, x: &Tensor, count: i64) -> Tensor {
        let first = x.narrow(1, 0, count);
        let first = self.attention.first_tokens_added_to(&first, &self.norm1.forward(x));
        self.mlp.added_to(&first, &self.norm2.forward(&first))
    }
}

/// `residual` plus a branch that is computed from `x` in training, after stochastic depth; each branch draws
/// separately.
fn with_branch(
    residual: &Tensor,
    x: &Tensor,
    mode: &mut Mode,
    place: f64,
    branch: impl Fn(&Tensor) -> Tensor,
) -> Tensor {
    let (rate, uniform) = match mode {
        Mode::Train { drop_path: rate, uniform } if *rate * place > 0.0 => (*rate * place, uniform),
        Mode::Train { .. } | Mode::Evaluate => return residual + branch(x),
    };
    let batch = x.size()[0];
    let uniform = uniform(batch);
    // Dropped branches are not computed. On a GPU it would have to be waited for which ones are.
    if x.device() == tch::Device::Cpu {
        let kept = (&uniform + (1.0 - rate)).floor().nonzero().squeeze_dim(1);
        // If all are dropped, they are computed nevertheless: the gradients are zero rather than absent.
        if (1..batch).contains(&kept.size()[0]) {
            let branch = branch(&x.index_select(0, &kept)) / (1.0 - rate);
            return residual.index_add(0, &kept, &branch);
        }
    }
    residual + drop_path(&branch(x), rate, &uniform)
}

/// Stochastic depth (Huang et al., 2016): a sample's branch is dropped where its number in `uniform` `[B]` is below
/// `rate`, and scaled up by 1 / (1 - rate) where it is kept.
pub fn drop_path(branch: &Tensor, rate: f64, uniform: &Tensor) -> Tensor {
    let mut shape = vec![1; branch.dim()];
    shape[0] = branch.size()[0];
    let kept = (uniform + (1.0 - rate)).floor().to_kind(branch.kind());
    branch / (1.0 - rate) * kept.view(&shape[..])
}

#[derive(Debug)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: i64,
    /// Whether attention is rounded to bf16, as beside int8 where there are instructions for it.
    in_bf16: bool,
}

impl Attention {
    /// What the first `count` tokens of `x` [B, N, D] attend to in training: [B, count, D].
    fn trained(&self, x: &Tensor, count: i64) -> Tensor {
        let (b, n, d) = x.size3().expect("tokens have three axes");
        let qkv = training::linear(&self.qkv, x);
        let attended = if count == n && x.device() == tch::Device::Cpu {
            training::attention(&qkv, self.heads).unwrap_or_else(|cause| panic!("{cause}"))
        } else {
            let [q, k, v] = self.by_head(&qkv);
            attend(&q.narrow(2, 0, count), &k, &v).transpose(1, 2).reshape([b, count, d])
        };
        training::linear(&self.proj, &attended)
    }

    /// [B, N, D] -> [B, N, D] in evaluation, added to `residual`.
    fn added_to(&self, residual: &Tensor, x: &Tensor) -> Tensor {
        self.proj.added_to(residual, &self.attended(x))
    }

    /// What the first tokens attend to, added to `residual` [B, F, D]: [B, N, D] -> [B, F, D].
    fn first_tokens_added_to(&self, residual: &Tensor, x: &Tensor) -> Tensor {
        let [q, k, v] = self.queries_keys_values(x);
        let count = residual.size()[1];
        self.proj.added_to(residual, &self.joined(&attend(&q.narrow(2, 0, count), &k, &v), x.kind()))
    }

    /// [B, N, D] -> [B, N, D], heads side by side.
    fn attended(&self, x: &Tensor) -> Tensor {
        let [q, k, v] = self.queries_keys_values(x);
        self.joined(&attend(&q, &k, &v), x.kind())
    }

    /// [B, H, N, h] -> [B, N, D]
    fn joined(&self, heads: &Tensor, kind: Kind) -> Tensor {
        let joined = heads.transpose(1, 2).flatten(2, 3);
        if self.in_bf16 { joined.to_kind(kind) } else { joined }
    }

    /// Three times [B, H, N, h].
    fn queries_keys_values(&self, x: &Tensor) -> [Tensor; 3] {
        let qkv = self.qkv.forward(x, Activation::None);
        self.by_head(&if self.in_bf16 { qkv.to_kind(Kind::BFloat16) } else { qkv })
    }

    /// [B, N, 3 D] to three times [B, H, N, h].
    fn by_head(&self, qkv: &Tensor) -> [Tensor; 3] {
        let (b, n, d) = qkv.size3().expect("tokens have three axes");
        let qkv = qkv.view([b, n, 3, self.heads, d / (3 * self.heads)]).permute([2, 0, 3, 1, 4]);
        [0, 1, 2].map(|part| qkv.select(0, part))
    }
}

/// softmax(q k^T / sqrt(h)) v, [B, H, N, h], fused where libtorch can.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    Tensor::scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, false, None, false)
}

#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    /// [B, N, D] -> [B, N, D], in training.
    fn trained(&self, x: &Tensor) -> Tensor {
        training::linear(&self.fc2, &training::linear(&self.fc1, x).gelu("none"))
    }

    /// The same in evaluation, added to `residual`.
    fn added_to(&self, residual: &Tensor, x: &Tensor) -> Tensor {
        self.fc2.added_to(residual, &self.fc1.forward(x, Activation::Gelu))
    }
}

#[derive(Debug)]
pub(super) struct LayerNorm {
    /// `[D]`
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub fn new(names: &Names) -> Self {
        Self { weight: names.get("weight"), bias: names.get("bias") }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), LAYER_NORM_EPS, false)
    }
}

/// The BatchNorm between feature and classifier.
#[derive(Debug)]
pub(super) struct Neck {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    steps: Tensor,
}

impl Neck {
    pub fn new(names: &Names) -> Self {
        Self {
            weight: names.get("weight"),
            bias: names.get("bias"),
            running_mean: names.get("running_mean"),
            running_var: names.get("running_var"),
            steps: names.get("num_batches_tracked"),
        }
    }

    /// [B, D] -> [B, D]
    pub fn forward(&self, x: &Tensor, mode: &Mode) -> Tensor {
        let train = matches!(mode, Mode::Train { .. });
        if train {
            let _ = self.steps.shallow_clone().f_add_scalar_(1).expect("a scalar counts on");
        }
        x.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            BATCH_NORM_MOMENTUM,
            BATCH_NORM_EPS,
            false,
        )
    }
}
