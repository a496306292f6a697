//! Ensembles of a running server: imported, activated, embedded with, searched by, and there after a restart.

use std::collections::HashMap;

use shipreid::encoder::Members;
use shipreid::weights::ensemble::Ensemble;
use shipreid::wire::{Candidate, Embedding, Ranking};

use super::*;

const GALLERY: &str = "ranked";
const WEIGHTS: [f64; 2] = [1.0, 0.7];
const DEPTH: usize = 5;
const ENTRIES: usize = 20;

fn ensemble() -> Ensemble {
    let members = [1, 2].map(|seed| model(seed).networks()[0].clone()).to_vec();
    Ensemble::new(members, &WEIGHTS, 3, DEPTH as u32).unwrap()
}

/// In place of an ensemble, the projections of its members.
pub fn loaded_ensemble(ensemble: &Ensemble, first: &LoadedModel) -> LoadedModel {
    let digests = || ensemble.members.iter().map(|member| member.digest);
    let members = Arc::new(Members::new(ensemble.composition, digests()));
    let card = ModelCard {
        digest: ensemble.digest,
        dimension: ensemble.composition.dimension(),
        members: Some(Arc::clone(&members)),
        ..first.card.clone()
    };
    let factory = |digest| -> EncoderFactory {
        Arc::new(move |_| Ok(Box::new(projection(digest)) as Box<dyn Encoder>))
    };
    let factory = members.encoder(digests().map(factory).collect());
    LoadedModel { card, factory, workers: 2, bytes: 1 }
}

/// A file as another server exports it.
fn exported_ensemble(folder: &Path) -> PathBuf {
    let limits = RegistryLimits { count_max: 9, bytes_max: 1 << 30 };
    let registry = Registry::open(&folder.join("ensembles"), limits).unwrap();
    registry.add(&AnyModel::from(ensemble()), &Provenance::now("ensemble of two")).unwrap();
    let path = folder.join("both.zip");
    registry.export(ensemble().digest).unwrap().write_to(fs::File::create(&path).unwrap()).unwrap();
    path
}

/// A vector of both members' dimensions, different for each number.
fn vector(number: usize) -> Vec<f32> {
    let members = [0, 1].map(|member| -> Vec<f32> {
        let angle = |axis: usize| ((number * 7 + axis * 3 + member * 5) as f32 * 0.7).sin();
        let values: Vec<f32> = (0..16).map(angle).collect();
        let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        values.into_iter().map(|value| value / length).collect()
    });
    ensemble().composition.compose(members.iter().map(Vec::as_slice))
}

fn enrolment(number: usize) -> EnrollRequest {
    EnrollRequest {
        gallery: GALLERY.into(),
        entry_id: number.to_string(),
        source: Some(Source::Embedding(ReadyEmbedding {
            embedding: Some(Embedding { values: vector(number) }),
            model: ensemble().digest.to_string(),
            modality: shipreid::wire::Modality::Sar.into(),
            ..ReadyEmbedding::default()
        })),
        ..EnrollRequest::default()
    }
}

fn asking(number: usize) -> MatchRequest {
    let subject = Some(Subject::Embedding(Embedding { values: vector(number) }));
    MatchRequest {
        gallery: GALLERY.into(),
        queries: vec![MatchQuery { subject, ..MatchQuery::default() }],
        top_k: Some(DEPTH as u32),
        ..MatchRequest::default()
    }
}

