//! Files saved by other programs, and the expected result of reading each (`tests/cases/checkpoints`).

use super::checkpoint::Origin;
use super::family::ArchitectureHints;
use super::family::transoss::TransOssArchitecture;
use super::fit::{Blocks, UntakenReason};
use super::golden::{self, checkpoint_case as path};
use super::native::read_tensors;
use super::open::{Hints, OpenModel};
use super::seed::seeded;
use super::start::{Kind, StartingPoint};
use super::tensors::{HostTensor, NamedTensors};
use super::wrapper::WeightsChoice;
use crate::chip::ChipSize;

/// The model of every file that was generated here.
const TINY: TransOssArchitecture = TransOssArchitecture {
    image: ChipSize { height: 12, width: 8 },
    patch: 4,
    stride: 4,
    embed_dim: 4,
    depth: 2,
    heads: 1,
    mlp_ratio: 1,
    classes: 3,
    ..TransOssArchitecture::vit_base()
};

fn hints(architecture: &TransOssArchitecture, weights: &str) -> Hints {
    let TransOssArchitecture { image, heads, .. } = *architecture;
    let architecture = ArchitectureHints { image: Some(image), heads: Some(heads), ..Default::default() };
    Hints { architecture, weights: WeightsChoice::new(weights), ..Hints::default() }
}

fn open(name: &str, weights: &str) -> (OpenModel, Origin) {
    let opened = OpenModel::open_with_origin(&path(name), &hints(&TINY, weights));
    opened.unwrap_or_else(|cause| panic!("{cause}"))
}

fn refusal(name: &str, weights: &str) -> String {
    let refused = OpenModel::open(&path(name), &hints(&TINY, weights)).expect_err("no model").to_string();
    assert_eq!(refused.lines().count(), 1, "{refused}");
    refused
}

#[test]
fn the_same_model_in_every_layout_is_the_same_model() {
    let (plain, _) = open("tiny.safetensors", "");
    assert_eq!(plain.architecture, TINY.into());
    for (name, wrapper, prefix) in [
        ("plain.pth", "", ""),
        ("legacy.pth", "state_dict", ""),
        ("protocol4.pth", "", ""),
        ("protocol5.pth", "model", ""),
        ("compiled_ddp.pth", "model", ""),
        ("ema.pth", "model", ""),
        ("averaged.pth", "", ""),
        ("lightning.ckpt", "state_dict", "net."),
        ("half.pth", "", ""),
        ("bfloat.pth", "", ""),
        ("double.pth", "", ""),
        ("half.safetensors", "", ""),
        ("bfloat.safetensors", "", ""),
        ("double.safetensors", "", ""),
        ("prefixed.safetensors", "", "model."),
        ("views.pth", "state_dict", ""),
        ("parameters.pth", "", ""),
        ("everything.pth", "state_dict", ""),
        ("everything_legacy.pth", "state_dict", ""),
        ("beside.pth", "", ""),
    ] {
        let (model, origin) = open(name, "");
        assert_eq!(model, plain, "{name}");
        assert_eq!((origin.wrapper.as_str(), origin.naming.prefix.as_str()), (wrapper, prefix), "{name}");
    }
    let (without, _) = open("no_counter.pth", "");
    assert_eq!(without.digest, plain.digest, "no feature depends on the count of steps");
}

#[test]
fn the_recorded_model_is_read_from_what_other_programs_add() {
    let hints = hints(&golden::MICRO, "");
    let recorded = OpenModel::open(&golden::path("ckpt_plain.pth"), &hints).expect("recorded");
    for name in ["ckpt_counter.pth", "ckpt_dtype.pth", "ckpt_compiled.pth"] {
        assert_eq!(OpenModel::open(&path(name), &hints).expect(name), recorded, "{name}");
    }
}

