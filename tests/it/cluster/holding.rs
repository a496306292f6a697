//! Servers of which one holds only some of the galleries, from a client's point of view.

use shipreid::client::Client;
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    DeleteGalleryRequest, GetGalleryRequest, ListEntriesRequest, ListGalleriesRequest, MatchQuery,
    MatchRequest, MergeVesselsRequest, Read,
};
use tonic::Code;

use super::database::Database;
use crate::galleries::{create, refusal};
use crate::server::start;
use crate::tools::skipped;

async fn listed(client: &Client) -> Vec<(String, String)> {
    let listed = client.galleries().list_galleries(ListGalleriesRequest::default()).await.unwrap();
    let galleries = listed.into_inner().galleries.into_iter();
    galleries.map(|gallery| (gallery.name, gallery.read_only_reason)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_for_a_gallery_go_to_a_server_that_holds_it_and_any_server_lists_and_deletes_it() {
    let Some(database) = Database::start(&[]) else {
        return skipped("tests/it/cluster/holding", "no PostgreSQL (make operators)");
    };
    let folder = tempfile::tempdir().unwrap();
    let url = format!("store.url={}", database.url());
    let data = |server: &str| format!("store.data_dir={}", folder.path().join(server).display());
    let (part, some) = start(&[&url, &data("part"), "matching.galleries=harbour*"]).await;
    let (whole, all) = start(&[&url, &data("whole")]).await;
    create(&some, "harbour").await;
    create(&all, "strait").await;

    let gallery = || "strait".to_owned();
    let refusals = [
        refusal(some.galleries().get_gallery(GetGalleryRequest { name: gallery() }).await),
        refusal(some.ship_re_id().r#match(MatchRequest { gallery: gallery(), ..a_match() }).await),
        refusal(some.galleries().list_entries(local(gallery())).await),
        refusal(some.galleries().merge_vessels(merge(gallery())).await),
    ];
    for refused in refusals {
        assert_eq!(refused, (Code::FailedPrecondition, "GALLERY_NOT_HELD".to_owned()));
    }
    let not_held = "not served: this server does not hold it (matching.galleries)";
    let expected =
        |held: &str| [("harbour".to_owned(), String::new()), ("strait".to_owned(), held.to_owned())];
    assert_eq!(listed(&some).await, expected(not_held));
    assert_eq!(listed(&all).await, expected(""));
    all.galleries().list_entries(local(gallery())).await.unwrap();
    some.galleries().delete_gallery(DeleteGalleryRequest { name: gallery() }).await.unwrap();
    let gone = refusal(all.galleries().get_gallery(GetGalleryRequest { name: gallery() }).await);
    assert_eq!(gone, (Code::NotFound, "GALLERY_NOT_FOUND".to_owned()));
    for server in [part, whole] {
        server.stop().await;
    }
}

/// A query by an entry, so that nothing is embedded.
fn a_match() -> MatchRequest {
    let query = MatchQuery { subject: Some(Subject::EntryId("1".into())), ..MatchQuery::default() };
    MatchRequest { queries: vec![query], ..MatchRequest::default() }
}

fn local(gallery: String) -> ListEntriesRequest {
    ListEntriesRequest { gallery, read: Read::Local.into(), ..ListEntriesRequest::default() }
}

fn merge(gallery: String) -> MergeVesselsRequest {
    MergeVesselsRequest { gallery, vessel_ids: vec!["a".into()], into: "b".into() }
}