/// The entries that fusing each member's best gives, with their scores.
fn expected_ranking(number: usize) -> Vec<(String, f64)> {
    let composition = ensemble().composition;
    let asked = composition.unit_parts(&vector(number));
    let mut scores: HashMap<usize, f64> = HashMap::new();
    for member in 0..2 {
        let cosine = |entry: usize| -> f64 {
            let part = &composition.unit_parts(&vector(entry))[member];
            part.iter().zip(&asked[member]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let mut entries: Vec<usize> = (0..ENTRIES).collect();
        entries.sort_by(|a, b| cosine(*b).total_cmp(&cosine(*a)));
        for (rank, entry) in (1..=DEPTH).zip(entries) {
            *scores.entry(entry).or_default() += WEIGHTS[member] / (3.0 + rank as f64);
        }
    }
    let mut ranking: Vec<(String, f64)> =
        scores.into_iter().map(|(entry, score)| (entry.to_string(), score)).collect();
    ranking.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranking.truncate(DEPTH);
    ranking
}

async fn ranked(client: &Client, number: usize) -> Vec<(String, f64)> {
    let answer = client.ship_re_id().r#match(asking(number)).await.unwrap().into_inner();
    let result = &answer.results[0];
    assert_eq!((result.error.clone(), result.ranking(), result.exact), (None, Ranking::ReciprocalRank, true));
    assert_eq!(answer.model, ensemble().digest.to_string());
    let score = |found: &Candidate| (found.entry_id.clone(), found.rank_score.unwrap());
    result.candidates.iter().map(score).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ensemble_is_imported_activated_and_searched_by_and_all_of_it_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    let imported = import(&client, &exported_ensemble(folder.path())).await;
    let described = imported.ensemble.clone().unwrap();
    assert_eq!((imported.dimension, imported.family.as_str()), (32, "ensemble"));
    assert_eq!((described.k, described.depth as usize), (3, DEPTH));
    let members: Vec<_> = described
        .members
        .iter()
        .map(|member| (member.digest.clone(), member.weight, member.dimension))
        .collect();
    assert_eq!(members, [(digest(1), 1.0, 16), (digest(2), 0.7, 16)]);
    assert!(described.members.iter().all(|member| member.family == "transoss" && member.forward.is_none()));

    activate(&client, imported.digest.clone()).await.unwrap();
    let answer = client.embed(EmbedRequest { with_members: true, ..request() }, None).await.unwrap();
    let result = &answer.results[0];
    let Some(Outcome::Embedding(whole)) = &result.outcome else { panic!("{result:?}") };
    assert_eq!((whole.values.len(), result.members.len()), (32, 2));
    for (member, seed) in result.members.iter().zip([1, 2]) {
        let expected = expected(model(seed).digest());
        assert!(member.values.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    let bare = client.embed(request(), None).await.unwrap();
    assert!(bare.results[0].members.is_empty(), "nobody has asked for them");
    let shown = GetModelRequest::default();
    let shown = client.models().get_model(shown).await.unwrap().into_inner().model.unwrap();
    assert!(shown.ensemble.unwrap().members.iter().all(|member| member.forward.is_some()), "their cost");

    let create = CreateGalleryRequest { name: GALLERY.into(), ..CreateGalleryRequest::default() };
    client.galleries().create_gallery(create).await.unwrap();
    let enrolled = enroll(&client, (0..ENTRIES).map(enrolment).collect()).await;
    assert!(enrolled.iter().all(|done| done.error.is_none()), "{enrolled:?}");
    let expected: Vec<_> = [3, 50, 77].map(expected_ranking).to_vec();
    for (number, expected) in [3, 50, 77].into_iter().zip(&expected) {
        assert_eq!(ranked(&client, number).await, *expected);
    }
    for (request, reason) in [
        (MatchRequest { top_k: Some(DEPTH as u32 + 1), ..asking(3) }, "TOP_K_BEYOND_DEPTH"),
        (MatchRequest { ranking: Ranking::Cosine.into(), ..asking(3) }, "RANKING_UNAVAILABLE"),
        (MatchRequest { rerank_depth: Some(9), ..asking(3) }, "RANKING_UNAVAILABLE"),
    ] {
        let refused = client.ship_re_id().r#match(request).await.unwrap_err();
        assert_eq!((refused.code(), details(&refused).0.as_str()), (Code::FailedPrecondition, reason));
    }
    server.stop().await;

    let (server, client) = start(folder.path(), &[]).await;
    for (number, expected) in [3, 50, 77].into_iter().zip(&expected) {
        assert_eq!(ranked(&client, number).await, *expected);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gallery_moves_from_a_model_to_an_ensemble_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(folder.path(), &[]).await;
    let imported = import(&client, &exported_ensemble(folder.path())).await;
    import(&client, &exported(folder.path(), &[2])[0]).await;
    let create = CreateGalleryRequest { name: GALLERY.into(), keep_chips: Some(true), ..Default::default() };
    client.galleries().create_gallery(create).await.unwrap();
    let chip = chip(fixture(IMAGE), Modality::Optical);
    let enrolment = EnrollRequest {
        gallery: GALLERY.into(),
        entry_id: "0".into(),
        source: Some(Source::Chip(chip.clone())),
        ..EnrollRequest::default()
    };
    assert!(enroll(&client, vec![enrolment]).await.iter().all(|done| done.error.is_none()));
    let asking = MatchRequest {
        gallery: GALLERY.into(),
        queries: vec![MatchQuery {
            subject: Some(Subject::Tracklet(Tracklet { chips: vec![chip] })),
            ..MatchQuery::default()
        }],
        top_k: Some(1),
        ..MatchRequest::default()
    };
    for (next, ranking) in [(imported.digest.clone(), Ranking::ReciprocalRank), (digest(2), Ranking::Cosine)]
    {
        activate(&client, next.clone()).await.unwrap();
        // The gallery changes its model while it is searched.
        loop {
            let answer = client.ship_re_id().r#match(asking.clone()).await.unwrap().into_inner();
            let found = &answer.results[0].candidates[0];
            assert!((found.similarity - 1.0).abs() < 1e-5, "{found:?}");
            if answer.model == next {
                assert_eq!(answer.results[0].ranking(), ranking);
                break;
            }
        }
    }
    server.stop().await;
}
