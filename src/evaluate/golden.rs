//! Golden set e: distances, CMC, mAP, ties and re-ranking as recorded.

use super::*;
use crate::embedding::Embedding;
use crate::weights::golden;
use crate::weights::tensors::{HostTensor, NamedTensors};

fn recorded() -> NamedTensors {
    golden::tensors("eval_metrics")
}

fn rows(tensor: &HostTensor) -> Vec<Vec<f32>> {
    tensor.values.chunks(tensor.shape[1]).map(<[f32]>::to_vec).collect()
}

fn unit_rows(tensor: &HostTensor) -> Vec<Vec<f32>> {
    let unit = |row: Vec<f32>| Embedding::from_feature(row).expect("a direction").into_vec();
    rows(tensor).into_iter().map(unit).collect()
}

fn close(what: &str, found: impl IntoIterator<Item = f64>, expected: &[f32], atol: f64) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - f64::from(*expected)).abs() <= atol, "{what}: {found} {expected}");
    }
}

fn flat(distances: &Distances) -> Vec<f64> {
    distances.rows().flatten().map(|distance| f64::from(*distance)).collect()
}

fn check_scores(
    recorded: &NamedTensors,
    set: &str,
    prefix: &str,
    suffix: &str,
    distances: &Distances,
) -> Scores {
    let identities = |who: &str| &recorded[&format!("{set}.{who}_pid")].values;
    let scores = score(distances, identities("q"), identities("g"));
    let expected = |what: &str| &recorded[&format!("{set}.{prefix}{what}{suffix}")].values;
    close("cmc", scores.cmc.iter().copied(), expected("cmc"), 1e-6);
    close("mAP", [scores.mean_average_precision], expected("mAP"), 1e-6);
    scores
}

#[test]
fn distances_cmc_and_map_are_the_recorded_ones() {
    let recorded = recorded();
    for set in ["main", "small"] {
        let features = |who: &str| &recorded[&format!("{set}.{who}_feat")];
        let distances = squared_distances(&unit_rows(features("q")), &unit_rows(features("g")));
        close("dist", flat(&distances), &recorded[&format!("{set}.dist")].values, 1e-5);
        let scores = check_scores(&recorded, set, "", "", &distances);
        let expected = &recorded[&format!("{set}.ap_per_query")].values;
        for (found, expected) in scores.average_precisions.iter().zip(expected) {
            assert_eq!(found.is_none(), expected.is_nan());
            assert!(found.is_none_or(|found| (found - f64::from(*expected)).abs() < 1e-6));
        }
        let raw = squared_distances(&rows(features("q")), &rows(features("g")));
        close("raw", flat(&raw), &recorded[&format!("{set}.raw_dist")].values, 1e-3);
        check_scores(&recorded, set, "raw_", "", &raw);
    }
    let angles = angles(&unit_rows(&recorded["main.q_feat"]), &unit_rows(&recorded["main.g_feat"]));
    close("angles", flat(&angles), &recorded["main.arccos_dist"].values, 1e-5);
}

#[test]
fn of_equal_distances_the_first_in_the_gallery_wins() {
    let recorded = recorded();
    for set in ["ties_benign", "ties_order"] {
        let tensor = &recorded[&format!("{set}.dist")];
        let distances = Distances::new(tensor.shape[1], tensor.values.clone());
        check_scores(&recorded, set, "", "_stable", &distances);
    }
}

#[test]
fn re_ranked_distances_are_the_recorded_ones() {
    let recorded = recorded();
    let (queries, gallery) = (unit_rows(&recorded["main.q_feat"]), unit_rows(&recorded["main.g_feat"]));
    for (k1, k2) in [(50, 15), (20, 6)] {
        let settings = RerankSettings { k1, k2, lambda: 0.3 };
        let distances = rerank(&queries, &gallery, &settings);
        let name = |what: &str| format!("main.rerank_k{k1}_{k2}_{what}");
        close("f64", flat(&distances), &recorded[&name("dist_f64")].values, 1e-5);
        close("official", flat(&distances), &recorded[&name("dist")].values, 5e-3);
        let identities = |who: &str| &recorded[&format!("main.{who}_pid")].values;
        let scores = score(&distances, identities("q"), identities("g"));
        close("mAP f64", [scores.mean_average_precision], &recorded[&name("mAP_f64")].values, 1e-6);
        close("mAP", [scores.mean_average_precision], &recorded[&name("mAP")].values, 3e-3);
    }
}

#[test]
fn a_protocol_is_told_by_its_name_and_chooses_modalities() {
    use crate::chip::Modality::{Optical, Sar};
    for (name, asks, searches) in [
        ("all", [true, true], [true, true]),
        ("o2s", [true, false], [false, true]),
        ("s2o", [false, true], [true, false]),
        ("o2o", [true, false], [true, false]),
    ] {
        let protocol: Protocol = name.parse().expect("a protocol");
        let seen = [Optical, Sar].map(|modality| LabelledImage { identity: 1, modality });
        assert_eq!(seen.map(|seen| protocol.asks(seen)), asks, "{protocol}");
        assert_eq!(seen.map(|seen| protocol.searches(seen)), searches, "{protocol}");
    }
    assert!("s2s".parse::<Protocol>().is_err());
}
