//! Matches on real galleries: rankings compared with brute force, gates, probabilities, assignment, golden set e.

mod fused;
mod least;
mod ranks;
mod reranked;

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::fixture::FolderGuard;
use super::*;
use crate::cancellation::{Cancellation, Stopped};
use crate::chip::Modality::{self, Optical, Sar};
use crate::embedding::{Embedding, ModelDigest};
use crate::evaluate::{Distances, score};
use crate::gallery::{
    Entry, EntryId, Filter, GalleryReader, Group, Observation, Position, StoreError, Time, VesselId, cosine,
};
use crate::reason::Removal;
use crate::weights::golden;

const DIMENSION: usize = 16;

fn unit(values: impl IntoIterator<Item = f32>) -> Embedding {
    Embedding::from_feature(values.into_iter().collect()).expect("a direction")
}

/// In the plane of the first two axes, `degrees` from the first.
fn at_angle(degrees: f32) -> Embedding {
    let (sine, cosine) = degrees.to_radians().sin_cos();
    unit([cosine, sine].into_iter().chain(vec![0.0; DIMENSION - 2]))
}

fn entry(id: &str, vessel: &str, modality: Modality) -> Entry {
    let vessel = (!vessel.is_empty()).then(|| VesselId::new(vessel).expect("an id"));
    Entry { vessel, modality, ..fixture::entry(id) }
}

fn seen_at(entry: Entry, hours: i64, north: f64) -> Entry {
    let observation = Observation {
        observed_at: Some(Time::from_nanos(hours * 3_600_000_000_000)),
        position: Some(Position::new(north, 0.0, 0.0).expect("a place")),
        ..entry.observation
    };
    Entry { observation, ..entry }
}

fn sized(entry: Entry, length_m: f64, width_m: f64) -> Entry {
    let observation = Observation { length_m: Some(length_m), width_m: Some(width_m), ..entry.observation };
    Entry { observation, ..entry }
}

fn in_scene(entry: Entry, scene: &str, detection: &str) -> Entry {
    let observation =
        Observation { scene_id: scene.into(), detection_id: detection.into(), ..entry.observation };
    Entry { observation, ..entry }
}

/// A query that looks like an entry.
fn query(entry: Entry, embedding: Embedding) -> Query {
    let modality = Some(entry.modality);
    let image = QueryImage { embedding, modality, observation: entry.observation, extent_m: entry.extent_m };
    Query::Tracklet(Box::new(Tracklet::new(vec![image]).expect("a tracklet")))
}

fn plan(queries: Vec<Query>) -> Plan {
    Plan {
        queries,
        top_k: 10,
        group: Group::Vessel,
        filter: Filter::default(),
        gate: Gate::default(),
        ranking: Ranking::Cosine,
        sharing: Sharing::Independent,
        calibrator: None,
        prior_unknown: None,
        least: Least::default(),
    }
}

fn parts() -> CalibratorParts {
    let calibration = |pair: ModalityPair, offset: f64| PairCalibration {
        same_pairs: 100,
        other_pairs: 1_000,
        appearance: Appearance { offset, cosine: 10.0 },
        size: Some(SizeCalibration {
            offset: offset - 1.0,
            cosine: 9.0,
            evidence: 1.0,
            model: SizeModel::measured(pair),
        }),
    };
    CalibratorParts {
        id: "test".into(),
        model: fixture::model(),
        prior_unknown: 0.3,
        fitted_on: "nothing".into(),
        data: None,
        kinematics: Some(Kinematics::default()),
        pairs: [
            (ModalityPair::OpticalOptical, calibration(ModalityPair::OpticalOptical, -7.0)),
            (ModalityPair::OpticalSar, calibration(ModalityPair::OpticalSar, -4.0)),
        ]
        .into(),
    }
}

fn calibrated(plan: Plan, ranking: Ranking) -> Plan {
    let calibrator = Calibrator::new(parts()).expect("a calibrator");
    Plan { ranking, calibrator: Some(Arc::new(calibrator)), ..plan }
}

fn run(snapshot: &dyn GalleryReader, plan: &Plan) -> Vec<Matched> {
    let answers = match_queries(snapshot, plan, &Cancellation::default()).expect("a match");
    answers.into_iter().map(|answer| answer.expect("an answer")).collect()
}

