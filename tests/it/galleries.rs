//! Enrolling, changing, copying and deleting known ships from a client's point of view.

use std::collections::HashMap;

use shipreid::chip::Modality;
use shipreid::client::{Client, chip};
use shipreid::wire::delete_entries_request::Selection;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::{
    Area, Chip, CreateGalleryRequest, DeleteEntriesRequest, DeleteGalleryRequest, Embedding, EnrollOutcome,
    EnrollRequest, EnrollResponse, EntryFilter, EntryIds, EntryUpdate, Gallery, GetEntriesRequest,
    GetGalleryRequest, ListEntriesRequest, MergeVesselsRequest, Observation, ReadyEmbedding, TimeRange,
    UpdateEntriesRequest,
};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::{Code, Status};

use crate::server::{DIMENSION, details, digest, fixture, start};

pub const GALLERY: &str = "harbour";

/// Settings that keep a server's data in `folder`.
pub fn data_in(folder: &TempDir) -> String {
    format!("store.data_dir={}", folder.path().display())
}

pub async fn create(client: &Client, name: &str) -> Gallery {
    let request = CreateGalleryRequest { name: name.into(), ..CreateGalleryRequest::default() };
    client.galleries().create_gallery(request).await.unwrap().into_inner().gallery.unwrap()
}

/// A vector mostly along axis `axis`, with a component `tilt` along the next axis.
pub fn vector(axis: usize, tilt: f32) -> Embedding {
    let mut values = vec![0.0; DIMENSION];
    values[axis % DIMENSION] = 1.0;
    values[(axis + 1) % DIMENSION] += tilt;
    Embedding { values }
}

pub fn ready(id: &str, vessel: &str, embedding: Embedding, observation: Observation) -> EnrollRequest {
    EnrollRequest {
        gallery: GALLERY.into(),
        entry_id: id.into(),
        vessel_id: vessel.into(),
        source: Some(Source::Embedding(ReadyEmbedding {
            embedding: Some(embedding),
            model: digest().to_string(),
            modality: shipreid::wire::Modality::Sar.into(),
            observation: Some(observation),
            chip: None,
        })),
        ..EnrollRequest::default()
    }
}

pub fn optical() -> Chip {
    chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical)
}

pub fn with_chip(id: &str, chip: Chip) -> EnrollRequest {
    EnrollRequest {
        gallery: GALLERY.into(),
        entry_id: id.into(),
        source: Some(Source::Chip(chip)),
        ..EnrollRequest::default()
    }
}

pub async fn enroll(client: &Client, requests: Vec<EnrollRequest>) -> Vec<EnrollResponse> {
    let answers = client.enroll(tokio_stream::iter(requests)).await.unwrap();
    answers.map(Result::unwrap).collect().await
}

fn outcomes(answers: &[EnrollResponse]) -> Vec<Result<EnrollOutcome, &str>> {
    let outcome = |answer: &'_ EnrollResponse| answer.outcome();
    answers
        .iter()
        .map(|answer| match &answer.error {
            None => Ok(outcome(answer)),
            Some(error) => Err(error.reason.as_str()),
        })
        .collect()
}

