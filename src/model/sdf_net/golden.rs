//! The network against `tests/golden/sdf_net.py`, which is written in plain torch.

use tch::{Kind, Tensor};

use super::SdfNet;
use crate::arithmetic::{Choice, Kernel, Precision};
use crate::chip::{Modality, PreparedPixels};
use crate::embedding::Embedding;
use crate::encoder::{Batch, EncoderInput};
use crate::model::test_device::{self, check_difference, check_direction, check_direction_in_int8, device};
use crate::model::{
    Input, Mode, Network as _, SharedLayers, SharedWeights, Tensors, TorchSettings, network, on_host, upload,
};
use crate::weights::family::Architecture;
use crate::weights::golden::{self, Inputs};
use crate::weights::tensors::{HostTensor, NamedTensors};

/// The recorded batch.
struct Rows {
    pixels: Tensor,
    modalities: Vec<Modality>,
    size_tokens: Tensor,
}

impl Rows {
    fn recorded() -> Self {
        let Inputs { pixels, modalities, size_tokens } = golden::inputs(&(0..12).collect::<Vec<_>>());
        Self { pixels: on_device(&pixels), modalities, size_tokens: on_device(&size_tokens) }
    }

    fn input(&self) -> Input<'_> {
        Input { pixels: &self.pixels, modalities: &self.modalities, size_tokens: &self.size_tokens }
    }
}

fn on_device(tensor: &HostTensor) -> Tensor {
    on_host(tensor).to_device(device().tch())
}

fn close(what: &str, found: &Tensor, recorded: &NamedTensors, name: &str) {
    let expected = on_device(&recorded[name]);
    assert_eq!(found.size(), expected.size(), "{what} {name}");
    check_difference(&format!("{what} {name}"), (found - expected).abs().max().double_value(&[]), 1e-4);
}

fn sdf_net(tensors: &Tensors, choice: &Choice) -> SdfNet {
    let Architecture::SdfNet(architecture) = golden::sdf_net().architecture else { panic!("an SDF-Net") };
    SdfNet::new(&architecture, tensors, choice, &SharedLayers::default())
}

fn unit(feature: &Tensor) -> Tensor {
    feature / feature.norm_scalaropt_dim(2, [1], true)
}

#[test]
fn a_released_checkpoint_gives_the_features_of_a_program_in_torch() {
    let (recorded, rows) = (golden::tensors("sdf_net"), Rows::recorded());
    let model = golden::sdf_net();
    let tensors = upload(&model.tensors, device(), Kind::Float);
    for kernel in test_device::kernels(Precision::F32) {
        let choice = Choice::only(kernel, 12);
        let network = network(&model.architecture, &tensors, &choice, &SharedLayers::default());
        let found = network.forward(&rows.input(), Mode::Evaluate);
        close(&format!("{kernel:?}"), &found.before_neck, &recorded, "feat_before");
        close(&format!("{kernel:?}"), &found.after_neck, &recorded, "feat_after");
    }
    let exact = on_device(&recorded["feat_before"]);
    let features = |kind, choice: &Choice| {
        let tensors = upload(&model.tensors, device(), kind);
        let input = Input {
            pixels: &rows.pixels.to_kind(kind),
            modalities: &rows.modalities,
            size_tokens: &rows.size_tokens.to_kind(kind),
        };
        let network = sdf_net(&tensors, choice);
        network.forward_before_neck(&input, &mut Mode::Evaluate).to_kind(Kind::Float)
    };
    for kernel in test_device::kernels(Precision::Bf16) {
        let found = features(Kind::BFloat16, &Choice::only(kernel, 12));
        check_direction(&format!("{kernel:?}"), &unit(&found), &unit(&exact));
    }
    for kernel in test_device::kernels(Precision::Int8) {
        let found = features(Kind::Float, &Choice::only(kernel, 12));
        check_direction_in_int8("int8", &unit(&found), &unit(&exact));
    }
}

#[test]
fn what_losses_read_is_the_recorded_and_training_computes_the_same_features() {
    let (recorded, rows) = (golden::tensors("sdf_net"), Rows::recorded());
    let tensors = upload(&golden::sdf_net().tensors, device(), Kind::Float);
    let network = sdf_net(&tensors, &Choice::only(Kernel::Aten, 12));
    let mut uniform = |_| unreachable!("no branch is dropped");
    let mut mode = Mode::Train { drop_path: 0.0, uniform: &mut uniform };
    let found = network.forward_in_training(&rows.input(), &mut mode);
    let parts = found.parts.expect("two class tokens");
    close("training", &found.before_neck, &recorded, "feat_before");
    close("training", &parts.shared, &recorded, "shared");
    close("training", &parts.specific, &recorded, "specific");
    assert_eq!(parts.patches.size(), [12, 8, 4, 16]);
    close("training", &parts.patches.flatten(1, 2), &recorded, "patches");
}

#[test]
fn a_chip_of_either_modality_has_the_same_feature_alone() {
    let rows = Rows::recorded();
    let tensors = upload(&golden::sdf_net().tensors, device(), Kind::Float);
    let network = sdf_net(&tensors, &Choice::only(Kernel::Aten, 12));
    let together = network.forward_before_neck(&rows.input(), &mut Mode::Evaluate);
    for row in 0..12 {
        let (pixels, sizes) = (rows.pixels.narrow(0, row, 1), rows.size_tokens.narrow(0, row, 1));
        let modalities = &rows.modalities[row as usize..][..1];
        let input = Input { pixels: &pixels, modalities, size_tokens: &sizes };
        let alone = network.forward_before_neck(&input, &mut Mode::Evaluate);
        let off = (alone - together.narrow(0, row, 1)).abs().max().double_value(&[]);
        check_difference(&format!("row {row}"), off, 2e-5);
    }
}

#[test]
fn its_encoder_answers_with_the_recorded_feature_after_the_neck_and_rehearses_with_a_block() {
    let (recorded, model) = (golden::tensors("sdf_net"), golden::sdf_net());
    let Inputs { pixels, modalities, size_tokens } = golden::inputs(&(0..12).collect::<Vec<_>>());
    let size = model.architecture.preprocessing().size;
    let prepared = |row: usize| {
        let values =
            pixels.values[row * 3 * size.height * size.width..][..3 * size.height * size.width].to_vec();
        let size_token = size_tokens.values.as_chunks().0[row];
        PreparedPixels::new(values, size, modalities[row], size_token).expect("finite")
    };
    let batch =
        Batch { model: model.digest, chips: (0..12).map(|row| EncoderInput::from(prepared(row))).collect() };
    let settings = TorchSettings {
        device: device(),
        precision: Precision::F32,
        kernels: Choice::only(Kernel::Aten, 12),
        threads: 1,
        feature_point: model.feature_point,
    };
    let weights = SharedWeights::new(model.architecture, model.tensors, settings);
    let mut encoder = weights.factory()(0).expect("an encoder");
    let found = encoder.forward(&batch).expect("embeddings");
    for (found, expected) in found.iter().zip(recorded["feat_after"].values.chunks(16)) {
        let expected = Embedding::from_feature(expected.to_vec()).expect("a feature");
        let differences = found.as_slice().iter().zip(expected.as_slice()).map(|(a, b)| (a - b).abs());
        check_difference("an embedding", differences.fold(0.0, f32::max).into(), 1e-4);
    }
    let rehearsal = encoder.rehearsal().expect("a part of it");
    assert_eq!(rehearsal.times, 4);
    let part = rehearsal.part.forward(&batch).expect("embeddings");
    assert!(part[0].cosine(&found[0]) < 0.999, "another network");
}
