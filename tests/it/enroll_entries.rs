//! EnrollEntries: batches of entries in one call, with the outcomes of the Enroll stream.

use std::time::Duration;

use shipreid::chip::Modality;
use shipreid::client::{Client, chip};
use shipreid::encoder::ForwardError;
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    Chip, CreateGalleryRequest, EmbedRequest, EnrollEntriesRequest, EnrollOutcome, EnrollRequest,
    EnrollResponse, GetEntriesRequest, GetGalleryRequest, MatchQuery, MatchRequest, Observation,
};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::galleries::{GALLERY, create, data_in, enroll, optical, ready, refusal, vector, with_chip};
use crate::refusals::scripted;
use crate::server::{counted, details, fixture, start, start_with};

/// A batch whose entries leave their gallery to the call.
fn batch(entries: Vec<EnrollRequest>) -> EnrollEntriesRequest {
    let unnamed = |entry| EnrollRequest { gallery: String::new(), ..entry };
    EnrollEntriesRequest { gallery: GALLERY.into(), entries: entries.into_iter().map(unnamed).collect() }
}

async fn enroll_entries(
    client: &Client,
    request: EnrollEntriesRequest,
) -> Result<Vec<EnrollResponse>, Status> {
    Ok(client.galleries().enroll_entries(request).await?.into_inner().results)
}

fn reason_of(result: &EnrollResponse) -> Option<&str> {
    result.error.as_ref().map(|error| error.reason.as_str())
}

async fn entries(client: &Client) -> u64 {
    let request = GetGalleryRequest { name: GALLERY.into() };
    client.galleries().get_gallery(request).await.unwrap().into_inner().gallery.unwrap().entries
}

fn along(id: &str, axis: usize) -> EnrollRequest {
    ready(id, "", vector(axis, 0.0), Observation::default())
}

fn plain(count: usize) -> Vec<EnrollRequest> {
    (0..count).map(|number| along(&number.to_string(), number)).collect()
}

/// Entries of every outcome, good and bad ones mixed, some with the same id.
fn mixed() -> Vec<EnrollRequest> {
    let broken = Chip { image: b"no image".as_slice().into(), ..optical() };
    let beyond = Observation { latitude: Some(91.0), longitude: Some(0.0), ..Observation::default() };
    let beyond = Chip { observation: Some(beyond), ..optical() };
    vec![
        with_chip("a", optical()),
        with_chip("a", optical()),
        along("a", 0),
        EnrollRequest { overwrite: true, ..along("a", 0) },
        EnrollRequest { vessel_id: "v\n".into(), ..along("b", 1) },
        with_chip("c", broken),
        with_chip("d", beyond),
        EnrollRequest { source: None, ..along("e", 2) },
        along("", 3),
        along("f", 4),
        with_chip("g", chip(fixture("0005_e_64x20_RGB.png"), Modality::Optical)),
    ]
}

#[tokio::test]
async fn a_batch_has_the_outcomes_of_a_stream_and_names_fields_from_the_request() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    create(&client, "streamed").await;
    let streamed = mixed().into_iter().map(|item| EnrollRequest { gallery: "streamed".into(), ..item });
    let streamed = enroll(&client, streamed.collect()).await;
    let batched = enroll_entries(&client, batch(mixed())).await.unwrap();
    let reasons: Vec<_> = batched.iter().map(reason_of).collect();
    let expected = [
        None,
        None,
        Some("ENTRY_EXISTS"),
        None,
        Some("TEXT_CONTROL"),
        Some("IMAGE_FORMAT_UNKNOWN"),
        Some("NUMBER_OUT_OF_BOUNDS"),
        Some("NO_SOURCE"),
        Some("TEXT_EMPTY"),
        None,
        None,
    ];
    assert_eq!(reasons, expected);
    // Which entries share a commit depends on when they arrive.
    let uncommitted = |answer: EnrollResponse| EnrollResponse { gallery_commit: 0, ..answer };
    let from_the_request = streamed.into_iter().map(uncommitted).enumerate().map(|(index, mut answer)| {
        if let Some(error) = answer.error.as_mut().filter(|error| !error.field.is_empty()) {
            error.field = format!("entries[{index}].{}", error.field);
        }
        answer
    });
    let batched: Vec<_> = batched.into_iter().map(uncommitted).collect();
    assert_eq!(batched, from_the_request.collect::<Vec<_>>());
    assert_eq!(batched[5].error.as_ref().unwrap().field, "entries[5].chip.image");
    assert!(batched[10].warnings.iter().any(|warning| warning.code == "NOT_UPRIGHT"), "{:?}", batched[10]);
    assert_eq!(entries(&client).await, 3);
    server.stop().await;
}

