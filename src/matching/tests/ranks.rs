//! Galleries of ensembles: the fused ranking compared with brute force over each member's list.

use std::collections::HashMap;

use super::*;
use crate::embedding::{Composition, Part};

const PARTS: [usize; 3] = [4, 7, 5];

fn composition(weights: [f64; 3], k: u32, depth: u32) -> Composition {
    let parts = [0, 1, 2].map(|member| Part { dimension: PARTS[member], weight: weights[member] });
    Composition::new(&parts, k, depth).expect("an ensemble")
}

fn ranked(plan: Plan) -> Plan {
    Plan { ranking: Ranking::ReciprocalRank, ..plan }
}

/// An entry with looks that others may share, and its place in the gallery.
struct Known {
    row: u64,
    entry: Entry,
    embedding: Embedding,
}

/// Vessels, or entries without vessel or of a ranking of entries, by name.
fn name(entry: &Entry, group: Group) -> String {
    match (&entry.vessel, group) {
        (Some(vessel), Group::Vessel) => format!("vessel {vessel}"),
        _ => format!("entry {}", entry.id),
    }
}

/// The names that brute force ranks, each with its score.
fn brute_force(
    known: &[Known],
    plan: &Plan,
    query: &Embedding,
    composition: &Composition,
) -> Vec<(String, f64)> {
    let admitted: Vec<&Known> = known.iter().filter(|known| plan.filter.admits(&known.entry)).collect();
    let vessel = |known: &Known| name(&known.entry, Group::Vessel);
    let is_beside = |known: &&&Known| known.entry.observation.scene_id == "here";
    let removed: Vec<String> = admitted.iter().filter(is_beside).map(|known| vessel(known)).collect();
    let (mut scores, mut ranks) = (HashMap::<String, f64>::new(), HashMap::<String, [usize; 3]>::new());
    for (member, asked) in composition.unit_parts(query.as_slice()).iter().enumerate() {
        let cosine_of =
            |known: &Known| cosine(asked, &composition.unit_parts(known.embedding.as_slice())[member]);
        let mut list: Vec<(f32, &Known)> = admitted
            .iter()
            .filter(|known| !removed.contains(&vessel(known)))
            .map(|known| (cosine_of(known), *known))
            .collect();
        list.sort_by(|(a, first), (b, second)| b.total_cmp(a).then(first.row.cmp(&second.row)));
        let mut names: Vec<String> = Vec::new();
        for (_, known) in list {
            let name = name(&known.entry, plan.group);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        for (rank, name) in names.into_iter().take(composition.depth()).enumerate() {
            let of = f64::from(composition.k()) + (rank + 1) as f64;
            *scores.entry(name.clone()).or_default() += composition.parts()[member].weight / of;
            ranks.entry(name).or_insert([usize::MAX; 3])[member] = rank;
        }
    }
    let mut fused: Vec<(String, f64)> = scores.into_iter().collect();
    fused.sort_by(|(a, a_score), (b, b_score)| b_score.total_cmp(a_score).then(ranks[a].cmp(&ranks[b])));
    fused.truncate(plan.top_k);
    fused
}

#[test]
fn the_fused_ranking_is_that_of_brute_force_over_each_members_list() {
    let (mut ties, mut gates) = (0, 0);
    for seed in 0..24 {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let depth = [1, 5, 20, 100][seed as usize % 4];
        let composition = composition([1.0, 0.5, 1.0], random.random_range(1..6), depth);
        let looks: Vec<Embedding> =
            (0..15).map(|_| unit((0..DIMENSION).map(|_| StandardNormal.sample(random)))).collect();
        let mut entries = Vec::new();
        for number in 0..60 {
            let vessel = random.random_range(0..20);
            let vessel = if vessel < 15 { vessel.to_string() } else { String::new() };
            let modality = if random.random_bool(0.5) { Optical } else { Sar };
            let scene = if random.random_bool(0.05) { "here" } else { "elsewhere" };
            let entry = in_scene(entry(&number.to_string(), &vessel, modality), scene, &format!("d{number}"));
            // Looks that several entries share tie in every list.
            entries.push((entry, looks[random.random_range(0..looks.len())].clone()));
        }
        let deleted: Vec<EntryId> =
            entries.iter().map(|(entry, _)| entry.id.clone()).filter(|_| random.random_bool(0.2)).collect();
        let (_folder, snapshot) = fixture::ensemble_gallery(composition, &entries, &deleted);
        let known: Vec<Known> = entries
            .into_iter()
            .filter_map(|(entry, embedding)| {
                let row = snapshot.find(&entry.id).expect("readable")?;
                Some(Known { row: row.to_u64(), entry, embedding })
            })
            .collect();
        assert_eq!(known.len() + deleted.len(), 60);
        let modalities = if seed % 3 == 0 { vec![Sar] } else { vec![] };
        let asked = looks[0].clone();
        let plan = ranked(Plan {
            top_k: (depth as usize).min(30),
            group: if seed % 2 == 0 { Group::Vessel } else { Group::Entry },
            filter: Filter { modalities, ..Filter::default() },
            ..plan(vec![query(in_scene(entry("q", "", Optical), "here", "q"), asked.clone())])
        });
        let matched = run_one(&*snapshot, &plan);
        let expected = brute_force(&known, &plan, &asked, &composition);
        let of = |id: &EntryId| known.iter().find(|known| known.entry.id == *id).expect("enrolled");
        let found = matched.candidates.iter().map(|candidate| {
            let known = of(&candidate.entry);
            assert_eq!(candidate.similarity, cosine(asked.as_slice(), known.embedding.as_slice()));
            (name(&known.entry, plan.group), candidate.rank_score.expect("ranked by it"))
        });
        assert_eq!(found.collect::<Vec<_>>(), expected, "seed {seed}");
        assert!(matched.is_exact && matched.ranking == Ranking::ReciprocalRank);
        ties += expected.windows(2).filter(|pair| pair[0].1 == pair[1].1).count();
        gates += matched.removed.iter().map(|(_, count)| count).sum::<u64>();
    }
    assert!(ties > 2 && gates > 10, "{ties} ties, {gates} gated");
}

#[test]
fn an_enrolled_entry_is_ranked_against_the_others_and_queries_against_distinct_vessels() {
    let composition = composition([1.0; 3], 3, 100);
    let entries = [
        (entry("a1", "a", Optical), at_angle(10.0)),
        (entry("a2", "a", Sar), at_angle(20.0)),
        (entry("b1", "b", Optical), at_angle(40.0)),
        (entry("c1", "c", Optical), at_angle(80.0)),
    ];
    let (_folder, snapshot) = fixture::ensemble_gallery(composition, &entries, &[]);
    let enrolled = Query::Enrolled(EntryId::new("a1").expect("an id"));
    assert_eq!(ids(&run_one(&*snapshot, &ranked(plan(vec![enrolled])))), ["a2", "b1", "c1"]);
    let same = || query(entry("q", "", Optical), at_angle(12.0));
    let plan = ranked(Plan { sharing: Sharing::DistinctVessels, ..plan(vec![same(), same()]) });
    let first: Vec<String> =
        run(&*snapshot, &plan).iter().map(|matched| vessels(matched)[0].clone()).collect();
    assert!(first.contains(&"a".to_owned()) && first.contains(&"b".to_owned()), "{first:?}");
}

#[test]
fn a_member_for_which_a_query_has_no_direction_ranks_nothing() {
    let entries = [(entry("a", "a", Optical), at_angle(40.0)), (entry("b", "b", Optical), at_angle(10.0))];
    let (_folder, snapshot) = fixture::ensemble_gallery(composition([1.0; 3], 3, 100), &entries, &[]);
    // All of it is in the part of the first member.
    let matched = run_one(&*snapshot, &ranked(plan(vec![query(entry("q", "", Optical), at_angle(12.0))])));
    let scores = matched.candidates.iter().map(|candidate| candidate.rank_score.expect("ranked by it"));
    assert_eq!((ids(&matched), scores.collect()), (vec!["b", "a"], vec![1.0 / 4.0, 1.0 / 5.0]));
}

#[test]
fn a_gallery_is_ranked_as_its_model_allows_and_no_further_than_the_depth() {
    let composition = composition([1.0; 3], 3, 5);
    let (_folder, ensemble) =
        fixture::ensemble_gallery(composition, &[(entry("a", "a", Optical), at_angle(0.0))], &[]);
    let (_other, single) = harbour();
    let plan =
        |ranking, top_k| Plan { ranking, top_k, ..plan(vec![query(entry("q", "", Optical), at_angle(0.0))]) };
    let refused = |snapshot: &dyn GalleryReader, plan: &Plan| {
        match_queries(snapshot, plan, &Cancellation::default()).expect_err("refused")
    };
    let model = fixture::model();
    for ranking in
        [Ranking::Cosine, Ranking::Fused, Ranking::FusedWhereCalibrated, Ranking::Reranked { depth: 9 }]
    {
        assert_eq!(refused(&*ensemble, &plan(ranking, 5)), MatchError::Ensemble { model, ranking });
    }
    let beyond = MatchError::BeyondDepth { model, top_k: 6, depth: 5 };
    assert_eq!(refused(&*ensemble, &plan(Ranking::ReciprocalRank, 6)), beyond);
    assert_eq!(refused(&*single, &plan(Ranking::ReciprocalRank, 5)), MatchError::NoEnsemble { model });
    let calibrated = calibrated(plan(Ranking::ReciprocalRank, 5), Ranking::ReciprocalRank);
    let matched = run_one(&*ensemble, &calibrated);
    assert_eq!((ids(&matched), matched.unknown_probability), (vec!["a"], None), "no calibrator judges ranks");
    let least = Least { probability: Some(0.5), ..Least::default() };
    let least = Plan { least, ..calibrated };
    assert!(matches!(refused(&*ensemble, &least), MatchError::Uncalibrated { .. }));
}