async fn ids(client: &Client, filter: EntryFilter) -> Vec<String> {
    let request = ListEntriesRequest {
        gallery: GALLERY.into(),
        filter: Some(filter),
        page_size: 2,
        ..ListEntriesRequest::default()
    };
    let (mut found, mut request) = (Vec::new(), request);
    loop {
        let page = client.galleries().list_entries(request.clone()).await.unwrap().into_inner();
        assert!(page.entries.len() <= 2);
        found.extend(page.entries.into_iter().map(|entry| entry.entry_id));
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

pub fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("a refusal");
    (status.code(), details(&status).0)
}

#[tokio::test]
async fn an_entry_is_created_once_and_told_apart_from_other_content() {
    use EnrollOutcome::{Created, Replaced, Unchanged};
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    let made = create(&client, GALLERY).await;
    assert_eq!(
        (made.model, made.dimension as usize, made.keeps_chips),
        (digest().to_string(), DIMENSION, true)
    );
    let named = EnrollRequest { vessel_id: "v1".into(), ..with_chip("a", optical()) };
    let overwriting = EnrollRequest { overwrite: true, ..named.clone() };
    let answers = enroll(
        &client,
        vec![
            with_chip("a", optical()),
            with_chip("a", optical()),
            named.clone(),
            overwriting.clone(),
            overwriting,
            ready("b", "v1", vector(0, 0.0), Observation::default()),
            with_chip("c", Chip { image: b"no image".as_slice().into(), ..optical() }),
        ],
    )
    .await;
    assert_eq!(
        outcomes(&answers),
        [
            Ok(Created),
            Ok(Unchanged),
            Err("ENTRY_EXISTS"),
            Ok(Replaced),
            Ok(Unchanged),
            Ok(Created),
            Err("IMAGE_FORMAT_UNKNOWN"),
        ]
    );
    assert_eq!(answers.iter().map(|answer| answer.entry_id.as_str()).collect::<String>(), "aaaaabc");
    let request = GetGalleryRequest { name: GALLERY.into() };
    let gallery = client.galleries().get_gallery(request).await.unwrap().into_inner().gallery.unwrap();
    assert_eq!((gallery.entries, gallery.vessels), (2, 1));
    server.stop().await;
}

/// Like [`ready`], with the chip from which the embedding was computed.
fn with_both(id: &str, chip: Chip) -> EnrollRequest {
    let mut request = ready(id, "", vector(0, 0.0), Observation::default());
    let Some(Source::Embedding(ready)) = &mut request.source else { unreachable!("it is one") };
    (ready.modality, ready.observation, ready.chip) = (0, None, Some(chip));
    request
}

#[tokio::test]
async fn an_embedding_is_enrolled_with_the_chip_that_it_was_made_from() {
    use EnrollOutcome::{Created, Replaced, Unchanged};
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let observation = Some(Observation { sensor: "s".into(), ..Observation::default() });
    let seen = Chip { observation: observation.clone(), ..optical() };
    let mut twice = with_both("b", seen.clone());
    let mut contradicting = with_both("b", optical());
    for request in [&mut twice, &mut contradicting] {
        let Some(Source::Embedding(ready)) = &mut request.source else { unreachable!("it is one") };
        ready.modality = shipreid::wire::Modality::Sar.into();
        ready.observation = Some(Observation::default());
    }
    let answers = enroll(
        &client,
        vec![
            with_both("a", seen.clone()),
            with_both("a", seen.clone()),
            with_both("a", optical()),
            EnrollRequest { overwrite: true, ..with_both("a", seen) },
            with_both("b", Chip { image: b"no image".as_slice().into(), ..optical() }),
            twice,
            contradicting,
            EnrollRequest { overwrite: true, ..ready("a", "", vector(0, 0.0), Observation::default()) },
            EnrollRequest { overwrite: true, ..with_both("a", optical()) },
        ],
    )
    .await;
    assert_eq!(
        outcomes(&answers),
        [
            Ok(Created),
            Ok(Unchanged),
            Err("ENTRY_EXISTS"),
            Ok(Unchanged),
            Err("IMAGE_FORMAT_UNKNOWN"),
            Err("OBSERVATION_TWICE"),
            Err("MODALITY_CONTRADICTS"),
            Ok(Replaced),
            Ok(Replaced),
        ]
    );
    let fields: Vec<_> =
        answers.iter().filter_map(|answer| Some(answer.error.as_ref()?.field.as_str())).collect();
    let expected =
        ["entry_id", "embedding.chip.image", "embedding.chip.observation", "embedding.chip.modality"];
    assert_eq!(fields[1..], expected[1..]);
    let request = GetEntriesRequest {
        gallery: GALLERY.into(),
        entry_ids: vec!["a".into()],
        with_embeddings: true,
        ..Default::default()
    };
    let entry = client.galleries().get_entries(request).await.unwrap().into_inner().entries.remove(0);
    assert_eq!(entry.embedding, Some(vector(0, 0.0)), "it is not re-embedded");
    assert_eq!(entry.modality(), shipreid::wire::Modality::Optical);
    let gallery = client.galleries().get_gallery(GetGalleryRequest { name: GALLERY.into() }).await;
    let stored = gallery.unwrap().into_inner().gallery.unwrap().stored_bytes;
    assert!(stored > optical().image.len() as u64, "the chip is kept: {stored}");
    server.stop().await;
}

#[tokio::test]
async fn what_is_enrolled_survives_a_restart_and_can_be_filtered() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let at = |seconds, longitude| Observation {
        observed_at: Some(prost_types::Timestamp { seconds, nanos: 5 }),
        latitude: Some(-15.0),
        longitude: Some(longitude),
        ..Observation::default()
    };
    let mut flagged = ready("c", "v2", vector(2, 0.0), at(300, 10.0));
    flagged.labels = HashMap::from([("flag".into(), "PA".into())]);
    enroll(
        &client,
        vec![
            ready("a", "v1", vector(0, 0.0), at(100, 179.0)),
            ready("b", "v1", vector(1, 0.0), at(200, -179.0)),
            flagged,
            ready("d", "", vector(3, 0.0), Observation::default()),
        ],
    )
    .await;
    server.stop().await;

    let (server, client) = start(&[&data_in(&folder)]).await;
    let fiji = Area { south: -20.0, west: 175.0, north: -10.0, east: -175.0 };
    let at_second = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    for (filter, expected) in [
        (EntryFilter::default(), "abcd"),
        (EntryFilter { area: Some(fiji), ..EntryFilter::default() }, "ab"),
        (
            EntryFilter {
                time_range: Some(TimeRange { start: at_second(200), end: at_second(300) }),
                ..EntryFilter::default()
            },
            "b",
        ),
        (EntryFilter { vessel_ids: vec!["v2".into(), "v9".into()], ..EntryFilter::default() }, "c"),
        (
            EntryFilter { labels: HashMap::from([("flag".into(), "PA".into())]), ..EntryFilter::default() },
            "c",
        ),
        (EntryFilter { entry_ids: vec!["d".into(), "x".into()], ..EntryFilter::default() }, "d"),
        (EntryFilter { time_range: Some(TimeRange::default()), ..EntryFilter::default() }, "abcd"),
        (EntryFilter { without_vessel: true, ..EntryFilter::default() }, "d"),
        (EntryFilter { exclude_vessel_ids: vec!["v1".into()], ..EntryFilter::default() }, "cd"),
        (EntryFilter { exclude_entry_ids: vec!["a".into(), "x".into()], ..EntryFilter::default() }, "bcd"),
        (
            EntryFilter {
                exclude_labels: HashMap::from([("flag".into(), "PA".into())]),
                vessel_ids: vec!["v1".into(), "v2".into()],
                ..EntryFilter::default()
            },
            "ab",
        ),
        (
            EntryFilter {
                modalities: vec![shipreid::wire::Modality::Optical.into()],
                ..EntryFilter::default()
            },
            "",
        ),
    ] {
        assert_eq!(ids(&client, filter.clone()).await.concat(), expected, "{filter:?}");
    }
    let request = GetEntriesRequest {
        gallery: GALLERY.into(),
        entry_ids: vec!["b".into(), "x".into(), "a".into()],
        with_embeddings: true,
        ..Default::default()
    };
    let found = client.galleries().get_entries(request).await.unwrap().into_inner();
    assert_eq!(found.missing_entry_ids, ["x"]);
    assert_eq!(found.entries.iter().map(|entry| entry.entry_id.as_str()).collect::<String>(), "ba");
    assert_eq!(found.entries[1].embedding, Some(vector(0, 0.0)));
    assert_eq!(found.entries[1].observation.clone().unwrap().observed_at.unwrap().nanos, 5);
    server.stop().await;
}