#[tokio::test]
async fn a_batch_is_stored_once_found_at_once_and_still_there_after_a_restart() {
    use EnrollOutcome::{Created, Replaced, Unchanged};
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    // More than are in flight at once, and of the most that a batch may have.
    let sent = plain(1000);
    let outcomes = async |client: &Client, request: &EnrollEntriesRequest| {
        let results = enroll_entries(client, request.clone()).await.unwrap();
        let ids = results.iter().map(|result| result.entry_id.clone()).collect::<Vec<_>>();
        assert_eq!(ids, sent.iter().map(|entry| entry.entry_id.clone()).collect::<Vec<_>>());
        let mut outcomes: Vec<_> = results.iter().map(EnrollResponse::outcome).collect();
        outcomes.dedup();
        outcomes
    };
    assert_eq!(outcomes(&client, &batch(sent.clone())).await, [Created]);
    let query = MatchQuery { subject: Some(Subject::Embedding(vector(7, 0.0))), ..MatchQuery::default() };
    let request = MatchRequest { gallery: GALLERY.into(), queries: vec![query], ..MatchRequest::default() };
    let found = client.match_ships(request).await.unwrap().results.remove(0);
    assert_eq!(found.matched, 1000);
    assert!((found.candidates[0].similarity - 1.0).abs() < 1e-5, "{:?}", found.candidates[0]);
    assert_eq!(outcomes(&client, &batch(sent.clone())).await, [Unchanged]);
    server.stop().await;

    let (server, client) = start(&[&data_in(&folder)]).await;
    // Entries may name the gallery as well.
    let named = EnrollEntriesRequest { gallery: GALLERY.into(), entries: sent.clone() };
    assert_eq!(outcomes(&client, &named).await, [Unchanged]);
    let turned = sent
        .iter()
        .enumerate()
        .map(|(number, entry)| EnrollRequest { overwrite: true, ..along(&entry.entry_id, number + 1) });
    assert_eq!(outcomes(&client, &batch(turned.collect())).await, [Replaced]);
    let request = GetEntriesRequest {
        gallery: GALLERY.into(),
        entry_ids: vec!["7".into()],
        with_embeddings: true,
        ..Default::default()
    };
    let entry = client.galleries().get_entries(request).await.unwrap().into_inner().entries.remove(0);
    assert_eq!((entry.embedding, entries(&client).await), (Some(vector(8, 0.0)), 1000));
    server.stop().await;
}

#[tokio::test]
async fn a_batch_at_fault_is_refused_with_its_field_and_a_way_out_and_stores_nothing() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let mut elsewhere = batch(plain(5));
    elsewhere.entries[3].gallery = "elsewhere".into();
    let into = |gallery: &str| EnrollEntriesRequest { gallery: gallery.into(), ..batch(plain(1)) };
    let named = EnrollEntriesRequest { gallery: String::new(), entries: plain(1) };
    for (request, code, reason, field, says) in [
        (batch(vec![]), Code::InvalidArgument, "NO_ENTRIES", "entries", "send 1 to 1000"),
        (batch(plain(1001)), Code::InvalidArgument, "TOO_MANY_ENTRIES", "entries", "has 1001 elements"),
        (batch(plain(1001)), Code::InvalidArgument, "TOO_MANY_ENTRIES", "entries", "several batches, or"),
        (elsewhere, Code::InvalidArgument, "GALLERY_CHANGED", "entries[3].gallery", "\"elsewhere\": leave"),
        (named, Code::InvalidArgument, "GALLERY_CHANGED", "entries[0].gallery", "not into \"harbour\""),
        (into(""), Code::InvalidArgument, "GALLERY_NAME_INVALID", "gallery", "gallery name"),
        (into("../up"), Code::InvalidArgument, "GALLERY_NAME_INVALID", "gallery", "gallery name"),
        (into("nowhere"), Code::NotFound, "GALLERY_NOT_FOUND", "", "nowhere"),
    ] {
        let status = enroll_entries(&client, request).await.unwrap_err();
        let (found, details) = details(&status);
        assert_eq!((status.code(), found.as_str()), (code, reason));
        let faults =
            details.bad_request().map(|request| request.field_violations.clone()).unwrap_or_default();
        assert_eq!(faults.first().map_or("", |fault| fault.field.as_str()), field, "{reason}");
        assert!(status.message().contains(says), "{}", status.message());
    }
    assert_eq!(entries(&client).await, 0);
    let long = "i".repeat(1 << 20);
    let results = enroll_entries(&client, batch(vec![along(&long, 0)])).await.unwrap();
    assert_eq!(results[0].error.as_ref().unwrap().reason, "TEXT_TOO_LONG");
    assert!(results[0].entry_id.len() <= 256, "a long id does not come back whole");
    server.stop().await;

    let (server, client) = start(&[]).await;
    let refused = refusal(enroll_entries(&client, batch(plain(1))).await);
    assert_eq!(refused, (Code::FailedPrecondition, "NO_DATA_DIR".into()));
    server.stop().await;
}