fn run_one(snapshot: &dyn GalleryReader, plan: &Plan) -> Matched {
    run(snapshot, plan).pop().expect("one query")
}

fn ids(matched: &Matched) -> Vec<&str> {
    matched.candidates.iter().map(|candidate| candidate.entry.as_str()).collect()
}

/// Four vessels: `a` and `b` with two entries, `c` with one, and an entry without vessel.
fn harbour() -> (FolderGuard, Arc<dyn GalleryReader>) {
    let entries = [
        (sized(entry("a1", "a", Optical), 100.0, 20.0), at_angle(10.0)),
        (sized(entry("a2", "a", Sar), 100.0, 20.0), at_angle(40.0)),
        (sized(entry("b1", "b", Optical), 50.0, 10.0), at_angle(-5.0)),
        (sized(entry("b2", "b", Optical), 50.0, 10.0), at_angle(-60.0)),
        (entry("c1", "c", Sar), at_angle(80.0)),
        (entry("d1", "", Optical), at_angle(-25.0)),
    ];
    fixture::gallery(DIMENSION, &entries)
}

/// Ships with looks, sizes and positions, each seen by both sensors.
fn fleet(ships: usize, random: &mut ChaCha8Rng) -> Vec<(Entry, Embedding)> {
    let mut entries = Vec::new();
    for ship in 0..ships {
        let looks: Vec<f32> = (0..DIMENSION).map(|_| StandardNormal.sample(random)).collect();
        let length: f64 = random.random_range(40.0..300.0);
        for (seen, modality) in [Optical, Sar].into_iter().enumerate() {
            let blur = |random: &mut ChaCha8Rng| -> f32 { StandardNormal.sample(random) };
            let embedding = unit(looks.iter().map(|look| look + blur(random)));
            let entry = entry(&format!("{ship}-{seen}"), &ship.to_string(), modality);
            let entry = seen_at(entry, random.random_range(0..100), random.random_range(-30.0..30.0));
            entries.push((sized(entry, length, length / 6.0), embedding));
        }
    }
    entries
}

fn vessels(matched: &Matched) -> Vec<String> {
    let vessel = |candidate: &Candidate| candidate.vessel.as_ref().map(ToString::to_string);
    matched.candidates.iter().filter_map(vessel).collect()
}

#[test]
fn vessels_stand_with_their_best_entry_and_entries_for_themselves() {
    let (_folder, snapshot) = harbour();
    let plan = plan(vec![query(entry("q", "", Optical), at_angle(0.0))]);
    let matched = run_one(&*snapshot, &plan);
    assert_eq!(ids(&matched), ["b1", "a1", "d1", "c1"]);
    let counts: Vec<u32> = matched.candidates.iter().map(|candidate| candidate.entries).collect();
    assert_eq!(counts, [2, 2, 1, 1]);
    assert_eq!(matched.candidates[2].vessel, None);
    assert!((matched.candidates[1].similarity - 10.0_f32.to_radians().cos()).abs() < 1e-6);
    assert_eq!((matched.matched, matched.is_exact, matched.unknown_probability), (6, true, None));
    assert_eq!(matched.embedding, at_angle(0.0));
    assert!(matched.candidates.iter().all(|candidate| candidate.probability.is_none()));

    let entries = run_one(&*snapshot, &Plan { group: Group::Entry, top_k: 3, ..plan.clone() });
    assert_eq!(ids(&entries), ["b1", "a1", "d1"]);
    assert!(entries.candidates.iter().all(|candidate| candidate.entries == 1));

    let filter = Filter { modalities: vec![Sar], ..Filter::default() };
    let radar = run_one(&*snapshot, &Plan { filter, ..plan });
    assert_eq!((ids(&radar), radar.matched, radar.candidates[0].entries), (vec!["a2", "c1"], 2, 1));
}

#[test]
fn an_enrolled_entry_does_not_match_itself() {
    let (_folder, snapshot) = harbour();
    let enrolled = |id: &str| Query::Enrolled(EntryId::new(id).expect("an id"));
    let answers = run(&*snapshot, &plan(vec![enrolled("a1"), enrolled("d1")]));
    assert_eq!(ids(&answers[0]), ["b1", "a2", "d1", "c1"]);
    assert_eq!((answers[0].candidates[1].entries, answers[0].matched), (1, 5));
    assert_eq!(ids(&answers[1]), ["b1", "a1", "c1"], "its vessel had no other entry");
}

