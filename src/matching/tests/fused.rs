//! Compares fused rankings with all evidence, computed one by one.

use super::*;

/// A query that looks somewhat like a ship of the fleet, in optical: pairs of SAR are not calibrated.
pub(super) fn stranger(
    entries: &[(Entry, Embedding)],
    random: &mut ChaCha8Rng,
    north: f64,
) -> (Entry, Embedding) {
    let (entry, embedding) = &entries[2 * random.random_range(0..entries.len() / 2)];
    let blurred = embedding.as_slice().iter().map(|value| value + random.random_range(-0.4..0.4));
    (seen_at(entry.clone(), 100, north), unit(blurred))
}

/// The ids of all vessels, ranked by the evidence of their two entries and the nearer of their sightings.
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

        // So deep a search leaves nothing beyond it.
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
            let (gated, calibrator) = (session.screen(resolved), session.calibrator.expect("there"));
            let fusion = fusion::Fusion {
                session: &session,
                gated: &gated,
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
