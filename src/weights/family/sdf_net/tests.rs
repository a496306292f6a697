//! A checkpoint in the layout of the released ones, starting points, and refusals.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::weights::family::Family;
use crate::weights::golden;
use crate::weights::native::tensor_bytes;
use crate::weights::open::{Hints, OpenModel};
use crate::weights::rules::start_from;
use crate::weights::seed::seeded;
use crate::weights::start::{Kind, StartError, StartingPoint};
use crate::weights::wrapper::WeightsChoice;

/// The recorded checkpoint's.
const RECORDED: SdfNetArchitecture =
    SdfNetArchitecture(TransOssArchitecture { patch: 8, stride: 8, depth: 4, ..golden::MICRO });

fn hints() -> ArchitectureHints {
    ArchitectureHints { image: Some(RECORDED.0.image), heads: Some(2), ..ArchitectureHints::default() }
}

fn tiny() -> SdfNetArchitecture {
    SdfNetArchitecture::configured(Preset::Tiny, &Options::default())
}

#[test]
fn a_checkpoint_in_the_released_layout_is_an_sdf_net_that_is_read_after_the_neck() {
    let model = golden::sdf_net();
    assert_eq!(model.architecture, RECORDED.into());
    assert_eq!(model.feature_point, FeaturePoint::AfterNeck);
    assert!(model.tensors.keys().eq(RECORDED.expected_tensors().keys()));
    assert!(!model.tensors.keys().any(|name| name.starts_with(OLD_NECK) || name.starts_with("base.fc.")));
    let before =
        Hints { architecture: hints(), feature_point: Some(FeaturePoint::BeforeNeck), ..Hints::default() };
    let before = OpenModel::open(&golden::path("sdf_net.pth"), &before).expect("the same checkpoint");
    assert_eq!(before.feature_point, FeaturePoint::BeforeNeck);
    assert_ne!(before.digest, model.digest);

    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = folder.path().join("model");
    model.save(&place, "sdf_net.pth").expect("written");
    let text = fs::read_to_string(place.join("model.toml")).expect("readable");
    assert!(text.contains("family = \"sdf_net\"") && text.contains("depth = 4"), "{text}");
    assert_eq!(OpenModel::open(&place, &Hints::default()).expect("its own folder"), model);
}

#[test]
fn chips_of_256_by_256_need_no_hint() {
    let infer = |image: ChipSize| {
        let options = Options { image: Some(image), ..Options::default() };
        let architecture = SdfNetArchitecture::configured(Preset::Small, &options);
        let tensors = seeded(&architecture.into(), 1);
        assert_eq!(Architecture::infer(&tensors, &ArchitectureHints::default()), Ok(architecture.into()));
        architecture.0.grid()
    };
    assert_eq!(infer(SQUARE), (16, 16));
    assert_eq!(infer(ChipSize { height: 256, width: 128 }), (16, 8));
    let other = seeded(&tiny().into(), 1);
    assert_eq!(
        Architecture::infer(&other, &ArchitectureHints::default()),
        Err(ArchitectureError::Positions { positions: 34 })
    );
}

#[test]
fn it_is_as_large_as_a_transoss_with_two_more_tokens_and_a_position() {
    let both = [Family::TransOss, Family::SdfNet].map(|family| family.preset(Preset::VitBase));
    assert_eq!(both[1].parameters(), both[0].parameters() + 3 * 768);
    assert_eq!((both[0].token_count(), both[1].token_count()), (130, 131));
    assert_eq!(both.map(|architecture| architecture.embed_dim()), [768, 768]);
    for preset in [Preset::Tiny, Preset::Small, Preset::VitBase] {
        assert_eq!(Family::SdfNet.preset(preset).validate(), Ok(()));
    }
    let shallow = SdfNetArchitecture(TransOssArchitecture { depth: 1, ..RECORDED.0 });
    let narrow =
        SdfNetArchitecture(TransOssArchitecture { image: ChipSize { height: 64, width: 8 }, ..RECORDED.0 });
    for (wrong, field) in [(shallow, "depth"), (narrow, "columns")] {
        assert!(wrong.validate().expect_err("too small").to_string().contains(field));
    }
}

/// `tensors` as a file of another program.
fn file(folder: &Path, tensors: &NamedTensors) -> PathBuf {
    let path = folder.join("start.safetensors");
    fs::write(&path, tensor_bytes(tensors)).expect("writable");
    path
}

fn start(architecture: Architecture, from: &NamedTensors, kind: Kind) -> Result<NamedTensors, StartError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut initial = seeded(&architecture, 1);
    let from = file(folder.path(), from);
    StartingPoint::take(&mut initial, &architecture, &from, (kind, &WeightsChoice::Own)).map(|_| initial)
}

#[test]
fn a_vit_is_a_start_and_so_is_that_of_a_transoss() {
    let transoss = seeded(&Family::TransOss.preset(Preset::Tiny), 7);
    let started = start(tiny().into(), &transoss, Kind::Imagenet).expect("its ViT is taken");
    for name in ["base.cls_token", "base.patch_embed_SAR.proj.weight", "base.blocks.3.mlp.fc2.weight"] {
        assert_eq!(started[name], transoss[name], "{name}");
    }
    let (own, found) = (&started[POSITIONS].values, &transoss[POSITIONS].values);
    assert_eq!(own[..192], found[..192]);
    assert_eq!(own[192..], found[..], "the ViT's positions follow the first class token's");
    assert_eq!(started[SPECIFIC_SAR], seeded(&tiny().into(), 1)[SPECIFIC_SAR], "a ViT has none");
}

#[test]
fn a_start_for_other_chips_keeps_its_class_tokens_and_has_its_positions_resized() {
    let trained = seeded(&tiny().into(), 7);
    let options = Options { image: Some(ChipSize { height: 128, width: 128 }), ..Options::default() };
    let wide = SdfNetArchitecture::configured(Preset::Tiny, &options);
    let mut started = seeded(&wide.into(), 1);
    start_from(&mut started, &wide.into(), trained.clone()).expect("the same family");
    assert_eq!(started[POSITIONS].shape, [1, 2 + 8 * 8, 192]);
    assert_eq!(started[POSITIONS].values[..384], trained[POSITIONS].values[..384]);
    assert_eq!(started["base.mie_embed"], trained["base.mie_embed"]);

    let mut odd = trained;
    odd.insert(POSITIONS.to_owned(), HostTensor { shape: vec![1, 9, 192], values: vec![0.0; 9 * 192] });
    let misfits = start_from(&mut started, &wide.into(), odd).expect_err("no grid has 7 patches");
    assert!(misfits.to_string().contains("misshapen base.pos_embed [1, 9, 192]"), "{misfits}");
}

#[test]
fn a_start_of_a_family_that_the_configuration_does_not_name_is_refused() {
    let [transoss, sdf_net] = [Family::TransOss, Family::SdfNet].map(|family| family.preset(Preset::Tiny));
    let refused = |architecture: Architecture, other: &Architecture| {
        let prefixed: NamedTensors =
            seeded(other, 1).into_iter().map(|(name, tensor)| (format!("net.{name}"), tensor)).collect();
        let refused = start(architecture, &prefixed, Kind::Model).expect_err("another family").to_string();
        assert_eq!(refused.lines().count(), 1);
        refused
    };
    assert_eq!(
        refused(transoss, &sdf_net),
        "it is a model of the family sdf_net, and the configuration's model.family is transoss"
    );
    assert_eq!(
        refused(sdf_net, &transoss),
        "it is a model of the family transoss, and the configuration's model.family is sdf_net; \
         start.from = \"imagenet\" takes its ViT"
    );
}
