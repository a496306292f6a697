//! The network against the recorded reference: golden sets a, i, full and drop_path.

use tch::{Kind, Tensor};

use super::{Choice, Input, Mode, Network as _, Tensors, TransOss, drop_path, with_branch};
use crate::arithmetic::{Kernel, Precision};
use crate::chip::{ChipSize, Modality};
use crate::model::test_device::{self, check_difference, check_direction, check_direction_in_int8, device};
use crate::model::{self, Features, SharedLayers, on_host, upload};
use crate::weights::family::ArchitectureHints;
use crate::weights::family::transoss::TransOssArchitecture;
use crate::weights::golden::{self, Inputs, MICRO};
use crate::weights::open::{Hints, OpenModel};
use crate::weights::tensors::{HostTensor, NamedTensors};

const TINY: TransOssArchitecture = TransOssArchitecture { embed_dim: 48, depth: 3, heads: 3, ..MICRO };

/// A recorded batch.
struct Rows {
    pixels: Tensor,
    modalities: Vec<Modality>,
    size_tokens: Tensor,
}

fn rows(index: &[usize]) -> Rows {
    let Inputs { pixels, modalities, size_tokens } = golden::inputs(index);
    Rows { pixels: on_device(&pixels), modalities, size_tokens: on_device(&size_tokens) }
}

/// The rows of `inputs` that make up a batch of set a.
fn batch(recorded: &NamedTensors, name: &str) -> Vec<usize> {
    recorded[&format!("batch.{name}.index")].values.iter().map(|row| *row as usize).collect()
}

fn on_device(tensor: &HostTensor) -> Tensor {
    on_host(tensor).to_device(device().tch())
}

fn all_on_device(tensors: &NamedTensors) -> Tensors {
    upload(tensors, device(), Kind::Float)
}

impl Rows {
    fn input(&self) -> Input<'_> {
        Input { pixels: &self.pixels, modalities: &self.modalities, size_tokens: &self.size_tokens }
    }
}

/// `atol` is the bound on the CPU.
fn close(what: &str, found: &Tensor, expected: &HostTensor, atol: f64) {
    let expected = on_device(expected);
    assert_eq!(found.size(), expected.size(), "{what}");
    check_difference(what, (found - expected).abs().max().double_value(&[]), atol);
}

fn unit(feature: &Tensor) -> Tensor {
    feature / feature.norm_scalaropt_dim(2, [1], true)
}

fn check_features(what: &str, found: &Features, recorded: &NamedTensors, prefix: &str, atol: f64) {
    close(what, &found.before_neck, &recorded[&format!("{prefix}feat_before")], atol);
    close(what, &found.after_neck, &recorded[&format!("{prefix}feat_after")], atol);
    close(what, &unit(&found.before_neck), &recorded[&format!("{prefix}feat_before_l2")], atol);
}

/// Variants of set a: name, architecture, weights.
fn variants() -> Vec<(&'static str, TransOssArchitecture, NamedTensors)> {
    let mut tensors = golden::tensors("tiny_weights");
    let overlapping = tensors.remove("stride12.base.pos_embed").expect("recorded");
    let mut stride12 = tensors.clone();
    stride12.insert("base.pos_embed".into(), overlapping);
    vec![
        ("sse16", TINY, tensors.clone()),
        ("nosse16", TransOssArchitecture { size_token: false, ..TINY }, tensors.clone()),
        ("sse12", TransOssArchitecture { stride: 12, ..TINY }, stride12),
        ("nomie16", TransOssArchitecture { modality_embedding: false, ..TINY }, tensors),
    ]
}

fn network(architecture: &TransOssArchitecture, tensors: &NamedTensors, kernel: Kernel) -> TransOss {
    TransOss::new(architecture, &all_on_device(tensors), &Choice::only(kernel, 8), &SharedLayers::default())
}

