//! Matches on real galleries: rankings beside brute force, gates, probabilities, assignment, golden set e.

mod least;

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

/// A query that sees what an entry would.
fn query(entry: Entry, embedding: Embedding) -> Query {
    let modality = Some(entry.modality);
    let sight = Sight { embedding, modality, observation: entry.observation, extent_m: entry.extent_m };
    Query::Seen(Box::new(Seen::tracklet(vec![sight]).expect("a tracklet")))
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

    // The same looks and the same size: the one that was near an hour ago is the likelier.
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

    let sight = Sight {
        embedding: at_angle(0.0),
        modality: None,
        observation: Observation::default(),
        extent_m: None,
    };
    let vague = Query::Seen(Box::new(Seen::tracklet(vec![sight]).expect("a tracklet")));
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

/// Ships with looks, sizes and places, each seen by both sensors.
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

/// A query that looks somewhat like a ship of the fleet, in optical: pairs of SAR are not calibrated.
fn stranger(entries: &[(Entry, Embedding)], random: &mut ChaCha8Rng, north: f64) -> (Entry, Embedding) {
    let (entry, embedding) = &entries[2 * random.random_range(0..entries.len() / 2)];
    let blurred = embedding.as_slice().iter().map(|value| value + random.random_range(-0.4..0.4));
    (seen_at(entry.clone(), 100, north), unit(blurred))
}

/// The ids of all vessels, by what their two entries and the nearer of their sightings say.
fn by_evidence(entries: &[(Entry, Embedding)], asked: &(Entry, Embedding)) -> Vec<String> {
    let calibrator = Calibrator::new(parts()).expect("a calibrator");
    let outline = |entry: &Entry| Outline {
        modality: entry.modality,
        length_m: entry.length_m(),
        width_m: entry.width_m(),
    };
    let sighting =
        |entry: &Entry| entry.observation.observed_at.zip(entry.observation.position).expect("both");
    let mut vessels: Vec<(f64, String)> = Vec::new();
    for ship in entries.chunks(2) {
        let legs = ship.iter().map(|(entry, _)| Leg::between(sighting(entry), sighting(&asked.0)));
        let leg = legs.min_by(|a, b| {
            a.seconds().total_cmp(&b.seconds()).then(a.distance_m().total_cmp(&b.distance_m()))
        });
        let total = |(entry, embedding): &(Entry, Embedding)| {
            let resemblance = Resemblance {
                pair: ModalityPair::of(asked.0.modality, entry.modality),
                cosine: cosine(asked.1.as_slice(), embedding.as_slice()),
                log_ratios: outline(&asked.0).log_ratios(&outline(entry)),
            };
            calibrator.evidence(Some(resemblance), leg.as_ref()).total()
        };
        let best = ship.iter().map(total).fold(f64::NEG_INFINITY, f64::max);
        vessels.push((best, ship[0].0.vessel.as_ref().expect("a vessel").to_string()));
    }
    vessels.sort_by(|a, b| b.0.total_cmp(&a.0));
    vessels.into_iter().map(|(_, vessel)| vessel).collect()
}

fn vessels(matched: &Matched) -> Vec<String> {
    let vessel = |candidate: &Candidate| candidate.vessel.as_ref().map(ToString::to_string);
    matched.candidates.iter().filter_map(vessel).collect()
}

#[test]
fn a_fused_ranking_is_that_of_all_evidence_also_of_who_is_far_down_by_cosine() {
    let random = &mut ChaCha8Rng::seed_from_u64(5);
    let entries = fleet(700, random);
    let (_folder, snapshot) = fixture::gallery(DIMENSION, &entries);
    let mut far_down = 0;
    for number in 0..12 {
        let asked = stranger(&entries, random, if number % 2 == 0 { 0.0 } else { 80.0 });
        let plan = calibrated(plan(vec![query(asked.0.clone(), asked.1.clone())]), Ranking::Fused);
        let found = run_one(&*snapshot, &plan);
        assert!(found.is_exact);
        assert_eq!(vessels(&found), by_evidence(&entries, &asked)[..10]);

        // Nothing lies beyond so deep a search.
        let whole = Plan { top_k: entries.len(), ..plan };
        let all = run_one(&*snapshot, &whole);
        assert_eq!(vessels(&all), by_evidence(&entries, &asked));
        let unknown = all.unknown_probability.expect("calibrated");
        let sum = all.candidates.iter().flat_map(|candidate| candidate.probability).sum::<f64>();
        assert!((sum + unknown - 1.0).abs() < 1e-9);
        assert!(found.unknown_probability <= Some(unknown + 1e-9), "who was not seen may be it");

        let single = Plan { group: Group::Entry, ..whole };
        let best = run_one(&*snapshot, &Plan { top_k: 10, ..single.clone() });
        assert!(best.is_exact);
        assert_eq!(ids(&best), ids(&run_one(&*snapshot, &single))[..10]);

        let by_cosine = run_one(&*snapshot, &Plan { ranking: Ranking::Cosine, ..single });
        let first_look = &ids(&by_cosine)[..600];
        far_down += ids(&found).iter().filter(|id| !first_look.contains(id)).count();
    }
    assert!(far_down > 0, "size and way have brought nobody forward");
}

#[test]
fn a_fused_ranking_is_called_exact_only_where_it_is() {
    let random = &mut ChaCha8Rng::seed_from_u64(7);
    let entries = fleet(700, random);
    let (_folder, snapshot) = fixture::gallery(DIMENSION, &entries);
    let (mut exact, mut inexact) = (0, 0);
    for second_look in [1, 10, 100, 1_000] {
        for _ in 0..5 {
            let asked = stranger(&entries, random, 0.0);
            let query = query(asked.0.clone(), asked.1.clone());
            let plan = calibrated(plan(vec![query.clone()]), Ranking::Fused);
            let session = session::Session {
                gallery: &*snapshot,
                plan: &plan,
                calibrator: plan.calibrator.as_deref(),
                selection: snapshot.select(&plan.filter).expect("a selection"),
                cancellation: &Cancellation::default(),
            };
            let resolved = query::resolve(&*snapshot, &query).expect("a gallery").expect("a query");
            let (asking, calibrator) = (session.screen(resolved), session.calibrator.expect("there"));
            let fusion = fusion::Fusion {
                session: &session,
                asking: &asking,
                calibrator,
                modality: Optical,
                second_look,
            };
            let ranked = fusion.rank().expect("a ranking");
            let best = ranked.contenders.iter().take(10).flat_map(|contender| &contender.entry.vessel);
            let best: Vec<String> = best.map(ToString::to_string).collect();
            if ranked.is_exact {
                assert_eq!(best, by_evidence(&entries, &asked)[..10]);
                exact += 1;
            } else {
                inexact += 1;
            }
        }
    }
    assert!(exact > 0 && inexact > 0, "{exact} {inexact}");
}

#[test]
fn re_ranking_that_covers_the_gallery_is_the_recorded_one() {
    let recorded = golden::tensors("eval_metrics");
    let rows = |name: &str| -> Vec<Embedding> {
        let tensor = &recorded[name];
        tensor.values.chunks(tensor.shape[1]).map(|row| unit(row.iter().copied())).collect()
    };
    let (queries, gallery) = (rows("main.q_feat"), rows("main.g_feat"));
    let entries: Vec<(Entry, Embedding)> = (0..gallery.len())
        .map(|number| (entry(&number.to_string(), "", Optical), gallery[number].clone()))
        .collect();
    let (_folder, snapshot) = fixture::gallery(gallery[0].dimension(), &entries);
    let asked = queries.iter().map(|embedding| query(entry("q", "", Optical), embedding.clone())).collect();
    let plan = Plan { ranking: Ranking::Reranked { depth: 1_000 }, top_k: gallery.len(), ..plan(asked) };
    for group in [Group::Vessel, Group::Entry] {
        let answers = run(&*snapshot, &Plan { group, ..plan.clone() });
        let expected = &recorded["main.rerank_k50_15_dist_f64"];
        let mut ranks = vec![0.0; queries.len() * gallery.len()];
        for (number, answer) in answers.iter().enumerate() {
            let places: Vec<usize> = ids(answer).iter().map(|id| id.parse().expect("a number")).collect();
            assert_eq!(places.len(), gallery.len());
            let distances = &expected.values[number * gallery.len()..][..gallery.len()];
            assert!(places.windows(2).all(|pair| distances[pair[0]] <= distances[pair[1]] + 1e-5));
            for (rank, place) in places.iter().enumerate() {
                ranks[number * gallery.len() + place] = rank as f32;
            }
        }
        let identities = |who: &str| &recorded[&format!("main.{who}_pid")].values;
        let scores = score(&Distances::new(gallery.len(), ranks), identities("q"), identities("g"));
        let mean = f64::from(recorded["main.rerank_k50_15_mAP_f64"].values[0]);
        assert!((scores.mean_average_precision - mean).abs() < 1e-6);
    }
}

#[test]
fn beyond_the_re_ranked_entries_the_cosine_goes_on() {
    let random = &mut ChaCha8Rng::seed_from_u64(6);
    let entries = fleet(100, random);
    let (_folder, snapshot) = fixture::gallery(DIMENSION, &entries);
    let asked = vec![query(entry("q", "", Optical), entries[8].1.clone())];
    let by_cosine = Plan { top_k: 100, ..plan(asked) };
    let reranked = Plan { ranking: Ranking::Reranked { depth: 40 }, ..by_cosine.clone() };
    let (by_cosine, reranked) = (run_one(&*snapshot, &by_cosine), run_one(&*snapshot, &reranked));
    let (before, after) = (vessels(&by_cosine), vessels(&reranked));
    assert_ne!(before[..20], after[..20]);
    assert_eq!(before[45..], after[45..]);
    let sorted = |mut vessels: Vec<String>| {
        vessels.sort();
        vessels
    };
    assert_eq!(sorted(before), sorted(after));
    assert!(reranked.candidates.iter().all(|candidate| candidate.entries == 2));
}

#[test]
fn a_match_that_nobody_waits_for_is_not_made() {
    let (_folder, snapshot) = harbour();
    let (cancellation, guard) = Cancellation::at(None);
    drop(guard);
    let stopped = match_queries(&*snapshot, &plan(vec![]), &cancellation);
    assert_eq!(stopped, Err(MatchError::Store(StoreError::Stopped(Stopped::Cancelled))));
}