#[tokio::test]
async fn what_is_known_can_change_and_a_delete_is_final() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let enrolled = ["a", "b", "c"].map(|id| ready(id, "", vector(0, 0.0), Observation::default()));
    enroll(&client, enrolled.to_vec()).await;
    let update = |id: &str, vessel: &str| EntryUpdate {
        entry_id: id.into(),
        vessel_id: vessel.into(),
        observation: Some(Observation {
            length_m: Some(120.0),
            sensor: "s".into(),
            ..Observation::default()
        }),
        ..EntryUpdate::default()
    };
    let mask = |paths: &[&str]| {
        Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).into()).collect() })
    };
    let request = UpdateEntriesRequest {
        gallery: GALLERY.into(),
        updates: vec![update("a", "v1"), update("b", "v2"), update("x", "v3")],
        update_mask: mask(&["vessel_id", "observation.length_m"]),
    };
    let answer = client.galleries().update_entries(request.clone()).await.unwrap().into_inner();
    assert_eq!((answer.updated, answer.missing_entry_ids), (2, vec!["x".to_owned()]));
    let wrong = UpdateEntriesRequest { update_mask: mask(&["observation.colour"]), ..request.clone() };
    let wrong = refusal(client.galleries().update_entries(wrong).await);
    assert_eq!(wrong, (Code::InvalidArgument, "UPDATE_MASK_UNKNOWN".into()));
    let long = UpdateEntriesRequest { update_mask: mask(&[&"colour".repeat(100_000)]), ..request };
    let long = client.galleries().update_entries(long).await.unwrap_err();
    assert_eq!(details(&long).0, "UPDATE_MASK_UNKNOWN", "its end is not lost with the trailers");
    assert!(long.message().ends_with("…, which cannot be updated"), "{}", long.message());

    let merge =
        MergeVesselsRequest { gallery: GALLERY.into(), vessel_ids: vec!["v1".into()], into: "v2".into() };
    let merged = client.galleries().merge_vessels(merge).await.unwrap().into_inner();
    assert_eq!(merged.moved_entries, 1);
    assert_eq!(
        ids(&client, EntryFilter { vessel_ids: vec!["v2".into()], ..EntryFilter::default() }).await,
        ["a", "b"]
    );
    let get = GetEntriesRequest {
        gallery: GALLERY.into(),
        entry_ids: vec!["a".into()],
        with_embeddings: false,
        ..Default::default()
    };
    let entry = client.galleries().get_entries(get).await.unwrap().into_inner().entries.remove(0);
    let observation = entry.observation.unwrap();
    assert_eq!((observation.length_m, observation.sensor.as_str()), (Some(120.0), ""));
    // Enrolling the same request again changes nothing, although the entry's metadata has changed since.
    let again = enroll(&client, vec![enrolled[0].clone()]).await;
    assert_eq!(outcomes(&again), [Ok(EnrollOutcome::Unchanged)]);

    let delete = |selection| DeleteEntriesRequest { gallery: GALLERY.into(), selection: Some(selection) };
    let by_id = delete(Selection::Ids(EntryIds { entry_ids: vec!["a".into(), "x".into()] }));
    assert_eq!(client.galleries().delete_entries(by_id).await.unwrap().into_inner().deleted, 1);
    let by_filter = EntryFilter { vessel_ids: vec!["v2".into()], ..EntryFilter::default() };
    let by_filter = delete(Selection::Filter(by_filter));
    assert_eq!(client.galleries().delete_entries(by_filter).await.unwrap().into_inner().deleted, 1);
    let everything = delete(Selection::Filter(EntryFilter::default()));
    let refused = refusal(client.galleries().delete_entries(everything).await);
    assert_eq!(refused, (Code::InvalidArgument, "FILTER_EMPTY".into()));
    for filter in [
        EntryFilter { time_range: Some(TimeRange::default()), ..EntryFilter::default() },
        EntryFilter { area: Some(Area::default()), ..EntryFilter::default() },
        EntryFilter { exclude_vessel_ids: vec!["v1".into()], ..EntryFilter::default() },
    ] {
        let delete = delete(Selection::Filter(filter));
        let refused = refusal(client.galleries().delete_entries(delete).await);
        assert_eq!(refused, (Code::InvalidArgument, "FILTER_EMPTY".into()));
    }
    assert_eq!(ids(&client, EntryFilter::default()).await, ["c"]);

    let request = DeleteGalleryRequest { name: GALLERY.into() };
    client.galleries().delete_gallery(request).await.unwrap();
    let request = GetGalleryRequest { name: GALLERY.into() };
    assert_eq!(
        refusal(client.galleries().get_gallery(request).await),
        (Code::NotFound, "GALLERY_NOT_FOUND".into())
    );
    server.stop().await;
}

