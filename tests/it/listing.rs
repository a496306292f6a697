//! Paginated lists of the contents of galleries, and refusals of the listing calls.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;
use shipreid::client::Client;
use shipreid::encoder::{Encoder, EncoderFactory, PixelProjection};
use shipreid::wire::{
    EmbedStreamRequest, Embedding, EnrollOutcome, EnrollRequest, EntryFilter, GetGalleryRequest,
    ListEntriesRequest, ListVesselsRequest, MergeVesselsRequest, Observation, TimeRange, Vessel,
};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::{Code, Status};

use crate::galleries::{GALLERY, create, data_in, enroll, optical, ready, refusal, vector, with_chip};
use crate::server::{details, model, start, start_serving};

#[tokio::test]
async fn whoever_waits_for_headers_before_he_enrols_gets_them() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let (items, requests) = tokio::sync::mpsc::channel(1);
    let mut answers = client.enroll(tokio_stream::wrappers::ReceiverStream::new(requests)).await.unwrap();
    items.send(ready("a", "", vector(0, 0.0), Observation::default())).await.unwrap();
    assert_eq!(answers.next().await.expect("an answer").unwrap().outcome(), EnrollOutcome::Created);
    drop(items);
    assert!(answers.next().await.is_none());

    let (chips, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = client.ship_re_id().embed_stream(requests).await.unwrap().into_inner();
    chips.send(EmbedStreamRequest { chip: Some(optical()), ..EmbedStreamRequest::default() }).await.unwrap();
    assert!(answers.next().await.expect("an answer").unwrap().result.is_some());
    drop(chips);
    assert!(answers.next().await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn the_field_of_a_gallery_is_the_one_that_names_it() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    let fields = |status: &Status| {
        let (reason, details) = details(status);
        let faults = details.bad_request().expect("a field").field_violations.iter();
        (reason, faults.map(|fault| fault.field.clone()).collect::<Vec<_>>())
    };
    let expected = |field: &str| ("GALLERY_NAME_INVALID".to_owned(), vec![field.to_owned()]);
    let item =
        EnrollRequest { gallery: "../up".into(), ..ready("a", "", vector(0, 0.0), Observation::default()) };
    let mut answers = client.enroll(tokio_stream::iter([item])).await.unwrap();
    assert_eq!(fields(&answers.next().await.expect("an answer").unwrap_err()), expected("gallery"));
    let list = ListEntriesRequest { gallery: "../up".into(), ..ListEntriesRequest::default() };
    assert_eq!(fields(&client.galleries().list_entries(list).await.unwrap_err()), expected("gallery"));
    let get = GetGalleryRequest { name: "../up".into() };
    assert_eq!(fields(&client.galleries().get_gallery(get).await.unwrap_err()), expected("name"));

    create(&client, GALLERY).await;
    let merge = MergeVesselsRequest {
        gallery: GALLERY.into(),
        vessel_ids: vec!["v".into(), String::new()],
        into: "w".into(),
    };
    let unnamed = client.galleries().merge_vessels(merge).await.unwrap_err();
    assert_eq!(fields(&unnamed), ("TEXT_EMPTY".to_owned(), vec!["vessel_ids[1]".to_owned()]));
    let filter = EntryFilter { vessel_ids: vec![String::new()], ..EntryFilter::default() };
    let list =
        ListEntriesRequest { gallery: GALLERY.into(), filter: Some(filter), ..ListEntriesRequest::default() };
    let unnamed = client.galleries().list_entries(list).await.unwrap_err();
    assert_eq!(fields(&unnamed), ("TEXT_EMPTY".to_owned(), vec!["filter.vessel_ids[0]".to_owned()]));
    assert!(unnamed.message().contains("without_vessel"), "{}", unnamed.message());
    server.stop().await;
}

#[tokio::test]
async fn a_page_stays_below_what_clients_take_and_the_list_goes_on() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let long = |number: usize| (format!("{number:0250}"), "x".repeat(250));
    let labels: HashMap<String, String> = (0..32).map(long).collect();
    let entry = |number: usize| EnrollRequest {
        labels: labels.clone(),
        ..ready(&number.to_string(), "", vector(number, 0.0), Observation::default())
    };
    enroll(&client, (0..250).map(entry).collect()).await;
    let expected: Vec<String> = (0..250).map(|number| number.to_string()).collect();
    assert_eq!(in_pages(&client, false).await, (expected.clone(), 2));
    assert_eq!(in_pages(&client, true).await, (expected, 2));
    server.stop().await;
}

