//! Galleries as files: copies of them, damaged ones, and a server without persistent galleries.

use shipreid::wire::{
    DeleteGalleryRequest, ExportGalleryRequest, GetEntriesRequest, GetGalleryRequest, ImportGalleryRequest,
    ListGalleriesRequest, Observation,
};
use tempfile::TempDir;
use tonic::Code;

use crate::galleries::{GALLERY, create, data_in, enroll, optical, ready, refusal, vector, with_chip};
use crate::server::{details, start};

#[tokio::test]
async fn a_copy_is_the_same_gallery_and_a_torn_one_is_refused() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    enroll(
        &client,
        vec![
            with_chip("a", optical()),
            ready("b", "v", vector(1, 0.5), Observation { length_m: Some(80.0), ..Observation::default() }),
        ],
    )
    .await;
    let file = folder.path().join("copy");
    let request = ExportGalleryRequest { gallery: GALLERY.into(), with_chips: true };
    client.export_gallery(request, &file).await.unwrap();
    let made = client.import_gallery("second".into(), &file).await.unwrap();
    assert_eq!((made.entries, made.keeps_chips), (2, true));
    let get = |gallery: &str| GetEntriesRequest {
        gallery: gallery.into(),
        entry_ids: vec!["a".into(), "b".into()],
        with_embeddings: true,
        ..Default::default()
    };
    let first = client.galleries().get_entries(get(GALLERY)).await.unwrap().into_inner();
    let second = client.galleries().get_entries(get("second")).await.unwrap().into_inner();
    // Their commits are numbered apart.
    assert_eq!((first.entries, first.missing_entry_ids), (second.entries, second.missing_entry_ids));

    let copy = std::fs::read(&file).unwrap();
    for (data, reason) in [
        (copy[..copy.len() - 9].to_vec(), "EXPORT_TRUNCATED"),
        (b"a file of somebody else's".to_vec(), "EXPORT_FOREIGN"),
        ([&copy[..200], &[copy[200] ^ 1], &copy[201..]].concat(), "EXPORT_DAMAGED"),
    ] {
        let request = ImportGalleryRequest { name: "third".into(), data: data.into() };
        let refused = refusal(client.galleries().import_gallery(tokio_stream::iter([request])).await);
        assert_eq!(refused, (Code::InvalidArgument, reason.into()));
    }
    let taken = ImportGalleryRequest { name: GALLERY.into(), data: copy.into() };
    let taken = refusal(client.galleries().import_gallery(tokio_stream::iter([taken])).await);
    assert_eq!(taken, (Code::AlreadyExists, "GALLERY_EXISTS".into()));
    let listed = client.galleries().list_galleries(ListGalleriesRequest::default()).await.unwrap();
    let listed: Vec<_> = listed.into_inner().galleries.into_iter().map(|gallery| gallery.name).collect();
    assert_eq!(listed, [GALLERY, "second"]);
    server.stop().await;
}

#[tokio::test]
async fn a_server_without_a_data_folder_says_so() {
    let (server, client) = start(&["store.data_dir="]).await;
    let refused = refusal(client.galleries().list_galleries(ListGalleriesRequest::default()).await);
    assert_eq!(refused, (Code::FailedPrecondition, "NO_DATA_DIR".into()));
    server.stop().await;
}

#[tokio::test]
async fn a_damaged_gallery_is_refused_by_name_while_the_others_serve() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    create(&client, "whole").await;
    enroll(&client, vec![ready("a", "", vector(0, 0.0), Observation::default())]).await;
    server.stop().await;
    let file = folder.path().join("galleries/t-default").join(GALLERY).join("gallery.redb");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, vec![0x5A; bytes.len()]).unwrap();

    let (server, client) = start(&[&data_in(&folder)]).await;
    let get = |name: &str| GetGalleryRequest { name: name.into() };
    let status = client.galleries().get_gallery(get(GALLERY)).await.expect_err("it is damaged");
    assert_eq!((status.code(), details(&status).0.as_str()), (Code::DataLoss, "GALLERY_REFUSED"));
    let message = status.message();
    assert!(
        message.contains(GALLERY) && message.contains("gallery.redb") && message.contains("delete"),
        "{message}"
    );
    client.galleries().get_gallery(get("whole")).await.unwrap();
    let listed =
        client.galleries().list_galleries(ListGalleriesRequest::default()).await.unwrap().into_inner();
    assert!(listed.galleries[0].read_only_reason.contains("gallery.redb"), "{listed:?}");
    client.galleries().delete_gallery(DeleteGalleryRequest { name: GALLERY.into() }).await.unwrap();
    create(&client, GALLERY).await;
    server.stop().await;
}
