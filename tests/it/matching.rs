//! Identifying a ship in a gallery from a client's point of view.

use shipreid::chip::Modality;
use shipreid::client::{Client, chip};
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    Candidate, Embedding, EntryFilter, GroupBy, MatchQuery, MatchRequest, MatchResult, Observation, Ranking,
    TimeRange, Tracklet,
};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::galleries::{GALLERY, create, data_in, enroll, ready, refusal, vector};
use crate::server::{details, digest, fixture, start};

fn request(queries: Vec<MatchQuery>) -> MatchRequest {
    MatchRequest { gallery: GALLERY.into(), queries, ..MatchRequest::default() }
}

fn by_vector(embedding: Embedding, observation: Observation) -> MatchQuery {
    MatchQuery {
        query_id: "q".into(),
        subject: Some(Subject::Embedding(embedding)),
        observation: Some(observation),
        modality: shipreid::wire::Modality::Sar.into(),
    }
}

fn plain(embedding: Embedding) -> MatchQuery {
    by_vector(embedding, Observation::default())
}

async fn matched(client: &Client, request: MatchRequest) -> Vec<MatchResult> {
    client.match_ships(request).await.unwrap().results
}

fn vessels(result: &MatchResult) -> Vec<&str> {
    assert_eq!(result.error, None);
    result.candidates.iter().map(|candidate| candidate.vessel_id.as_str()).collect()
}

fn entries(result: &MatchResult) -> Vec<&str> {
    assert_eq!(result.error, None);
    result.candidates.iter().map(|candidate| candidate.entry_id.as_str()).collect()
}

fn at(hours: i64, latitude: f64, longitude: f64) -> Observation {
    Observation {
        observed_at: Some(prost_types::Timestamp { seconds: 1_800_000_000 + hours * 3600, nanos: 0 }),
        latitude: Some(latitude),
        longitude: Some(longitude),
        ..Observation::default()
    }
}

#[tokio::test]
async fn vessels_are_ranked_by_their_best_entry_and_entries_by_themselves() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let none = Observation::default;
    enroll(
        &client,
        vec![
            ready("a1", "a", vector(0, 0.1), none()),
            ready("a2", "a", vector(0, 0.2), none()),
            ready("b1", "b", vector(0, 0.3), none()),
            ready("lone", "", vector(0, 0.4), none()),
            ready("c1", "c", vector(7, 0.0), none()),
        ],
    )
    .await;
    let [result] = &matched(&client, request(vec![plain(vector(0, 0.0))])).await[..] else { panic!() };
    assert_eq!(vessels(result), ["a", "b", "", "c"]);
    assert_eq!(entries(result), ["a1", "b1", "lone", "c1"]);
    assert_eq!(result.candidates.iter().map(|candidate| candidate.entries).collect::<Vec<_>>(), [2, 1, 1, 1]);
    assert!(result.exact && result.matched == 5);
    assert_eq!((result.unknown_probability, result.candidates[0].probability), (None, None));
    let expected = 1.0 / 1.01_f32.sqrt();
    assert!((result.candidates[0].similarity - expected).abs() < 1e-6);

    let by_entry = MatchRequest {
        group_by: GroupBy::Entry.into(),
        top_k: Some(3),
        ..request(vec![plain(vector(0, 0.0))])
    };
    assert_eq!(entries(&matched(&client, by_entry).await[0]), ["a1", "a2", "b1"]);

    let itself = MatchQuery { subject: Some(Subject::EntryId("a1".into())), ..MatchQuery::default() };
    let by_entry = MatchRequest { group_by: GroupBy::Entry.into(), ..request(vec![itself]) };
    assert_eq!(entries(&matched(&client, by_entry).await[0]), ["a2", "b1", "lone", "c1"]);

    let filter = EntryFilter { vessel_ids: vec!["b".into(), "c".into()], ..EntryFilter::default() };
    let filtered = MatchRequest { filter: Some(filter), ..request(vec![plain(vector(0, 0.0))]) };
    let filtered = matched(&client, filtered).await;
    assert_eq!((vessels(&filtered[0]), filtered[0].matched), (vec!["b", "c"], 2));
    server.stop().await;
}