#[test]
fn every_variant_and_batch_gives_the_recorded_features() {
    let recorded = golden::tensors("model_forward");
    for (variant, architecture, tensors) in variants() {
        for kernel in test_device::kernels(Precision::F32) {
            let network = network(&architecture, &tensors, kernel);
            for name in ["mixed", "opt", "sar"] {
                let found = network.forward(&rows(&batch(&recorded, name)).input(), Mode::Evaluate);
                let prefix = format!("{variant}.{name}.");
                check_features(&format!("{prefix} {kernel:?}"), &found, &recorded, &prefix, 2e-5);
            }
        }
    }
}

#[test]
fn every_stage_gives_the_recorded_activations() {
    let recorded = golden::tensors("model_forward");
    let rows = rows(&batch(&recorded, "mixed"));
    for (variant, architecture, tensors) in variants() {
        if !["sse16", "sse12"].contains(&variant) {
            continue;
        }
        let network = network(&architecture, &tensors, Kernel::Aten);
        let check = |what: &str, found: &Tensor| {
            close(&format!("{variant} {what}"), found, &recorded[&format!("{variant}.mixed.{what}")], 2e-5);
        };
        check("patch_embed", &network.embedding.patches(&rows.input()));
        let mut x = network.embedding.forward(&rows.input());
        check("embed", &x);
        if variant == "sse16" {
            let block = &network.blocks[0];
            let normed = block.norm1.forward(&x);
            check("block0.norm1", &normed);
            let [q, k, _] = block.attention.queries_keys_values(&normed);
            let scale = 1.0 / f64::sqrt(16.0);
            check("block0.attn_probs", &(q.matmul(&k.transpose(2, 3)) * scale).softmax(-1, Kind::Float));
            let attended = block.attention.trained(&normed, normed.size()[1]);
            check("block0.attn", &attended);
            let normed = block.norm2.forward(&(&x + attended));
            check("block0.norm2", &normed);
            check("block0.mlp", &block.mlp.trained(&normed));
        }
        for (number, block) in network.blocks.iter().enumerate() {
            x = block.forward(x, &mut Mode::Evaluate, 0.0);
            check(&format!("block{number}"), &x);
        }
        check("norm", &network.norm.forward(&x));
    }
}

#[test]
fn every_layout_of_a_recorded_checkpoint_gives_the_recorded_features() {
    let recorded = golden::tensors("ckpt_expected");
    let architecture = ArchitectureHints {
        image: Some(ChipSize { height: 64, width: 32 }),
        heads: Some(2),
        ..ArchitectureHints::default()
    };
    let all: Vec<usize> = (0..12).collect();
    let recordings = ["ckpt_plain.pth", "ckpt_wrapped.pth", "ckpt_ddp.pth"].map(golden::path);
    let cases = ["ckpt_counter.pth", "ckpt_dtype.pth", "ckpt_compiled.pth"].map(golden::checkpoint_case);
    for path in recordings.iter().chain(&cases) {
        let hints = Hints { architecture, ..Hints::default() };
        let model = OpenModel::open(path, &hints).expect("recorded");
        let tensors = all_on_device(&model.tensors);
        let network = model::network(
            &model.architecture,
            &tensors,
            &Choice::only(Kernel::Aten, 8),
            &SharedLayers::default(),
        );
        let found = network.forward(&rows(&all).input(), Mode::Evaluate);
        check_features(&path.display().to_string(), &found, &recorded, "", 2e-5);
    }
}