#[test]
fn a_query_that_cannot_be_asked_fails_alone() {
    let (_folder, snapshot) = harbour();
    let stranger = EntryId::new("nobody").expect("an id");
    let short = query(entry("q", "", Optical), unit([1.0, 0.0]));
    let fine = query(entry("q", "", Optical), at_angle(0.0));
    let plan = plan(vec![Query::Enrolled(stranger.clone()), fine, short]);
    let answers = match_queries(&*snapshot, &plan, &Cancellation::default()).expect("a match");
    assert_eq!(answers[0], Err(QueryError::UnknownEntry(stranger)));
    assert_eq!(answers[1].as_ref().map(|answer| answer.candidates.len()), Ok(4));
    assert_eq!(answers[2], Err(QueryError::Dimension { expected: DIMENSION, found: 2 }));
}

#[test]
fn gates_remove_vessels_and_say_how_many() {
    let entries = [
        (seen_at(entry("near", "near", Optical), 0, 1.0), at_angle(50.0)),
        (seen_at(entry("far1", "far", Optical), 0, 40.0), at_angle(1.0)),
        (entry("far2", "far", Optical), at_angle(2.0)),
        (entry("somewhere", "somewhere", Optical), at_angle(60.0)),
        (in_scene(entry("beside", "beside", Optical), "s", "2"), at_angle(3.0)),
        (in_scene(entry("itself", "itself", Optical), "s", "1"), at_angle(70.0)),
    ];
    let (_folder, snapshot) = fixture::gallery(DIMENSION, &entries);
    let asked = in_scene(seen_at(entry("q", "", Optical), 10, 0.0), "s", "1");
    let gate = Gate { max_speed_knots: Some(20.0) };
    let plan = Plan { gate, ..plan(vec![query(asked, at_angle(0.0))]) };
    let matched = run_one(&*snapshot, &plan);
    assert_eq!(ids(&matched), ["near", "somewhere", "itself"]);
    assert_eq!(matched.removed, [(Removal::Speed, 1), (Removal::SameScene, 1)]);
    assert_eq!(matched.matched, 6, "entries that the filter admits");
    let unchecked: Vec<bool> = matched.candidates.iter().map(|candidate| candidate.is_unchecked).collect();
    assert_eq!(unchecked, [false, true, true]);
    let speed = matched.candidates[0].implied_speed_knots.expect("a speed");
    assert!((speed - 6.004).abs() < 0.01, "a degree in ten hours: {speed}");
    assert_eq!(matched.candidates[1].implied_speed_knots, None);

    let entries = run_one(&*snapshot, &Plan { group: Group::Entry, ..plan.clone() });
    assert_eq!(ids(&entries), ["near", "somewhere", "itself"]);
    assert_eq!(entries.removed, [(Removal::Speed, 2), (Removal::SameScene, 1)]);

    let ungated = run_one(&*snapshot, &Plan { gate: Gate::default(), ..plan });
    assert_eq!(ids(&ungated), ["far1", "near", "somewhere", "itself"]);
    assert_eq!(ungated.removed, [(Removal::SameScene, 1)]);
    assert!(ungated.candidates.iter().all(|candidate| !candidate.is_unchecked));
    assert!(ungated.candidates[0].implied_speed_knots > Some(100.0));
}