/// Ids of the entries of a list in pages that are as large as they may be, and the number of pages.
async fn in_pages(client: &Client, with_embeddings: bool) -> (Vec<String>, usize) {
    let gallery = GALLERY.to_owned();
    let list =
        ListEntriesRequest { gallery, page_size: 1000, with_embeddings, ..ListEntriesRequest::default() };
    let (mut list, mut found, mut pages) = (list, Vec::new(), 0);
    loop {
        let page = client.galleries().list_entries(list.clone()).await.unwrap().into_inner();
        assert!(page.encoded_len() < 4 << 20, "{}", page.encoded_len());
        assert!(page.entries.iter().all(|entry| entry.embedding.is_some() == with_embeddings));
        found.extend(page.entries.into_iter().map(|entry| entry.entry_id));
        pages += 1;
        list.page_token = page.next_page_token;
        if list.page_token.is_empty() {
            return (found, pages);
        }
    }
}

#[tokio::test]
async fn the_embeddings_of_a_page_count_as_its_labels_do() {
    const WIDE: usize = 1 << 14;
    let wide: EncoderFactory = Arc::new(|_| Ok(Box::new(PixelProjection::new(WIDE, 1)) as Box<dyn Encoder>));
    let mut served = model(wide);
    served.card.dimension = WIDE;
    let folder = TempDir::new().unwrap();
    let (server, client) = start_serving(&[&data_in(&folder)], served).await;
    create(&client, GALLERY).await;
    let entry = |number: usize| {
        let mut values = vec![0.0; WIDE];
        values[number] = 1.0;
        ready(&number.to_string(), "", Embedding { values }, Observation::default())
    };
    enroll(&client, (0..80).map(entry).collect()).await;
    let expected: Vec<String> = (0..80).map(|number| number.to_string()).collect();
    assert_eq!(in_pages(&client, true).await, (expected.clone(), 2), "64 KiB an entry");
    assert_eq!(in_pages(&client, false).await, (expected, 1));
    server.stop().await;
}

#[tokio::test]
async fn vessels_are_listed_with_what_their_entries_say() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let at = |seconds| Observation { observed_at: time(seconds), ..Observation::default() };
    let mut optical = with_chip("d", optical());
    optical.vessel_id = "berta".into();
    enroll(
        &client,
        vec![
            ready("a", "berta", vector(0, 0.0), at(200)),
            ready("b", "berta", vector(1, 0.0), at(100)),
            ready("c", "anna", vector(2, 0.0), Observation::default()),
            optical,
            ready("e", "", vector(3, 0.0), at(50)),
        ],
    )
    .await;
    let request =
        ListVesselsRequest { gallery: GALLERY.into(), page_size: 1, ..ListVesselsRequest::default() };
    let list = async |request: &ListVesselsRequest| {
        client.galleries().list_vessels(request.clone()).await.map(tonic::Response::into_inner)
    };
    let first = list(&request).await.unwrap();
    let (sar, both) = (vec![2], vec![1, 2]);
    let anna = Vessel { vessel_id: "anna".into(), entries: 1, modalities: sar.clone(), ..Vessel::default() };
    assert_eq!(first.vessels, [anna]);
    let second = ListVesselsRequest { page_token: first.next_page_token.clone(), ..request.clone() };
    let second = list(&second).await.unwrap();
    let berta = Vessel {
        vessel_id: "berta".into(),
        entries: 3,
        first_observed_at: time(100),
        last_observed_at: time(200),
        modalities: both,
    };
    assert_eq!((second.vessels, second.next_page_token.as_str()), (vec![berta.clone()], ""));
    let range = Some(TimeRange { start: time(150), end: None });
    let filter = Some(EntryFilter { time_range: range, ..EntryFilter::default() });
    let late = list(&ListVesselsRequest { filter, ..request.clone() }).await.unwrap();
    let expected = Vessel { entries: 1, first_observed_at: time(200), modalities: sar, ..berta };
    assert_eq!((late.vessels, late.next_page_token.as_str()), (vec![expected], ""));

    let entries =
        ListEntriesRequest { gallery: GALLERY.into(), page_size: 1, ..ListEntriesRequest::default() };
    let of_entries =
        client.galleries().list_entries(entries.clone()).await.unwrap().into_inner().next_page_token;
    let refused = refusal(list(&ListVesselsRequest { page_token: of_entries, ..request.clone() }).await);
    assert_eq!(refused, (Code::InvalidArgument, "PAGE_TOKEN_INVALID".into()));
    let entries = ListEntriesRequest { page_token: first.next_page_token, ..entries };
    let refused = refusal(client.galleries().list_entries(entries).await);
    assert_eq!(refused, (Code::InvalidArgument, "PAGE_TOKEN_INVALID".into()));
    let refused = refusal(list(&ListVesselsRequest { page_size: 1001, ..request.clone() }).await);
    assert_eq!(refused, (Code::InvalidArgument, "PAGE_SIZE_INVALID".into()));
    let refused = refusal(list(&ListVesselsRequest { gallery: "nowhere".into(), ..request }).await);
    assert_eq!(refused, (Code::NotFound, "GALLERY_NOT_FOUND".into()));
    server.stop().await;
}