#[test]
fn other_weights_of_a_file_are_named_and_can_be_chosen() {
    let (half, _) = open("ema.pth", "ema");
    assert_ne!(half.digest, open("plain.pth", "").0.digest);
    let check = |name, weights, wrapper, prefix, others: &[&str]| {
        let (model, origin) = open(name, weights);
        assert_eq!(model.digest, half.digest, "{name} {weights}");
        let found: Vec<&String> = origin.others.iter().chain(&origin.naming.others).collect();
        assert_eq!((origin.wrapper.as_str(), origin.naming.prefix.as_str()), (wrapper, prefix), "{name}");
        assert_eq!(found, others, "{name}");
    };
    check("ema.pth", "model_ema", "model_ema", "", &["model"]);
    check("ema.pth", "ema", "model_ema", "", &["model"]);
    check("lightning.ckpt", "ema", "state_dict", "ema.", &["net"]);
    let refused = refusal("ema.pth", "teacher");
    assert!(refused.ends_with("the file has no weights named teacher; it has model_ema"), "{refused}");
    assert!(refusal("plain.pth", "ema").ends_with("leave the choice of weights empty"));
    let said = open("ema.pth", "").1.to_string();
    assert_eq!(said, "under model; other weights, which can be chosen: model_ema");
    let said = open("lightning.ckpt", "").1.to_string();
    assert!(said.starts_with("under state_dict, names without \"module.\" and \"net.\""), "{said}");
    assert!(said.ends_with("chosen: ema; passed over: criterion.center"), "{said}");
}