#[tokio::test]
async fn a_tracklet_is_embedded_and_answers_with_its_embedding() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let optical = chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical);
    let sar = chip(fixture("0003_c_25x110_SAR.tif"), Modality::Sar);
    let enrolled = [("optical", &optical), ("sar", &sar)].map(|(id, chip)| shipreid::wire::EnrollRequest {
        gallery: GALLERY.into(),
        entry_id: id.into(),
        vessel_id: id.into(),
        source: Some(shipreid::wire::enroll_request::Source::Chip(chip.clone())),
        ..shipreid::wire::EnrollRequest::default()
    });
    enroll(&client, enrolled.to_vec()).await;
    let tracklet = |chips: Vec<shipreid::wire::Chip>| MatchQuery {
        query_id: "t".into(),
        subject: Some(Subject::Tracklet(Tracklet { chips })),
        ..MatchQuery::default()
    };
    let broken = shipreid::wire::Chip { image: b"no image".as_slice().into(), ..sar.clone() };
    let queries = vec![
        tracklet(vec![optical.clone()]),
        tracklet(vec![optical.clone(), optical.clone()]),
        tracklet(vec![sar, broken]),
        tracklet(vec![]),
    ];
    let answer = client.match_ships(request(queries)).await.unwrap();
    assert_eq!(answer.model, digest().to_string());
    assert!(answer.timings.unwrap().search.is_some());
    let [one, two, broken, empty] = &answer.results[..] else { panic!("four results") };
    assert_eq!(vessels(one)[0], "optical");
    assert!((one.candidates[0].similarity - 1.0).abs() < 1e-5);
    let (first, second) = (one.embedding.clone().unwrap(), two.embedding.clone().unwrap());
    let apart = first.values.iter().zip(&second.values).map(|(a, b)| (a - b).abs());
    assert!(apart.fold(0.0, f32::max) < 1e-6);
    let error = broken.error.clone().unwrap();
    assert_eq!(error.field, "queries[2].tracklet.chips[1].image");
    assert_eq!(empty.error.clone().unwrap().reason, "NO_CHIPS");
    server.stop().await;
}

#[tokio::test]
async fn a_vessel_that_cannot_have_sailed_there_is_removed_and_counted() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let scene = Observation { scene_id: "s1".into(), detection_id: "d1".into(), ..Observation::default() };
    enroll(
        &client,
        vec![
            ready("near", "near", vector(0, 0.1), at(0, 0.0, 179.9)),
            ready("far", "far", vector(0, 0.2), at(0, 40.0, 0.0)),
            ready("unknown", "unknown", vector(0, 0.3), Observation::default()),
            ready("beside", "beside", vector(0, 0.4), scene.clone()),
        ],
    )
    .await;
    let query = Observation { scene_id: "s1".into(), detection_id: "d2".into(), ..at(1, 0.0, -179.9) };
    let gated = MatchRequest {
        max_speed_knots: Some(30.0),
        ..request(vec![by_vector(vector(0, 0.0), query.clone())])
    };
    let result = &matched(&client, gated.clone()).await[0];
    assert_eq!(vessels(result), ["near", "unknown"]);
    let find = |vessel: &str| -> &Candidate {
        result.candidates.iter().find(|candidate| candidate.vessel_id == vessel).unwrap()
    };
    // 0.2 degrees along the equator are 12 nautical miles.
    assert!((find("near").implied_speed_knots.unwrap() - 12.0).abs() < 0.1);
    assert!(!find("near").gate_unchecked && find("unknown").gate_unchecked);
    let removed: Vec<_> =
        result.removed.iter().map(|removed| (removed.reason.as_str(), removed.count)).collect();
    assert!(removed.contains(&("SPEED", 1)) && removed.contains(&("SAME_SCENE", 1)), "{removed:?}");
    // The same detection is not evidence of another ship.
    let same = MatchRequest {
        queries: vec![by_vector(vector(0, 0.0), Observation { detection_id: "d1".into(), ..query })],
        ..gated
    };
    assert_eq!(vessels(&matched(&client, same).await[0]), ["near", "unknown", "beside"]);
    server.stop().await;
}

#[tokio::test]
async fn candidates_say_more_where_asked_and_those_below_a_minimum_are_left_out() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let observation =
        Observation { sensor: "s".into(), latitude: Some(1.0), longitude: Some(2.0), ..Default::default() };
    let mut near = ready("a", "a", vector(0, 0.1), observation);
    near.labels = [("port".to_owned(), "Kiel".to_owned())].into();
    enroll(&client, vec![near, ready("b", "b", vector(1, 0.0), Observation::default())]).await;
    let bare = request(vec![plain(vector(0, 0.0))]);
    let result = &matched(&client, bare.clone()).await[0];
    assert!(result.candidates.iter().all(|found| found.observation.is_none() && found.labels.is_empty()));
    let asked = MatchRequest { with_details: true, min_similarity: Some(0.5), ..bare };
    let result = &matched(&client, asked).await[0];
    let [found] = &result.candidates[..] else { panic!("one candidate, not {:?}", result.candidates) };
    assert_eq!((found.entry_id.as_str(), found.modality()), ("a", shipreid::wire::Modality::Sar));
    assert_eq!(found.observation.as_ref().unwrap().sensor, "s");
    assert_eq!(found.labels["port"], "Kiel");
    let removed: Vec<_> = result.removed.iter().map(|gone| (gone.reason.as_str(), gone.count)).collect();
    assert_eq!((removed, result.matched, result.exact), (vec![("MIN_SIMILARITY", 1)], 2, true));
    server.stop().await;
}

