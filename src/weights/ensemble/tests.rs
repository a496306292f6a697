//! Ensembles as folders, and what is none.

use std::fs::{self, File};

use super::*;
use crate::chip::SarStretch;
use crate::weights::any::{AnyDescription, AnyModel};
use crate::weights::family::FeaturePoint;
use crate::weights::family::transoss::TransOssArchitecture;
use crate::weights::golden;
use crate::weights::open::Hints;
use crate::weights::packed::{Part as PackedPart, pack};
use crate::weights::quantize::quantize;
use crate::weights::seed::seeded;

const MICRO: TransOssArchitecture = TransOssArchitecture { classes: 0, ..golden::MICRO };

fn member(architecture: TransOssArchitecture, seed: u64) -> OpenModel {
    let architecture = architecture.into();
    OpenModel::new(architecture, FeaturePoint::BeforeNeck, seeded(&architecture, seed))
}

fn members() -> Vec<OpenModel> {
    vec![member(MICRO, 1), member(TransOssArchitecture { depth: 1, ..MICRO }, 2)]
}

fn ensemble() -> Ensemble {
    Ensemble::new(members(), &[1.0, 0.5], 3, 100).expect("an ensemble")
}

#[test]
fn an_ensemble_is_the_same_from_its_folder_and_from_one_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (place, file) = (folder.path().join("both"), folder.path().join("both.zip"));
    let expected = AnyModel::from(ensemble());
    expected.save(&place, "two models").expect("written");
    assert_eq!(AnyModel::open(&place, &Hints::default()).expect("an ensemble"), expected);
    assert_eq!(AnyDescription::read(&place).expect("described"), expected.description("two models"));
    assert!(matches!(expected.save(&place, "again"), Err(NativeError::Exists(_))));

    let names = expected.files("two models").into_iter().map(|(name, _)| name);
    let part = |name: String| PackedPart { file: File::open(place.join(&name)).expect("there"), name };
    pack(names.map(part).collect(), File::create(&file).expect("writable")).expect("packed");
    assert_eq!(AnyModel::open(&file, &Hints::default()).expect("an ensemble"), expected);
    let alone = AnyModel::open(&place.join("members/1"), &Hints::default()).expect("a member");
    assert_eq!(alone.networks(), &members()[1..], "a member's folder is a model's");
}

#[test]
fn everything_that_changes_the_ranking_changes_the_digest() {
    let of = |members, weights: [f64; 2], k, depth| {
        Ensemble::new(members, &weights, k, depth).expect("an ensemble").digest
    };
    let reversed = || members().into_iter().rev().collect::<Vec<_>>();
    let mut digests = vec![
        of(members(), [1.0, 0.5], 3, 100),
        of(members(), [1.0, 0.6], 3, 100),
        of(members(), [1.0, 0.5], 4, 100),
        of(members(), [1.0, 0.5], 3, 99),
        of(reversed(), [1.0, 0.5], 3, 100),
    ];
    digests.extend(members().iter().map(|member| member.digest));
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 7);
    assert_eq!(ensemble().digest, ensemble().digest);
}

#[test]
fn models_that_cannot_work_together_are_refused() {
    let check = |members: Vec<OpenModel>, weights: &[f64], k, depth, expected: &str| {
        let error = Ensemble::new(members, weights, k, depth).expect_err("no ensemble").to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    };
    let with = |other: OpenModel| vec![member(MICRO, 1), other];
    let denoised = TransOssArchitecture { sar_stretch: SarStretch::Denoised, ..MICRO };
    let int8 = quantize(member(MICRO, 2)).expect("rounded");
    check(with(member(MICRO, 1)), &[1.0; 2], 3, 100, "is there twice");
    check(with(member(denoised, 2)), &[1.0; 2], 3, 100, "read different chips");
    check(with(int8), &[1.0; 2], 3, 100, "only one is in int8");
    check(members(), &[1.0; 3], 3, 100, "3 weights for 2 members");
    check(members(), &[1.0, f64::NAN], 3, 100, "a weight is NaN");
    check(members(), &[1.0; 2], 0, 100, "k is 0");
    check(members(), &[1.0; 2], 3, 0, "depth is 0");
    check(vec![member(MICRO, 1)], &[1.0], 3, 100, "2 to 8 members, not 1");
}

#[test]
fn a_folder_that_is_not_the_ensemble_that_it_names_is_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let check = |change: &dyn Fn(&Path), expected: &str| {
        let place = folder.path().join("both");
        AnyModel::from(ensemble()).save(&place, "two models").expect("written");
        change(&place);
        let error = AnyModel::open(&place, &Hints::default()).expect_err("refused").to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        fs::remove_dir_all(&place).expect("removed");
    };
    let edit = |place: &Path, from: &str, to: &str| {
        let path = place.join(DESCRIPTION);
        let text = fs::read_to_string(&path).expect("readable");
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).expect("writable");
    };
    check(&|place| edit(place, "k = 3", "k = 4"), "its description says");
    check(&|place| edit(place, "weight = 0.5", "weight = 0.25"), "its description says");
    check(&|place| edit(place, "k = 3", "k = 0"), "k is 0");
    let [first, second] = [0, 1].map(|number: usize| members()[number].digest.to_string());
    check(&|place| edit(place, &second, &first), "is there twice");
    check(&|place| edit(place, &second, &"0".repeat(64)), "members/1");
    check(&|place| edit(place, "format = 2", "format = 3"), "has format 3");
    check(&|place| edit(place, "depth = 100", "deep = 100"), "unknown field");
    check(&|place| fs::remove_dir_all(place.join("members/1")).expect("there"), "members/1");
    check(
        &|place| {
            // An ensemble within an ensemble.
            fs::write(place.join("members/0").join(DESCRIPTION), ensemble().description("x").to_toml())
                .expect("writable");
        },
        "is of an ensemble",
    );
    let one = "members/0/model.safetensors";
    check(&|place| fs::write(place.join(one), b"junk").expect("writable"), "not a safetensors file");
}

#[test]
fn where_one_network_is_needed_an_ensemble_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = folder.path().join("both");
    AnyModel::from(ensemble()).save(&place, "two models").expect("written");
    let error = OpenModel::open(&place, &Hints::default()).expect_err("refused").to_string();
    assert!(error.contains("is of an ensemble"), "{error}");
}