#[test]
fn a_fused_ranking_weighs_size_and_way() {
    let (_folder, snapshot) = harbour();
    let asked = query(sized(entry("q", "", Optical), 100.0, 20.0), at_angle(0.0));
    let by_cosine = run_one(&*snapshot, &calibrated(plan(vec![asked.clone()]), Ranking::Cosine));
    let fused = run_one(&*snapshot, &calibrated(plan(vec![asked]), Ranking::Fused));
    assert_eq!(ids(&by_cosine), ["b1", "a1", "d1", "c1"]);
    assert_eq!(ids(&fused), ["a2", "d1", "c1", "b1"], "b has half the size, and across sensors less is more");
    let terms: Vec<_> = fused.candidates[0].evidence.terms().map(|(term, _)| term).collect();
    assert_eq!(terms, ["appearance", "size"]);
    let probabilities: Vec<f64> =
        fused.candidates.iter().map(|candidate| candidate.probability.expect("calibrated")).collect();
    assert!(probabilities.windows(2).all(|pair| pair[0] >= pair[1]), "{probabilities:?}");
    let sum = probabilities.iter().sum::<f64>() + fused.unknown_probability.expect("calibrated");
    assert!((sum - 1.0).abs() < 1e-9);

    // With the same look and size, the one that was near an hour ago is more likely.
    let twins = [
        (seen_at(entry("far", "far", Optical), 0, 9.0), at_angle(10.0)),
        (seen_at(entry("near", "near", Optical), 0, 0.1), at_angle(15.0)),
    ];
    let (_folder, snapshot) = fixture::gallery(DIMENSION, &twins);
    let asked = query(seen_at(entry("q", "", Optical), 1, 0.0), at_angle(0.0));
    let fused = run_one(&*snapshot, &calibrated(plan(vec![asked]), Ranking::Fused));
    assert_eq!(ids(&fused), ["near", "far"]);
    assert!(fused.candidates[0].evidence.kinematics > Some(3.0));
}

#[test]
fn a_ship_like_no_other_is_unknown_and_the_prior_counts() {
    let (_folder, snapshot) = harbour();
    let unknown = |degrees: f32, prior_unknown: Option<f64>| {
        let asked = query(entry("q", "", Optical), at_angle(degrees));
        let plan = Plan { prior_unknown, ..calibrated(plan(vec![asked]), Ranking::Cosine) };
        run_one(&*snapshot, &plan).unknown_probability.expect("calibrated")
    };
    assert!(unknown(180.0, None) > 0.9);
    assert!(unknown(-5.0, None) < 0.3);
    assert!(unknown(-5.0, Some(0.99)) > unknown(-5.0, None));
    assert_eq!(unknown(-5.0, Some(0.3)), unknown(-5.0, None), "the calibrator's prior");
}

#[test]
fn what_is_not_calibrated_has_no_probability_and_says_so() {
    let (_folder, snapshot) = harbour();
    let radar = query(entry("q", "", Sar), at_angle(0.0));
    let plan = plan(vec![radar]);
    let calibrated = calibrated(plan.clone(), Ranking::Fused);
    let matched = run_one(&*snapshot, &calibrated);
    for candidate in &matched.candidates {
        let is_optical = !["a2", "c1"].contains(&candidate.entry.as_str());
        assert_eq!(candidate.probability.is_some(), is_optical, "{candidate:?}");
    }
    assert_eq!(matched.doubts, [Doubt::PairUncalibrated(ModalityPair::SarSar)]);
    assert!(matched.unknown_probability.is_some());

    let image = QueryImage {
        embedding: at_angle(0.0),
        modality: None,
        observation: Observation::default(),
        extent_m: None,
    };
    let vague = Query::Tracklet(Box::new(Tracklet::new(vec![image]).expect("a tracklet")));
    let matched = run_one(&*snapshot, &Plan { queries: vec![vague], ..calibrated.clone() });
    assert_eq!((ids(&matched)[0], matched.unknown_probability), ("b1", None));
    assert_eq!(matched.doubts, [Doubt::ModalityUnknown]);

    let foreign = CalibratorParts { model: ModelDigest::new([9; 32]), ..parts() };
    let foreign = Some(Arc::new(Calibrator::new(foreign).expect("a calibrator")));
    for calibrator in [None, foreign] {
        let fused = Plan { calibrator: calibrator.clone(), ..calibrated.clone() };
        let expected = MatchError::Uncalibrated { what: "a fused ranking", model: fixture::model() };
        assert_eq!(match_queries(&*snapshot, &fused, &Cancellation::default()), Err(expected));
        let by_cosine = run_one(&*snapshot, &Plan { calibrator, ..plan.clone() });
        assert_eq!((by_cosine.unknown_probability, by_cosine.doubts), (None, vec![]));
    }
}

