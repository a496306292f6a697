//! Re-ranked rankings against recorded ones.

use super::*;

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