fn chips(count: usize) -> Vec<EnrollRequest> {
    (0..count).map(|number| with_chip(&number.to_string(), optical())).collect()
}

/// A call that waits for as long as it takes.
fn patient<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_secs(600));
    request
}

/// Chips that keep the device busy until the script says otherwise.
fn busy(client: &Client, chips: usize) -> tokio::task::JoinHandle<()> {
    let request = EmbedRequest { chips: vec![optical(); chips], ..EmbedRequest::default() };
    let client = client.clone();
    tokio::spawn(async move { drop(client.ship_re_id().embed(patient(request)).await.unwrap()) })
}

#[tokio::test]
async fn entries_that_wait_are_not_stored_when_their_caller_leaves() {
    let folder = TempDir::new().unwrap();
    let (factory, script) = scripted(1);
    let (server, client) = start_with(&["encoder.batch_max=1", &data_in(&folder)], factory).await;
    create(&client, GALLERY).await;
    let leaving = tokio::spawn({
        let client = client.clone();
        async move { enroll_entries(&client, batch(chips(5))).await }
    });
    let (script, _) = script.entered().await;
    leaving.abort();
    let left = "grpc_server_handled_total{grpc_service=\"shipreid.v1.Galleries\",\
                grpc_method=\"EnrollEntries\",grpc_code=\"Canceled\"}";
    while counted(left) == 0 {
        tokio::task::yield_now().await;
    }
    // Chips are embedded in their order, so the second outcome is the next caller's, unless chips of the batch were left.
    let failed = ForwardError::Failed("scripted".into());
    let rest = std::iter::repeat_with(|| Ok(())).take(10);
    for outcome in [Ok(()), Err(failed)].into_iter().chain(rest) {
        script.outcomes.send(outcome).unwrap();
    }
    let next = enroll(&client, vec![with_chip("next", optical())]).await;
    assert_eq!(reason_of(&next[0]), Some("FORWARD_FAILED"));
    assert_eq!(entries(&client).await, 0);
    server.stop().await;
}

#[tokio::test]
async fn the_images_of_a_batch_take_the_room_of_waiting_images() {
    let folder = TempDir::new().unwrap();
    let bytes = optical().image.len();
    let settings = [
        format!("chips.bytes_max={bytes}"),
        format!("encoder.queue_bytes_max={}", 3 * bytes),
        "limits.stream_inflight_max=1".into(),
        data_in(&folder),
    ];
    let (server, client) = start(&settings.each_ref().map(String::as_str)).await;
    create(&client, GALLERY).await;
    let status = enroll_entries(&client, batch(chips(4))).await.unwrap_err();
    let (reason, found) = details(&status);
    assert_eq!((status.code(), reason.as_str()), (Code::ResourceExhausted, "QUEUE_BYTES_FULL"));
    assert!(found.retry_info().is_some());
    assert_eq!(entries(&client).await, 0);
    let results = enroll_entries(&client, batch(chips(2))).await.unwrap();
    assert!(results.iter().all(|result| result.error.is_none()), "{results:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_batch_that_could_not_be_served_fails_as_a_call() {
    let folder = TempDir::new().unwrap();
    let (factory, script) = scripted(1);
    let settings = [
        "encoder.batch_max=1",
        "encoder.queue_items_max=2",
        "limits.chips_per_request_max=2",
        "limits.deadline_seconds_default=0.5",
        &data_in(&folder),
    ];
    let (server, client) = start_with(&settings, factory).await;
    let create = CreateGalleryRequest { name: GALLERY.into(), ..CreateGalleryRequest::default() };
    client.galleries().create_gallery(patient(create)).await.unwrap();

    let two = busy(&client, 2);
    let (script, _) = script.entered().await;
    let status = client.galleries().enroll_entries(patient(batch(chips(3)))).await.unwrap_err();
    let (reason, found) = details(&status);
    assert_eq!((status.code(), reason.as_str()), (Code::ResourceExhausted, "QUEUE_FULL"));
    assert!(found.retry_info().is_some());
    // Where an entry is stored, the others have errors of their own.
    let mut one_ready = chips(2);
    one_ready.push(along("stored", 0));
    let answer = client.galleries().enroll_entries(patient(batch(one_ready))).await.unwrap();
    let results = answer.into_inner().results;
    let reasons: Vec<_> = results.iter().map(reason_of).collect();
    assert_eq!(reasons, [Some("QUEUE_FULL"), Some("QUEUE_FULL"), None]);
    script.outcomes.send(Ok(())).unwrap();
    let (script, _) = script.entered().await;
    script.outcomes.send(Ok(())).unwrap();
    two.await.unwrap();

    let one = busy(&client, 1);
    let (script, _) = script.entered().await;
    let late = refusal(enroll_entries(&client, batch(chips(1))).await);
    assert_eq!(late, (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()));
    script.outcomes.send(Ok(())).unwrap();
    one.await.unwrap();
    server.stop().await;
}
