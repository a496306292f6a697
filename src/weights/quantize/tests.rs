use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::weights::coded::{Layers, parse, tensor_bytes};
use crate::weights::family::toy::ToyArchitecture;
use crate::weights::family::transoss::TransOssArchitecture;
use crate::weights::family::{Architecture, Family, FeaturePoint, Preset};
use crate::weights::golden;
use crate::weights::native::{DESCRIPTION, TENSORS};
use crate::weights::open::Hints;
use crate::weights::packed::{self, Part};
use crate::weights::seed::seeded;
use crate::weights::start::{Kind, StartingPoint};
use crate::weights::tensors::NamedTensors;
use crate::weights::wrapper::WeightsChoice;

/// A layer of the model.
const LAYER: &str = "base.blocks.1.mlp.fc2";

fn source(seed: u64) -> OpenModel {
    let architecture = TransOssArchitecture { classes: 0, ..golden::MICRO }.into();
    OpenModel::new(architecture, FeaturePoint::BeforeNeck, seeded(&architecture, seed))
}

fn in_int8() -> OpenModel {
    quantize(source(1)).expect("in f32")
}

fn saved(model: &OpenModel) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = folder.path().join("model");
    model.save(&place, "test").expect("written");
    (folder, place)
}

fn refusal(place: &Path) -> String {
    let text = OpenModel::open(place, &Hints::default()).expect_err("no model").to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn a_model_in_int8_is_one_of_its_own_that_names_its_source() {
    let (source, model) = (source(1), in_int8());
    assert_ne!(model.digest, source.digest);
    assert_eq!(model.quantized.as_ref().expect("in int8").origin.source, source.digest);
    let (folder, place) = saved(&model);
    assert_eq!(OpenModel::open(&place, &Hints::default()).expect("a model"), model);
    let file = folder.path().join("model.zip");
    let part =
        |name: &str| Part { name: name.to_owned(), file: File::open(place.join(name)).expect("there") };
    packed::pack(vec![part(DESCRIPTION), part(TENSORS)], File::create(&file).expect("new")).expect("written");
    assert_eq!(OpenModel::open(&file, &Hints::default()).expect("a model"), model);
    let codes: usize =
        model.quantized.iter().flat_map(|quantized| quantized.layers.values()).map(|l| l.codes().len()).sum();
    let saved = source.tensor_bytes().len() - model.tensor_bytes().len();
    assert!(saved > codes * 2, "{codes} weights of 4 bytes have become 1: {saved}");
}

#[test]
fn every_layer_and_nothing_else_is_rounded() {
    let (source, model) = (source(1), in_int8());
    let Quantized { layers, .. } = model.quantized.expect("in int8");
    let expected: BTreeSet<String> = source.architecture.int8_layers().into_iter().collect();
    assert_eq!(layers.keys().cloned().collect::<BTreeSet<_>>(), expected);
    for (name, tensor) in &source.tensors {
        match name.strip_suffix(".weight").and_then(|layer| layers.get(layer)) {
            None => assert_eq!(model.tensors.get(name), Some(tensor), "{name}"),
            Some(layer) => {
                assert_eq!(*layer, Rounded::of(&tensor.values, tensor.shape[1]), "{name}");
                assert!(!model.tensors.contains_key(name));
            }
        }
    }
}

#[test]
fn a_changed_description_is_refused() {
    let check = |from: &str, to: &str, message: &str| {
        let (_folder, place) = saved(&in_int8());
        let file = place.join(DESCRIPTION);
        let text = fs::read_to_string(&file).expect("readable");
        assert!(text.contains(from), "{text}");
        fs::write(&file, text.replace(from, to)).expect("writable");
        let refused = refusal(&place);
        assert!(refused.contains(message), "{refused}");
    };
    let (named, other) = (source(1).digest.to_string(), source(2).digest.to_string());
    check(&named, &other, "its description says");
    check(&named, "12", "digest");
    check("precision = \"int8\"", "precision = \"f32\"", "unknown variant");
    check("tool = ", "tools = ", "unknown field");
    check("[quantization]", "[quantized]", "unknown field");
    let (_folder, place) = saved(&in_int8());
    let file = place.join(DESCRIPTION);
    let text = fs::read_to_string(&file).expect("readable");
    let (start, section) =
        (text.find("[quantization]").expect("there"), text.find("[architecture]").expect("there"));
    let without = if start < section {
        format!("{}{}", &text[..start], &text[section..])
    } else {
        text[..start].to_owned()
    };
    fs::write(&file, without).expect("writable");
    assert!(refusal(&place).contains("holds I8, not F32"));
}

#[test]
fn other_tensors_than_those_of_the_model_are_refused() {
    let check = |change: &dyn Fn(&mut NamedTensors, &mut Layers), message: &str| {
        let model = in_int8();
        let (_folder, place) = saved(&model);
        let (mut tensors, mut layers) = (model.tensors, model.quantized.expect("in int8").layers);
        change(&mut tensors, &mut layers);
        fs::write(place.join(TENSORS), tensor_bytes(&tensors, &layers)).expect("writable");
        let refused = refusal(&place);
        assert!(refused.contains(message), "{refused}");
    };
    let edited = |layer: &Rounded, edit: &dyn Fn(&mut Vec<i8>, &mut Vec<f32>)| {
        let (mut codes, mut scales) = (layer.codes().to_vec(), layer.scales().to_vec());
        edit(&mut codes, &mut scales);
        Rounded::new(layer.inputs(), codes, scales).expect("still a layer")
    };
    let edit = |layers: &mut Layers, edit: &dyn Fn(&mut Vec<i8>, &mut Vec<f32>)| {
        let layer = layers.get_mut(LAYER).expect("there");
        *layer = edited(layer, edit);
    };
    let nudge = |codes: &mut Vec<i8>| {
        let at = codes.iter().position(|code| code.unsigned_abs() < 100).expect("not all are large");
        codes[at] += 1;
    };
    check(&|_, layers| edit(layers, &|codes, _| nudge(codes)), "its description says");
    check(&|_, layers| edit(layers, &|_, scales| scales[0] *= 2.0), "its description says");
    check(&|_, layers| drop(layers.remove(LAYER)), "missing base.blocks.1.mlp.fc2.weight in int8");
    check(
        &|_, layers| drop(layers.insert("base.more".to_owned(), Rounded::of(&[1.0], 1))),
        "unexpected base.more.weight in int8",
    );
    check(
        &|_, layers| drop(layers.insert(LAYER.to_owned(), Rounded::of(&[1.0; 6], 3))),
        "misshapen base.blocks.1.mlp.fc2.weight [2, 3] instead of [16, 64]",
    );
    let weight = source(1).tensors[&weight_of(LAYER)].clone();
    check(
        &|tensors, layers| {
            layers.remove(LAYER);
            tensors.insert(weight_of(LAYER), weight.clone());
        },
        "missing base.blocks.1.mlp.fc2.weight in int8; unexpected base.blocks.1.mlp.fc2.weight",
    );
    check(&|tensors, _| drop(tensors.remove("base.norm.bias")), "missing base.norm.bias");
}

/// A safetensors file of one tensor in int8, with scales or other tensors in f32.
fn file(name: &str, shape: &[usize], codes: &[u8], values: &[(&str, &[f32])]) -> Vec<u8> {
    let values: Vec<(&str, Vec<u8>)> = values
        .iter()
        .map(|(name, values)| (*name, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let view = |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).expect("whole");
    let floats = values.iter().map(|(name, bytes)| (*name, view(Dtype::F32, vec![bytes.len() / 4], bytes)));
    let views = std::iter::once((name, view(Dtype::I8, shape.to_vec(), codes))).chain(floats);
    safetensors::serialize(views, None).expect("whole")
}

#[test]
fn a_file_that_no_layer_gives_is_refused_by_the_tensors_name() {
    let check = |bytes: &[u8], message: &str| {
        let refused = parse(bytes).expect_err(message).to_string();
        assert!(refused.contains(message) && refused.lines().count() == 1, "{refused}");
    };
    let scales: &[(&str, &[f32])] = &[("a.weight_scale", &[1.0])];
    let good = file("a.weight", &[1, 2], &[127, 3], scales);
    let (tensors, layers) = parse(&good).expect("a layer");
    assert!(tensors.is_empty());
    assert_eq!(layers["a"].codes(), [127, 3]);
    check(&file("a.weight", &[1, 2], &[127, 3], &[]), "tensor a.weight: it has no scales");
    check(&file("a.bias", &[1, 2], &[127, 3], scales), "tensor a.bias: codes are of a weight");
    check(&file("a.weight", &[2], &[127, 3], scales), "a weight has 2 axes, this has 1");
    check(&file("a.weight", &[2, 1], &[127, 127], scales), "2 outputs have scales of the shape [1]");
    check(&file("a.weight", &[1, 2], &[126, 3], scales), "the codes of output 0 do not use their range");
    check(&file("a.weight", &[1, 2], &[127, 0x80], scales), "the codes of output 0 do not use their range");
    check(&file("a.weight", &[1, 0], &[], scales), "it has 0 inputs");
    check(&file("a.weight", &[1, 40_000], &[1; 40_000], scales), "it has 40000 inputs; the limit is 32768");
    check(&file("a.weight", &[1, 2], &[127, 3], &[("a.weight_scale", &[f32::NAN])]), "the scale of output 0");
    for length in 0..good.len() {
        assert!(parse(&good[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn what_cannot_be_in_int8_is_refused() {
    let again = quantize(in_int8()).expect_err("in int8 already").to_string();
    assert_eq!(again, format!("it is in int8 already, made from model {}", source(1).digest));
    let toy = Family::Toy.preset(Preset::Tiny);
    let model = OpenModel::new(toy, FeaturePoint::BeforeNeck, seeded(&toy, 1));
    assert_eq!(quantize(model), Err(QuantizeError::Family("toy")));
    assert_eq!(Architecture::from(ToyArchitecture { side: 4, width: 6, classes: 0 }).int8_layers(), [""; 0]);
}

#[test]
fn a_model_in_int8_stands_for_its_own_source_alone() {
    assert_eq!(check_source(&in_int8(), source(1)), Ok(()));
    let [named, given] = [1, 2].map(|seed| source(seed).digest);
    assert_eq!(check_source(&in_int8(), source(2)), Err(SourceError::Other { named, given }));
    assert_eq!(check_source(&source(1), source(1)), Err(SourceError::NotInt8));
    // One with the codes of another model, and the digest that these have.
    let OpenModel { architecture, feature_point, tensors, quantized, .. } =
        quantize(source(2)).expect("in f32");
    let quantized = Quantized { origin: Quantization::now(named), ..quantized.expect("in int8") };
    let posing = OpenModel::in_int8(architecture, feature_point, tensors, quantized);
    let expected = in_int8().digest;
    assert_eq!(check_source(&posing, source(1)), Err(SourceError::Differs { origin: named, expected }));
}

#[test]
fn no_run_starts_from_a_model_in_int8() {
    let (_folder, place) = saved(&in_int8());
    let OpenModel { architecture, tensors: mut initial, digest, .. } = source(1);
    let kind = (Kind::Model, &WeightsChoice::Own);
    let refused = StartingPoint::take(&mut initial, &architecture, &place, kind).expect_err("in int8");
    let expected = format!("cannot be trained; start from the model that it was made from, {digest}");
    assert!(refused.to_string().ends_with(&expected), "{refused}");
}