#[test]
fn where_no_ranking_is_asked_for_evidence_ranks_the_queries_for_which_all_of_it_is_calibrated() {
    let (_folder, snapshot) = harbour();
    let asked = |modality| query(sized(entry("q", "", modality), 100.0, 20.0), at_angle(0.0));
    let calibrator = Calibrator::new(parts()).expect("a calibrator");
    let ranking = Ranking::unless_named(snapshot.about(), Some(&calibrator));
    let both = calibrated(plan(vec![asked(Optical), asked(Sar)]), ranking);
    let found = run(&*snapshot, &both);
    assert_eq!(found[0], run_one(&*snapshot, &calibrated(plan(vec![asked(Optical)]), Ranking::Fused)));
    // Pairs of SAR images are not calibrated, and there are some.
    assert_eq!(found[1], run_one(&*snapshot, &calibrated(plan(vec![asked(Sar)]), Ranking::Cosine)));
    assert_eq!((found[0].ranking, found[1].ranking), (Ranking::Fused, Ranking::Cosine));
    assert_ne!(ids(&found[0]), ids(&found[1]));

    let optical = Filter { modalities: vec![Optical], ..Filter::default() };
    let among = |ranking| Plan { filter: optical.clone(), ..calibrated(plan(vec![asked(Sar)]), ranking) };
    assert_eq!(run_one(&*snapshot, &among(ranking)), run_one(&*snapshot, &among(Ranking::Fused)));
    assert_eq!(Ranking::unless_named(snapshot.about(), None), Ranking::Cosine);
    let uncalibrated = run_one(&*snapshot, &Plan { calibrator: None, ..among(ranking) });
    assert_eq!(uncalibrated.ranking, Ranking::Cosine);
    let reranked = calibrated(plan(vec![asked(Optical)]), Ranking::Reranked { depth: 3 });
    assert_eq!(run_one(&*snapshot, &reranked).ranking, Ranking::Reranked { depth: 3 });
}

#[test]
fn queries_of_one_scene_are_assigned_to_distinct_vessels() {
    let (_folder, snapshot) = harbour();
    let asked = |degrees: f32| query(entry("q", "", Optical), at_angle(degrees));
    let plan = Plan { sharing: Sharing::DistinctVessels, ..plan(vec![asked(0.0), asked(-5.0), asked(-6.0)]) };
    let answers = run(&*snapshot, &plan);
    let firsts: Vec<_> = answers.iter().map(|answer| ids(answer)[0]).collect();
    assert_eq!(firsts, ["a1", "b1", "d1"]);
    assert_eq!(ids(&answers[0]), ["a1", "b1", "d1", "c1"], "the rest as it was");

    let strangers = vec![asked(180.0), asked(0.0)];
    let plan = calibrated(Plan { queries: strangers, ..plan }, Ranking::Fused);
    let answers = run(&*snapshot, &plan);
    assert_eq!((&answers[0].doubts[..], &answers[1].doubts[..]), (&[Doubt::Unassigned][..], &[][..]));
    assert_eq!(ids(&answers[1])[0], "a2");

    let five = Plan { queries: vec![asked(0.0); 5], calibrator: None, ranking: Ranking::Cosine, ..plan };
    let answers = run(&*snapshot, &five);
    let unassigned = answers.iter().filter(|answer| answer.doubts == [Doubt::Unassigned]).count();
    assert_eq!(unassigned, 1, "five queries, four vessels");
}

#[test]
fn an_empty_gallery_has_an_answer() {
    let (_folder, snapshot) = fixture::gallery(DIMENSION, &[]);
    for ranking in [Ranking::Cosine, Ranking::Fused, Ranking::Reranked { depth: 10 }] {
        let asked = query(entry("q", "", Optical), at_angle(0.0));
        let plan = calibrated(plan(vec![asked]), ranking);
        let matched = run_one(&*snapshot, &Plan { sharing: Sharing::DistinctVessels, ..plan });
        assert_eq!((matched.candidates.len(), matched.unknown_probability), (0, Some(1.0)));
        assert!(matched.is_exact);
    }
    assert_eq!(run(&*snapshot, &plan(vec![])), []);
}

#[test]
fn a_match_that_nobody_waits_for_is_not_made() {
    let (_folder, snapshot) = harbour();
    let (cancellation, guard) = Cancellation::at(None);
    drop(guard);
    let stopped = match_queries(&*snapshot, &plan(vec![]), &cancellation);
    assert_eq!(stopped, Err(MatchError::Store(StoreError::Stopped(Stopped::Cancelled))));
}