#[test]
fn the_full_size_model_gives_the_recorded_features() {
    let recorded = golden::tensors("full/outputs");
    let inputs: Vec<_> = (0..4).map(golden::full_size_input).collect();
    let pixels: Vec<f32> = inputs.iter().flat_map(|input| input.pixels.clone()).collect();
    let sizes: Vec<f32> = inputs.iter().flat_map(|input| input.size_token).collect();
    let rows = Rows {
        pixels: Tensor::from_slice(&pixels).view([4, 3, 256, 128]).to_device(device().tch()),
        modalities: inputs.iter().map(|input| input.modality).collect(),
        size_tokens: Tensor::from_slice(&sizes).view([4, 3]).to_device(device().tch()),
    };
    let tensors = golden::full_size_golden();
    for kernel in test_device::kernels(Precision::F32) {
        let _no_grad = tch::no_grad_guard();
        let network = network(&golden::full_size_architecture(), &tensors, kernel);
        let mut x = network.embedding.forward(&rows.input());
        let places = Tensor::from_slice(&[0_i64, 1, 128, 129]).to_device(device().tch());
        let edges = x.narrow(0, 0, 2).index_select(1, &places);
        close("embed", &edges, &recorded["embed_tokens_0_1_128_129"], 1e-5);
        let mut classes = Vec::new();
        for block in &network.blocks {
            x = block.forward(x, &mut Mode::Evaluate, 0.0);
            classes.push(x.narrow(0, 0, 2).select(1, 0));
        }
        close("class tokens", &Tensor::stack(&classes, 0), &recorded["cls_after_block"], 1e-4);
        let found = network.forward(&rows.input(), Mode::Evaluate);
        close("before", &found.before_neck, &recorded["feat_before"], 1e-4);
        close("after", &found.after_neck, &recorded["feat_after"], 1e-4);
        close("unit", &unit(&found.before_neck), &recorded["feat_before_l2"], 5e-6);

        // ATen's bf16 takes minutes on a CPU without support for it; the tiny model below covers it.
        let is_fast = kernel == Kernel::OneDnn || !device().is_cpu();
        if is_fast && test_device::kernels(Precision::Bf16).contains(&kernel) {
            let architecture = golden::full_size_architecture();
            let bf16 = before_neck_in_bf16(&architecture, &tensors, kernel, &rows);
            point_alike("full size", &bf16, &found.before_neck);
        }
    }
    for kernel in test_device::kernels(Precision::Int8) {
        let network = network(&golden::full_size_architecture(), &tensors, kernel);
        let int8 = network.forward(&rows.input(), Mode::Evaluate).before_neck;
        let recorded = on_device(&recorded["feat_before"]);
        check_direction_in_int8("full size", &unit(&int8), &unit(&recorded));
    }
}

#[test]
fn every_kernel_points_in_bf16_and_in_int8_where_f32_does() {
    let recorded = golden::tensors("model_forward");
    let rows = rows(&batch(&recorded, "mixed"));
    for (variant, architecture, tensors) in variants() {
        let exact = network(&architecture, &tensors, Kernel::Aten).forward(&rows.input(), Mode::Evaluate);
        for kernel in test_device::kernels(Precision::Bf16) {
            let bf16 = before_neck_in_bf16(&architecture, &tensors, kernel, &rows);
            point_alike(&format!("{variant} {kernel:?}"), &bf16, &exact.before_neck);
        }
        for kernel in test_device::kernels(Precision::Int8) {
            let int8 = network(&architecture, &tensors, kernel).forward(&rows.input(), Mode::Evaluate);
            check_direction_in_int8(variant, &unit(&int8.before_neck), &unit(&exact.before_neck));
        }
    }
}

/// Features before the neck, computed in bf16.
fn before_neck_in_bf16(
    architecture: &TransOssArchitecture,
    tensors: &NamedTensors,
    kernel: Kernel,
    rows: &Rows,
) -> Tensor {
    let halved =
        all_on_device(tensors).into_iter().map(|(name, t)| (name, t.to_kind(Kind::BFloat16))).collect();
    let network = TransOss::new(architecture, &halved, &Choice::only(kernel, 8), &SharedLayers::default());
    let (pixels, sizes) = (rows.pixels.to_kind(Kind::BFloat16), rows.size_tokens.to_kind(Kind::BFloat16));
    let input = Input { pixels: &pixels, modalities: &rows.modalities, size_tokens: &sizes };
    network.forward(&input, Mode::Evaluate).before_neck.to_kind(Kind::Float)
}

