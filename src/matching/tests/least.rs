//! Candidates below a minimum are left out, and nothing else changes.

use super::fused::stranger;
use super::*;

#[test]
fn who_does_not_reach_the_least_is_left_out_and_nothing_else_changes() {
    let random = &mut ChaCha8Rng::seed_from_u64(8);
    let entries = fleet(60, random);
    let (_folder, snapshot) = fixture::gallery(DIMENSION, &entries);
    let (mut left_out, mut kept) = (0, 0);
    for number in 0..60 {
        let asked = stranger(&entries, random, 0.0);
        let asked = query(asked.0, asked.1);
        let ranking = [Ranking::Cosine, Ranking::Fused, Ranking::Reranked { depth: 20 }][number % 3];
        let group = if random.random() { Group::Vessel } else { Group::Entry };
        let whole = Plan { group, ..calibrated(plan(vec![asked]), ranking) };
        let least = Least {
            similarity: random.random_bool(0.7).then(|| random.random_range(-0.2..1.0)),
            probability: random.random_bool(0.7).then(|| random.random_range(0.0_f64..1.0).powi(4)),
        };
        let (all, some) = (run_one(&*snapshot, &whole), run_one(&*snapshot, &Plan { least, ..whole }));
        let reaches = |candidate: &&Candidate| {
            least.similarity.is_none_or(|least| f64::from(candidate.similarity) >= least)
                && least.probability.is_none_or(|least| candidate.probability >= Some(least))
        };
        let expected: Vec<Candidate> = all.candidates.iter().filter(reaches).cloned().collect();
        assert_eq!(some.candidates, expected);
        let missed = (all.candidates.len() - expected.len()) as u64;
        let counted = |matched: &Matched| matched.removed.iter().map(|(_, count)| count).sum::<u64>();
        assert_eq!(counted(&some), counted(&all) + missed);
        assert_eq!((some.unknown_probability, some.is_exact), (all.unknown_probability, all.is_exact));
        assert_eq!((some.matched, some.doubts), (all.matched, all.doubts));
        (left_out, kept) = (left_out + missed, kept + expected.len());
    }
    assert!(left_out > 50 && kept > 50, "{left_out} {kept}");
}

#[test]
fn the_least_is_told_by_its_reason_and_needs_what_it_measures() {
    let (_folder, snapshot) = harbour();
    let asked = || query(entry("q", "", Optical), at_angle(0.0));
    let at_least = |similarity: Option<f64>, probability: Option<f64>| Least { similarity, probability };
    let similar = Plan { least: at_least(Some(0.95), None), ..plan(vec![asked()]) };
    let matched = run_one(&*snapshot, &similar);
    assert_eq!((ids(&matched), &matched.removed[..]), (vec!["b1", "a1"], &[(Removal::MinSimilarity, 2)][..]));
    let edge = Plan { least: at_least(Some(f64::from(matched.candidates[1].similarity)), None), ..similar };
    assert_eq!(ids(&run_one(&*snapshot, &edge)), ["b1", "a1"], "who is at it reaches it");

    let probable = Plan { least: at_least(None, Some(0.05)), ..plan(vec![asked()]) };
    let expected = MatchError::Uncalibrated { what: "min_probability", model: fixture::model() };
    assert_eq!(match_queries(&*snapshot, &probable, &Cancellation::default()), Err(expected));
    let radar = Plan { queries: vec![query(entry("q", "", Sar), at_angle(0.0))], ..probable };
    let matched = run_one(&*snapshot, &calibrated(radar, Ranking::Cosine));
    assert!(matched.candidates.iter().all(|candidate| candidate.probability >= Some(0.05)));
    assert!(matched.removed.iter().any(|(reason, _)| *reason == Removal::MinProbability));
    assert_eq!(matched.doubts, [Doubt::PairUncalibrated(ModalityPair::SarSar)], "why some have none");
}

/// The best sum of cosines over all assignments of distinct vessels, with as few queries without a vessel as possible.
fn share_by_brute_force(worth: &[Vec<(String, f64)>], taken: &mut Vec<String>) -> (i64, f64) {
    let Some((first, rest)) = worth.split_first() else { return (0, 0.0) };
    let (served, sum) = share_by_brute_force(rest, taken);
    let mut best = (served, sum);
    for (vessel, cosine) in first {
        if !taken.contains(vessel) {
            taken.push(vessel.clone());
            let (served, sum) = share_by_brute_force(rest, taken);
            taken.pop();
            if (served + 1, sum + cosine) > best {
                best = (served + 1, sum + cosine);
            }
        }
    }
    best
}

#[test]
fn only_who_reaches_the_least_is_assigned() {
    let random = &mut ChaCha8Rng::seed_from_u64(9);
    let entries = fleet(8, random);
    let (_folder, snapshot) = fixture::gallery(DIMENSION, &entries);
    let (mut assigned, mut unassigned) = (0, 0);
    for _ in 0..30 {
        let asked: Vec<Query> = (0..4)
            .map(|_| {
                let (entry, embedding) = stranger(&entries, random, 0.0);
                query(entry, embedding)
            })
            .collect();
        let least = random.random_range(0.0..0.8);
        let whole = Plan { top_k: entries.len(), ..plan(asked) };
        let reach = |matched: &Matched| -> Vec<(String, f64)> {
            let vessels = vessels(matched).into_iter().zip(&matched.candidates);
            let worth = vessels.map(|(vessel, candidate)| (vessel, f64::from(candidate.similarity)));
            worth.filter(|(_, cosine)| *cosine >= least).collect()
        };
        let worth: Vec<_> = run(&*snapshot, &whole).iter().map(reach).collect();
        let (served, sum) = share_by_brute_force(&worth, &mut vec![]);
        let least = Least { similarity: Some(least), probability: None };
        let answers = run(&*snapshot, &Plan { sharing: Sharing::DistinctVessels, least, top_k: 3, ..whole });
        let firsts: Vec<&Matched> =
            answers.iter().filter(|answer| answer.doubts != [Doubt::Unassigned]).collect();
        let found: f64 = firsts.iter().map(|answer| f64::from(answer.candidates[0].similarity)).sum();
        let mut given: Vec<String> = firsts.iter().map(|answer| vessels(answer).remove(0)).collect();
        given.sort();
        given.dedup();
        assert_eq!((given.len(), firsts.len() as i64), (firsts.len(), served));
        assert!((found - sum).abs() < 1e-6, "{found} {sum}");
        assigned += firsts.len();
        unassigned += answers.len() - firsts.len();
    }
    assert!(assigned > 10 && unassigned > 10, "{assigned} {unassigned}");
}