#[tokio::test]
async fn queries_can_be_shared_out_among_distinct_vessels() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    enroll(
        &client,
        vec![
            ready("a", "a", vector(0, 0.0), Observation::default()),
            ready("b", "b", vector(0, 1.0), Observation::default()),
        ],
    )
    .await;
    // Both are most similar to a; the best joint assignment is (b, a).
    let queries = vec![plain(vector(0, 0.35)), plain(vector(0, 0.0))];
    let alone = matched(&client, request(queries.clone())).await;
    assert_eq!([vessels(&alone[0])[0], vessels(&alone[1])[0]], ["a", "a"]);
    let jointly = MatchRequest { distinct_vessels: true, ..request(queries) };
    let jointly = matched(&client, jointly).await;
    assert_eq!([vessels(&jointly[0])[0], vessels(&jointly[1])[0]], ["b", "a"]);
    server.stop().await;
}

#[tokio::test]
async fn a_request_at_fault_is_refused_by_field_and_a_query_at_fault_fails_alone() {
    let folder = TempDir::new().unwrap();
    let (server, client) =
        start(&[&data_in(&folder), "matching.top_k_max=50", "matching.queries_max=2"]).await;
    let good = || request(vec![plain(vector(0, 0.0))]);
    assert_eq!(refused(&client, good()).await, (Code::NotFound, "GALLERY_NOT_FOUND".into()));
    create(&client, GALLERY).await;
    enroll(&client, vec![ready("a", "a", vector(0, 0.0), Observation::default())]).await;
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let inverted = EntryFilter {
        time_range: Some(TimeRange { start: time(2), end: time(1) }),
        ..EntryFilter::default()
    };
    for (request, reason) in [
        (MatchRequest { top_k: Some(0), ..good() }, "TOP_K_INVALID"),
        (MatchRequest { top_k: Some(51), ..good() }, "TOP_K_INVALID"),
        (MatchRequest { queries: vec![], ..good() }, "NO_QUERIES"),
        (MatchRequest { queries: vec![plain(vector(0, 0.0)); 3], ..good() }, "TOO_MANY_QUERIES"),
        (MatchRequest { filter: Some(inverted), ..good() }, "TIME_RANGE_INVERTED"),
        (MatchRequest { max_speed_knots: Some(-1.0), ..good() }, "NUMBER_OUT_OF_BOUNDS"),
        (MatchRequest { prior_unknown: Some(1.0), ..good() }, "NUMBER_OUT_OF_BOUNDS"),
        (MatchRequest { min_similarity: Some(1.01), ..good() }, "NUMBER_OUT_OF_BOUNDS"),
        (MatchRequest { min_similarity: Some(f64::NAN), ..good() }, "NUMBER_OUT_OF_BOUNDS"),
        (MatchRequest { min_probability: Some(-0.1), ..good() }, "NUMBER_OUT_OF_BOUNDS"),
        (MatchRequest { min_probability: Some(f64::NAN), ..good() }, "NUMBER_OUT_OF_BOUNDS"),
        (MatchRequest { rerank_depth: Some(1001), ..good() }, "RERANK_DEPTH_INVALID"),
        (MatchRequest { group_by: 9, ..good() }, "GROUP_BY_UNKNOWN"),
        (MatchRequest { ranking: 9, ..good() }, "RANKING_UNKNOWN"),
    ] {
        assert_eq!(refused(&client, request).await, (Code::InvalidArgument, reason.into()));
    }
    let fused = MatchRequest { ranking: Ranking::Fused.into(), ..good() };
    assert_eq!(refused(&client, fused).await, (Code::FailedPrecondition, "UNCALIBRATED".into()));
    let probable = MatchRequest { min_probability: Some(0.5), ..good() };
    assert_eq!(refused(&client, probable).await, (Code::FailedPrecondition, "UNCALIBRATED".into()));
    let other = MatchRequest { model: "ab".repeat(32), ..good() };
    let status = status(&client, other).await;
    assert_eq!(details(&status).0, "MODEL_MISMATCH");
    assert!(status.message().contains(&digest().to_string()) && status.message().contains("abab"));

    let short = Embedding { values: vec![1.0; 3] };
    let nowhere = MatchQuery { subject: Some(Subject::EntryId("x".into())), ..MatchQuery::default() };
    for (query, reason) in [
        (plain(short), "DIMENSION_MISMATCH"),
        (plain(Embedding { values: vec![f32::NAN; 32] }), "EMBEDDING_NOT_FINITE"),
        (MatchQuery { subject: None, ..plain(vector(0, 0.0)) }, "NO_SUBJECT"),
        (nowhere, "ENTRY_NOT_FOUND"),
    ] {
        let results = matched(&client, request(vec![query, plain(vector(0, 0.0))])).await;
        assert_eq!(results[0].error.clone().expect("an error").reason, reason);
        assert_eq!(vessels(&results[1]), ["a"]);
    }
    server.stop().await;
}

async fn status(client: &Client, request: MatchRequest) -> Status {
    client.ship_re_id().r#match(request).await.unwrap_err()
}

async fn refused(client: &Client, request: MatchRequest) -> (Code, String) {
    refusal(client.ship_re_id().r#match(request).await)
}