fn point_alike(what: &str, found: &Tensor, expected: &Tensor) {
    check_direction(what, &unit(found), &unit(expected));
}

#[test]
fn training_moves_the_neck_and_drops_branches() {
    let tensors = all_on_device(&golden::tensors("micro_weights"));
    let network = TransOss::new(&MICRO, &tensors, &Choice::only(Kernel::Aten, 12), &SharedLayers::default());
    let rows = rows(&(0..12).collect::<Vec<_>>());
    let before = tensors["bottleneck.running_mean"].copy();
    let mut asked = 0;
    let mut uniform = |count: i64| {
        asked += 1;
        Tensor::zeros([count], (Kind::Float, device().tch()))
    };
    let dropped = network.forward(&rows.input(), Mode::Train { drop_path: 0.5, uniform: &mut uniform });
    assert_eq!(asked, 2, "two branches of the last block, none of the first, whose rate is zero");
    let mean = dropped.before_neck.mean_dim([0i64].as_slice(), false, Kind::Float);
    let moved = &before * 0.9 + mean * 0.1;
    let difference = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    check_difference("the mean of the neck", difference(&moved, &tensors["bottleneck.running_mean"]), 1e-5);
    let kept =
        network.forward(&rows.input(), Mode::Train { drop_path: 0.0, uniform: &mut |_| unreachable!() });
    let evaluated = network.forward(&rows.input(), Mode::Evaluate);
    check_difference("without dropping", difference(&kept.before_neck, &evaluated.before_neck), 2e-5);
    assert!(difference(&dropped.before_neck, &evaluated.before_neck) > 0.01);
    assert_eq!(tensors["bottleneck.num_batches_tracked"].double_value(&[]), 9.0);
}

#[test]
fn a_branch_that_is_dropped_need_not_be_computed() {
    let cpu = (Kind::Float, tch::Device::Cpu);
    let layer = Tensor::randn([8, 8], cpu).set_requires_grad(true);
    for uniform in [[0.9_f32, 0.1, 0.5, 0.2], [0.0; 4], [0.9; 4]] {
        let drawn = Tensor::from_slice(&uniform);
        let (x, first) = (Tensor::randn([4, 3, 8], cpu), Tensor::randn([4, 1, 8], cpu));
        let computed = std::cell::Cell::new(0);
        let branch = |x: &Tensor| {
            computed.set(x.size()[0]);
            x.narrow(1, 0, 1).matmul(&layer)
        };
        let mut draw = |_| drawn.copy();
        let mut mode = Mode::Train { drop_path: 0.4, uniform: &mut draw };
        let found = with_branch(&first, &x, &mut mode, 1.0, branch);
        let kept = uniform.iter().filter(|number| **number >= 0.4).count() as i64;
        assert_eq!(computed.get(), if kept == 0 { 4 } else { kept }, "{uniform:?}");
        let expected = &first + drop_path(&branch(&x), 0.4, &drawn);
        let gradient = |y: &Tensor| {
            Tensor::run_backward(&[y.square().sum(Kind::Float)], &[&layer], false, false).remove(0)
        };
        let difference = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(difference(&found, &expected) < 1e-6, "{uniform:?}");
        assert!(difference(&gradient(&found), &gradient(&expected)) < 1e-4, "{uniform:?}");
    }
}

#[test]
fn a_branch_is_dropped_as_recorded() {
    let recorded = golden::tensors("drop_path");
    for (rate, expected) in [(0.1, "y_p01"), (0.4, "y_p04")] {
        let found = drop_path(&on_device(&recorded["x"]), rate, &on_device(&recorded["uniform"]));
        close(expected, &found, &recorded[expected], 1e-6);
    }
}
