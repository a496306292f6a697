//! How current a gallery is for a call that reads it: `read`, `min_commit`, and the commit in every answer.

use shipreid::client::Client;
use shipreid::wire::{
    DeleteEntriesRequest, EntryIds, GetEntriesRequest, GetGalleryRequest, ListEntriesRequest,
    ListVesselsRequest, MatchQuery, MatchRequest, MergeVesselsRequest, Observation, Read,
    delete_entries_request::Selection, match_query::Subject,
};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::galleries::{GALLERY, create, data_in, enroll, ready, refusal, vector};
use crate::server::{details, start};

/// The commit that each method that reads a gallery has seen, and how old its state may be.
async fn read(client: &Client, read: i32, min_commit: u64) -> [Result<(u64, u64), Status>; 4] {
    let gallery = || GALLERY.to_owned();
    let age = |age: Option<prost_types::Duration>| age.map_or(u64::MAX, |age| age.nanos as u64);
    let query = MatchQuery { subject: Some(Subject::EntryId("a".into())), ..MatchQuery::default() };
    let of_match =
        MatchRequest { gallery: gallery(), queries: vec![query], read, min_commit, ..Default::default() };
    let get = GetEntriesRequest {
        gallery: gallery(),
        entry_ids: vec!["a".into()],
        read,
        min_commit,
        ..Default::default()
    };
    let entries = ListEntriesRequest { gallery: gallery(), read, min_commit, ..Default::default() };
    let vessels = ListVesselsRequest { gallery: gallery(), read, min_commit, ..Default::default() };
    let (mut matching, mut galleries) = (client.ship_re_id(), client.galleries());
    [
        matching.r#match(of_match).await.map(|answer| {
            let answer = answer.into_inner();
            (answer.gallery_commit, age(answer.gallery_age))
        }),
        galleries.get_entries(get).await.map(|answer| {
            let answer = answer.into_inner();
            (answer.gallery_commit, age(answer.gallery_age))
        }),
        galleries.list_entries(entries).await.map(|answer| {
            let answer = answer.into_inner();
            (answer.gallery_commit, age(answer.gallery_age))
        }),
        galleries.list_vessels(vessels).await.map(|answer| {
            let answer = answer.into_inner();
            (answer.gallery_commit, age(answer.gallery_age))
        }),
    ]
}

#[tokio::test]
async fn every_answer_says_which_commit_it_saw_and_waits_for_none_that_there_is_not() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    let made = create(&client, GALLERY).await;
    let items = ["a", "b"].map(|id| ready(id, "v", vector(0, 0.0), Observation::default()));
    let answers = enroll(&client, items.to_vec()).await;
    let enrolled = answers.iter().map(|answer| answer.gallery_commit).max().expect("two");
    assert!(enrolled > made.commit, "{enrolled} after {}", made.commit);
    let merge =
        MergeVesselsRequest { gallery: GALLERY.into(), vessel_ids: vec!["v".into()], into: "w".into() };
    let merged = client.galleries().merge_vessels(merge).await.unwrap().into_inner().gallery_commit;
    let selection = Some(Selection::Ids(EntryIds { entry_ids: vec!["b".into()] }));
    let delete = DeleteEntriesRequest { gallery: GALLERY.into(), selection };
    let deleted = client.galleries().delete_entries(delete).await.unwrap().into_inner().gallery_commit;
    assert!(enrolled < merged && merged < deleted, "{enrolled} {merged} {deleted}");
    let get = GetGalleryRequest { name: GALLERY.into() };
    let gallery = client.galleries().get_gallery(get).await.unwrap().into_inner().gallery.expect("there");
    assert_eq!(gallery.commit, deleted);

    for how in [Read::Unspecified, Read::Strong, Read::Local] {
        for min_commit in [0, deleted] {
            for answer in read(&client, how.into(), min_commit).await {
                assert_eq!(answer.expect("up to date"), (deleted, 0), "{how:?}");
            }
        }
        for answer in read(&client, how.into(), deleted + 1).await {
            let status = answer.expect_err("nobody has committed it");
            let (reason, told) = details(&status);
            assert_eq!((status.code(), reason.as_str()), (Code::FailedPrecondition, "COMMIT_UNKNOWN"));
            let metadata = &told.error_info().expect("it says why").metadata;
            assert_eq!(metadata["gallery_commit"], deleted.to_string());
        }
    }
    for answer in read(&client, 3, 0).await {
        assert_eq!(refusal(answer.clone()), (Code::InvalidArgument, "READ_UNKNOWN".into()));
        let (_, told) = details(&answer.unwrap_err());
        assert_eq!(told.bad_request().expect("a field").field_violations[0].field, "read");
    }
    server.stop().await;
}
