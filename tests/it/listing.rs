//! Lists of what galleries hold, in pages, and what the calls for them refuse.

use std::collections::HashMap;

use prost::Message;
use shipreid::wire::{
    EnrollOutcome, EnrollRequest, EntryFilter, GetGalleryRequest, ListEntriesRequest, MergeVesselsRequest,
    Observation,
};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::Status;

use crate::galleries::{GALLERY, create, data_in, enroll, ready, vector};
use crate::server::{details, start};

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
    let list =
        ListEntriesRequest { gallery: GALLERY.into(), page_size: 1000, ..ListEntriesRequest::default() };
    let (mut list, mut found, mut pages) = (list, Vec::new(), 0);
    loop {
        let page = client.galleries().list_entries(list.clone()).await.unwrap().into_inner();
        assert!(page.encoded_len() < 4 << 20);
        found.extend(page.entries.into_iter().map(|entry| entry.entry_id));
        pages += 1;
        list.page_token = page.next_page_token;
        if list.page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..250).map(|number| number.to_string()).collect();
    assert_eq!((found, pages), (expected, 2));
    server.stop().await;
}