#[test]
fn what_stands_beside_the_tensors_is_passed_over_and_said() {
    let skipped = open("beside.pth", "").1.skipped;
    let found: Vec<(&str, &str)> =
        skipped.iter().map(|(name, kind)| (name.as_str(), kind.as_str())).collect();
    let expected = [
        ("_extra_state", "a dictionary"),
        ("dtype", "a data type"),
        ("note", "a text"),
        ("steps", "a number"),
        ("nothing", "nothing"),
        ("pair", "a tuple"),
        ("seen", "a set"),
        ("a key that is a number", "a tensor"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_torch_refuses_is_refused_with_a_way_out() {
    for (name, global) in
        [("namespace.pth", "argparse.Namespace"), ("numpy_scalar.pth", "numpy._core.multiarray.scalar")]
    {
        let refused = refusal(name, "");
        assert!(refused.contains(&format!("names {global}, which torch's safe loader")), "{refused}");
        assert!(refused.contains("weights_only=False") && refused.ends_with("OLD.pth NEW.pth"), "{refused}");
    }
    for name in ["ckpt_malicious.pth", "ckpt_malicious_raw.pth"] {
        let refused =
            OpenModel::open(&golden::path(name), &Hints::default()).expect_err("malicious").to_string();
        assert!(
            refused.contains("names posix.system") && !refused.contains("weights_only=False"),
            "{refused}"
        );
    }
    assert!(!std::env::temp_dir().join("pwned").exists());
    assert!(refusal("torchscript.pt", "").contains("TorchScript program"));
}

#[test]
fn a_tensor_that_is_not_read_is_said_to_be_there() {
    for (name, kind) in [("complex.pth", "complex64"), ("negated.pth", "negated or conjugated")] {
        let expected = format!("missing base.norm.bias (it is a {kind} tensor, which is not read)");
        let refused = refusal(name, "");
        assert!(refused.ends_with(&expected), "{refused}");
    }
}

#[test]
fn a_plain_vit_is_no_model_to_serve() {
    assert!(refusal("timm.safetensors", "").ends_with("start from it with start.from = \"imagenet\""));
    assert!(refusal("dino.pth", "").contains("its names are"), "{}", refusal("dino.pth", ""));
}

fn start(name: &str, kind: Kind, weights: &str) -> Result<(NamedTensors, StartingPoint), String> {
    let mut tensors = seeded(&TINY.into(), 1);
    let choice = WeightsChoice::new(weights);
    let taken = StartingPoint::take(&mut tensors, &TINY.into(), &path(name), (kind, &choice));
    taken.map(|taken| (tensors, taken)).map_err(|cause| cause.to_string())
}

#[test]
fn a_network_starts_from_a_vit_as_timm_and_dino_save_it() {
    let vit = read_tensors(&path("timm.safetensors")).expect("f32");
    for (name, weights, wrapper, prefix) in [
        ("timm.safetensors", "", "", ""),
        ("dino.pth", "", "student", "backbone."),
        ("dino.pth", "ema", "teacher", "backbone."),
    ] {
        let (tensors, start) = start(name, Kind::Imagenet, weights).expect("a starting point");
        assert_eq!((start.origin.wrapper.as_str(), start.origin.naming.prefix.as_str()), (wrapper, prefix));
        assert_eq!(tensors["base.blocks.1.attn.qkv.weight"], vit["blocks.1.attn.qkv.weight"]);
        assert_eq!(tensors["base.patch_embed_SAR.proj.weight"], vit["patch_embed.proj.weight"]);
        assert_eq!(tensors["base.pos_embed"].shape, [1, 7, 4]);
        assert_ne!(tensors["base.pos_embed"], seeded(&TINY.into(), 1)["base.pos_embed"]);
        assert_eq!(start.fit.blocks, Blocks { whole: 2, touched: 2, of: 2 });
        assert_eq!(start.warning(), None);
        let left: Vec<_> = start.fit.untaken.iter().map(|tensor| (&*tensor.name, &tensor.reason)).collect();
        let mut expected = vec![("head.bias", &UntakenReason::Head), ("head.weight", &UntakenReason::Head)];
        if weights == "ema" {
            expected.insert(1, ("head.mlp.0.weight", &UntakenReason::Outside));
        }
        assert_eq!(left, expected);
        assert!(start.fit.kept.iter().any(|name| name == "base.mie_embed"));
        let report = start.report();
        let head = "not taken: head.bias [5] (a head, which the run learns itself)";
        assert!(report.iter().any(|line| line.starts_with(head)), "{report:?}");
    }
}

#[test]
fn a_network_starts_from_a_transoss_in_any_layout() {
    let (expected, _) = start("plain.pth", Kind::Model, "").expect("a starting point");
    for name in ["tiny.safetensors", "lightning.ckpt", "everything.pth", "beside.pth", "half.safetensors"] {
        let (tensors, start) = start(name, Kind::Model, "").expect(name);
        assert_eq!(tensors, expected, "{name}");
        assert!(start.fit.untaken.iter().any(|tensor| tensor.name == "classifier.weight"), "{name}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = folder.path().join("model");
    open("plain.pth", "").0.save(&place, "test").expect("written");
    let mut tensors = seeded(&TINY.into(), 1);
    StartingPoint::take(&mut tensors, &TINY.into(), &place, (Kind::Model, &WeightsChoice::Own))
        .expect("a folder");
    assert_eq!(tensors, expected);
    let bare = start("timm.safetensors", Kind::Model, "").expect_err("a ViT");
    assert!(bare.ends_with("start.from = \"imagenet\" takes it"), "{bare}");
}

#[test]
fn a_checkpoint_without_the_count_of_steps_is_served_and_started_from_in_any_form() {
    let whole = open("plain.pth", "").0.tensors;
    let folder = tempfile::tempdir().expect("a temporary folder");
    for prefix in ["", "module.", "_orig_mod.module."] {
        let mut without = whole.clone();
        without.remove("bottleneck.num_batches_tracked").expect("part of the state dict");
        let without = without.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect();
        let file = folder.path().join("old.safetensors");
        std::fs::write(&file, super::native::tensor_bytes(&without)).expect("writable");
        let (old, _) = OpenModel::open_with_origin(&file, &hints(&TINY, "")).expect(prefix);
        let read = |tensors: &NamedTensors| {
            let mut tensors = tensors.clone();
            tensors.remove("bottleneck.num_batches_tracked").expect("part of every model");
            tensors
        };
        assert_eq!(read(&old.tensors), read(&whole), "{prefix}");
        let mut initial = seeded(&TINY.into(), 1);
        let choice = (Kind::Model, &WeightsChoice::Own);
        let start = StartingPoint::take(&mut initial, &TINY.into(), &file, choice).expect(prefix);
        assert!(start.fit.kept.iter().any(|name| name == "bottleneck.num_batches_tracked"), "{prefix}");
    }
}

#[test]
fn a_vit_of_another_width_is_refused_however_much_wider_or_narrower_it_is() {
    let vit = read_tensors(&path("timm.safetensors")).expect("f32");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("vit.safetensors");
    let starts = || {
        let mut initial = seeded(&TINY.into(), 1);
        StartingPoint::take(&mut initial, &TINY.into(), &file, (Kind::Imagenet, &WeightsChoice::Own))
    };
    for width in 1..=9 {
        let side = |length: usize| if length.is_multiple_of(4) { length / 4 * width } else { length };
        let resized = |name: &str, tensor: &HostTensor| {
            // What is of the width of an embedding; a patch has pixels and channels.
            let shape: Vec<usize> = match &tensor.shape[..] {
                [width, channels, patch @ ..] if name.contains("patch_embed") => {
                    [&[side(*width), *channels], patch].concat()
                }
                shape => shape.iter().copied().map(side).collect(),
            };
            let values = vec![0.5; shape.iter().product()];
            (name.to_owned(), HostTensor { shape, values })
        };
        let wide = vit.iter().map(|(name, tensor)| resized(name, tensor)).collect();
        std::fs::write(&file, super::native::tensor_bytes(&wide)).expect("writable");
        match (width, starts()) {
            (4, taken) => assert_eq!(taken.expect("its own width").fit.blocks.whole, 2),
            (_, refused) => {
                let refused = refused.expect_err("another width").to_string();
                let expected = format!("[{width}] (the model's has [4])");
                assert!(refused.starts_with("no block of the network fits"), "{refused}");
                assert!(refused.contains(&expected), "{refused}");
            }
        }
    }
}

#[test]
fn a_starting_point_of_which_no_block_fits_is_refused() {
    let refused = start("timm_wide.safetensors", Kind::Imagenet, "").expect_err("another width");
    assert!(refused.starts_with("no block of the network fits"), "{refused}");
    assert!(refused.contains("blocks.0.attn.proj.bias [8] (the model's has [4])"), "{refused}");
    let check = |keep: &dyn Fn(&str) -> bool, kind| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("part.safetensors");
        let mut tensors = open("plain.pth", "").0.tensors;
        tensors.retain(|name, _| keep(name));
        std::fs::write(&file, super::native::tensor_bytes(&tensors)).expect("writable");
        let mut initial = seeded(&TINY.into(), 1);
        StartingPoint::take(&mut initial, &TINY.into(), &file, (kind, &WeightsChoice::Own))
            .map_err(|cause| cause.to_string())
    };
    for kind in [Kind::Imagenet, Kind::Model] {
        let refused = check(&|name| !name.contains(".blocks."), kind).expect_err("no block");
        assert!(refused.contains("has no tensor named blocks.0"), "{refused}");
        let part = check(&|name| !name.contains(".blocks.1.norm2."), kind).expect("a part");
        assert_eq!(part.fit.blocks, Blocks { whole: 1, touched: 2, of: 2 });
        assert_eq!(
            part.warning().as_deref(),
            Some("only 1 of 2 blocks start from it; the others are random")
        );
        let report = part.report();
        assert!(report.iter().any(|line| line.starts_with("warning: only 1 of 2 blocks")), "{report:?}");
        let kept = report.iter().find(|line| line.starts_with("kept as they were: ")).expect("some are");
        assert!(kept.contains("base.blocks.1.norm2.bias"), "{kept}");
    }
}