#[tokio::test]
async fn an_item_at_fault_fails_alone_and_says_why() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder), "store.entries_max=1"]).await;
    let missing = ready("a", "", vector(0, 0.0), Observation::default());
    let mut answers = client.enroll(tokio_stream::iter([missing])).await.unwrap();
    let missing = refusal(answers.next().await.expect("an answer"));
    assert!(answers.next().await.is_none());
    assert_eq!(missing, (Code::NotFound, "GALLERY_NOT_FOUND".into()));

    create(&client, GALLERY).await;
    let good = || ready("a", "", vector(0, 0.0), Observation::default());
    let with = |change: fn(&mut ReadyEmbedding)| {
        let mut request = good();
        let Some(Source::Embedding(ready)) = &mut request.source else { panic!("an embedding") };
        change(ready);
        request
    };
    let cases: Vec<(EnrollRequest, &str)> = vec![
        (EnrollRequest { entry_id: String::new(), ..good() }, "TEXT_EMPTY"),
        (EnrollRequest { entry_id: "x".repeat(257), ..good() }, "TEXT_TOO_LONG"),
        (EnrollRequest { vessel_id: "a\nb".into(), ..good() }, "TEXT_CONTROL"),
        (EnrollRequest { source: None, ..good() }, "NO_SOURCE"),
        (EnrollRequest { gallery: "other".into(), ..good() }, "GALLERY_CHANGED"),
        (with(|ready| ready.embedding.as_mut().unwrap().values.truncate(3)), "DIMENSION_MISMATCH"),
        (with(|ready| ready.embedding.as_mut().unwrap().values[0] = f32::NAN), "EMBEDDING_NOT_FINITE"),
        (with(|ready| ready.embedding.as_mut().unwrap().values.fill(0.0)), "EMBEDDING_ZERO"),
        (with(|ready| ready.model = "ab".repeat(32)), "MODEL_MISMATCH"),
        (with(|ready| ready.modality = 0), "MODALITY_UNKNOWN"),
        (with(|ready| ready.observation.as_mut().unwrap().latitude = Some(91.0)), "POSITION_INCOMPLETE"),
        (
            with(|ready| {
                let observation = ready.observation.as_mut().unwrap();
                (observation.latitude, observation.longitude) = (Some(91.0), Some(0.0));
            }),
            "NUMBER_OUT_OF_BOUNDS",
        ),
    ];
    let expected: Vec<_> = cases.iter().map(|(_, reason)| Err(*reason)).collect();
    let first = good();
    let requests = std::iter::once(first).chain(cases.iter().map(|(request, _)| request.clone()));
    let over = EnrollRequest { entry_id: "b".into(), ..good() };
    let answers = enroll(&client, requests.chain([over]).collect()).await;
    let found = outcomes(&answers);
    assert_eq!(found[0], Ok(EnrollOutcome::Created));
    assert_eq!(found[1..found.len() - 1], expected);
    assert_eq!(*found.last().unwrap(), Err("ENTRIES_QUOTA"));

    for (name, reason) in
        [("", "GALLERY_NAME_INVALID"), ("Big", "GALLERY_NAME_INVALID"), (GALLERY, "GALLERY_EXISTS")]
    {
        let request = CreateGalleryRequest { name: name.into(), ..CreateGalleryRequest::default() };
        assert_eq!(refusal(client.galleries().create_gallery(request).await).1, reason);
    }
    server.stop().await;
}
