//! Imports by unary calls: files are sent in chunks, across restarts, and become galleries.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use shipreid::client::Client;
use shipreid::keys::Role;
use shipreid::wire::{
    AppendToUploadRequest, CreateUploadRequest, DeleteUploadRequest, ExportGalleryRequest, Gallery,
    GetEntriesRequest, GetUploadRequest, ImportUploadedGalleryRequest, ListGalleriesRequest,
    ListUploadsRequest, Observation, Upload,
};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::galleries::{GALLERY, create, data_in, enroll, optical, ready, refusal, vector, with_chip};
use crate::identity::{Keys, caller};
use crate::server::{details, start, start_alone};

/// Odd, so that chunks end anywhere within records.
const CHUNK_BYTES: usize = 997;

pub async fn create_upload(client: &Client) -> Result<Upload, Status> {
    let created = client.uploads().create_upload(CreateUploadRequest {}).await?;
    Ok(created.into_inner().upload.unwrap())
}

pub async fn append(client: &Client, upload_id: &str, offset: u64, data: &[u8]) -> Result<u64, Status> {
    let request = AppendToUploadRequest { upload_id: upload_id.into(), offset, data: data.to_vec().into() };
    let appended = client.uploads().append_to_upload(request).await?;
    Ok(appended.into_inner().upload.unwrap().size_bytes)
}

/// Sends what the server does not have yet; returns the upload's id.
pub async fn upload(client: &Client, content: &[u8]) -> String {
    let upload = create_upload(client).await.unwrap();
    let mut size = 0;
    for chunk in content.chunks(CHUNK_BYTES) {
        size = append(client, &upload.upload_id, size, chunk).await.unwrap();
    }
    assert_eq!(size, content.len() as u64);
    upload.upload_id
}

async fn get(client: &Client, upload_id: &str) -> Result<Upload, Status> {
    let request = GetUploadRequest { upload_id: upload_id.into() };
    Ok(client.uploads().get_upload(request).await?.into_inner().upload.unwrap())
}

async fn delete(client: &Client, upload_id: &str) -> Result<(), Status> {
    let request = DeleteUploadRequest { upload_id: upload_id.into() };
    client.uploads().delete_upload(request).await.map(drop)
}

async fn import(client: &Client, name: &str, upload_id: &str, sha256: &str) -> Result<Gallery, Status> {
    let (name, upload_id, sha256) = (name.into(), upload_id.into(), sha256.into());
    let request = ImportUploadedGalleryRequest { name, upload_id, sha256 };
    let imported = client.galleries().import_uploaded_gallery(request).await?;
    Ok(imported.into_inner().gallery.unwrap())
}

/// Reason and value of a metadata key of an error.
fn told(status: &Status, key: &str) -> (String, Option<String>) {
    let (reason, details) = details(status);
    (reason, details.error_info().unwrap().metadata.get(key).cloned())
}

/// The export of a gallery of two entries.
async fn exported(client: &Client, folder: &Path) -> Vec<u8> {
    create(client, GALLERY).await;
    let entries = vec![
        with_chip("a", optical()),
        ready("b", "v", vector(1, 0.5), Observation { length_m: Some(80.0), ..Observation::default() }),
    ];
    enroll(client, entries).await;
    let file = folder.join("copy");
    let request = ExportGalleryRequest { gallery: GALLERY.into(), with_chips: true };
    client.export_gallery(request, &file).await.unwrap();
    std::fs::read(file).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[tokio::test]
async fn a_gallery_is_imported_chunk_by_chunk_across_a_restart() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    let copy = exported(&client, folder.path()).await;
    assert!(copy.len() > 2 * CHUNK_BYTES, "{}", copy.len());
    let Upload { upload_id, size_bytes, chunk_bytes_max, created_at, expires_at } =
        create_upload(&client).await.unwrap();
    assert_eq!((size_bytes, chunk_bytes_max), (0, (64 << 20) - 64));
    let day = expires_at.unwrap().seconds - created_at.unwrap().seconds;
    assert!((86_390..=86_410).contains(&day), "{day}");
    let size = append(&client, &upload_id, 0, &copy[..CHUNK_BYTES]).await.unwrap();
    assert_eq!(size, CHUNK_BYTES as u64);
    server.stop().await;

    let (server, client) = start(&[&data_in(&folder)]).await;
    let stored = get(&client, &upload_id).await.unwrap();
    assert_eq!(stored.size_bytes, size);
    // The caller did not hear that its first chunk had come.
    assert_eq!(append(&client, &upload_id, 0, &copy[..CHUNK_BYTES]).await.unwrap(), size);
    // The import of a part is refused as that of a stream, and the upload goes on.
    let truncated = import(&client, "second", &upload_id, "").await.unwrap_err();
    assert_eq!(
        (truncated.code(), details(&truncated).0.as_str()),
        (Code::InvalidArgument, "EXPORT_TRUNCATED")
    );
    assert_eq!(details(&truncated).1.bad_request().unwrap().field_violations[0].field, "upload_id");
    let mut size = size;
    while size < copy.len() as u64 {
        let rest = &copy[size as usize..];
        size = append(&client, &upload_id, size, &rest[..rest.len().min(CHUNK_BYTES)]).await.unwrap();
    }
    let made = import(&client, "second", &upload_id, &sha256(&copy).to_uppercase()).await.unwrap();
    assert_eq!((made.name.as_str(), made.entries, made.keeps_chips), ("second", 2, true));
    let entries = |gallery: &str| GetEntriesRequest {
        gallery: gallery.into(),
        entry_ids: vec!["a".into(), "b".into()],
        with_embeddings: true,
        ..Default::default()
    };
    let first = client.galleries().get_entries(entries(GALLERY)).await.unwrap().into_inner();
    let second = client.galleries().get_entries(entries("second")).await.unwrap().into_inner();
    // Their commits are numbered apart.
    assert_eq!((first.entries, first.missing_entry_ids), (second.entries, second.missing_entry_ids));
    // An imported upload is deleted.
    assert_eq!(refusal(get(&client, &upload_id).await), (Code::NotFound, "UPLOAD_NOT_FOUND".into()));
    server.stop().await;
    let left = std::fs::read_dir(folder.path().join("uploads/t-default")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_chunk_at_another_place_is_refused_with_the_right_one() {
    let folder = TempDir::new().unwrap();
    let (server, client) =
        start(&[&data_in(&folder), "limits.message_bytes_max=2097152", "chips.bytes_max=1048576"]).await;
    let Upload { upload_id, chunk_bytes_max, .. } = create_upload(&client).await.unwrap();
    assert_eq!(append(&client, &upload_id, 0, b"abcdefgh").await.unwrap(), 8);
    let size = Some("8".to_owned());
    let beyond = append(&client, &upload_id, 9, b"j").await.unwrap_err();
    assert_eq!(beyond.code(), Code::OutOfRange);
    assert_eq!(told(&beyond, "size_bytes"), ("UPLOAD_OFFSET_WRONG".into(), size.clone()));
    let differs = append(&client, &upload_id, 6, b"gxyz").await.unwrap_err();
    assert_eq!(differs.code(), Code::AlreadyExists);
    assert_eq!(told(&differs, "size_bytes"), ("UPLOAD_CHUNK_DIFFERS".into(), size));
    assert_eq!(append(&client, &upload_id, 6, b"ghij").await.unwrap(), 10, "partly repeated");

    let empty = refusal(append(&client, &upload_id, 10, b"").await);
    assert_eq!(empty, (Code::InvalidArgument, "UPLOAD_CHUNK_EMPTY".into()));
    let large = vec![7; chunk_bytes_max as usize];
    let too_large = refusal(append(&client, &upload_id, 10, &[&large[..], &[7; 64]].concat()).await);
    assert_eq!(too_large, (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()));
    assert_eq!(append(&client, &upload_id, 10, &large).await.unwrap(), 10 + chunk_bytes_max);

    let upper = upload_id.to_uppercase();
    for id in ["", "7", "../../galleries", upper.as_str()] {
        let malformed = (Code::InvalidArgument, "UPLOAD_ID_MALFORMED".to_owned());
        if id != upload_id {
            assert_eq!(refusal(append(&client, id, 0, b"x").await), malformed, "{id}");
            assert_eq!(refusal(get(&client, id).await), malformed, "{id}");
            assert_eq!(refusal(delete(&client, id).await), malformed, "{id}");
            assert_eq!(refusal(import(&client, "a", id, "").await), malformed, "{id}");
        }
    }
    let unknown = "0".repeat(32);
    assert_eq!(
        refusal(append(&client, &unknown, 0, b"x").await),
        (Code::NotFound, "UPLOAD_NOT_FOUND".into())
    );
    delete(&client, &upload_id).await.unwrap();
    assert_eq!(refusal(delete(&client, &upload_id).await), (Code::NotFound, "UPLOAD_NOT_FOUND".into()));
    server.stop().await;
}

#[tokio::test]
async fn an_upload_that_cannot_be_imported_stays() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    let copy = exported(&client, folder.path()).await;
    let damaged = [&copy[..200], &[copy[200] ^ 1], &copy[201..]].concat();
    let invalid = |reason: &str| (Code::InvalidArgument, reason.to_owned());
    for (content, reason) in [
        (&copy[..copy.len() - 9], "EXPORT_TRUNCATED"),
        (b"a file of somebody else's", "EXPORT_FOREIGN"),
        (&damaged, "EXPORT_DAMAGED"),
        (b"", "EXPORT_TRUNCATED"),
    ] {
        let upload_id = upload(&client, content).await;
        assert_eq!(refusal(import(&client, "third", &upload_id, "").await), invalid(reason));
        assert_eq!(get(&client, &upload_id).await.unwrap().size_bytes, content.len() as u64);
        delete(&client, &upload_id).await.unwrap();
    }
    let upload_id = upload(&client, &copy).await;
    let other = import(&client, "third", &upload_id, &sha256(b"")).await.unwrap_err();
    assert_eq!(details(&other).0, "SHA256_MISMATCH");
    assert!(other.message().contains(&sha256(&copy)), "{}", other.message());
    for malformed in ["abc", &"g".repeat(64), &sha256(&copy)[1..]] {
        assert_eq!(
            refusal(import(&client, "third", &upload_id, malformed).await),
            invalid("SHA256_MALFORMED")
        );
    }
    let taken = (Code::AlreadyExists, "GALLERY_EXISTS".into());
    assert_eq!(refusal(import(&client, GALLERY, &upload_id, "").await), taken);
    assert_eq!(refusal(import(&client, "No!", &upload_id, "").await), invalid("GALLERY_NAME_INVALID"));
    let listed = client.galleries().list_galleries(ListGalleriesRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().galleries.len(), 1, "nothing was created");
    import(&client, "third", &upload_id, "").await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn another_tenant_neither_sees_nor_uses_an_upload_and_shares_the_room() {
    let folder = TempDir::new().unwrap();
    let mut keys = Keys::new(folder.path());
    let [harbour, strait, reader] = [
        keys.add("crane", "harbour", &[Role::Enrol]),
        keys.add("tug", "strait", &[Role::Enrol]),
        keys.add("gull", "harbour", &[Role::Match]),
    ];
    let settings = [&data_in(&folder), &keys.setting(), "uploads.count_max=3", "uploads.bytes_max=1048576"];
    let server = start_alone(&settings).await;
    let client = caller(&server, Some(&harbour)).await;
    let upload_id = upload(&client, b"of the harbour").await;
    let not_found = (Code::NotFound, "UPLOAD_NOT_FOUND".to_owned());
    let other = caller(&server, Some(&strait)).await;
    assert_eq!(refusal(get(&other, &upload_id).await), not_found);
    assert_eq!(refusal(append(&other, &upload_id, 14, b"x").await), not_found);
    assert_eq!(refusal(delete(&other, &upload_id).await), not_found);
    assert_eq!(refusal(import(&other, "a", &upload_id, "").await), not_found);
    let list = |client: &Client| {
        let mut uploads = client.uploads();
        async move { uploads.list_uploads(ListUploadsRequest::default()).await.unwrap().into_inner().uploads }
    };
    assert_eq!(list(&other).await, []);
    let denied = (Code::PermissionDenied, "ROLE_MISSING".to_owned());
    let reader = caller(&server, Some(&reader)).await;
    assert_eq!(refusal(create_upload(&reader).await), denied);
    assert_eq!(refusal(get(&reader, &upload_id).await), denied);

    let large = vec![0; 1 << 19];
    let full = append(&client, &upload_id, 14, &large).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert_eq!(told(&full, "limit"), ("UPLOADS_TOO_LARGE".into(), Some("524288".into())));
    assert_eq!(told(&full, "scope").1.as_deref(), Some("tenant"));
    create_upload(&client).await.unwrap();
    let full = create_upload(&client).await.unwrap_err();
    assert_eq!(told(&full, "scope"), ("TOO_MANY_UPLOADS".into(), Some("tenant".into())));
    create_upload(&other).await.unwrap();
    let full = create_upload(&other).await.unwrap_err();
    assert_eq!(told(&full, "scope"), ("TOO_MANY_UPLOADS".into(), Some("server".into())));
    assert_eq!(list(&client).await.len(), 2);
    drop((client, other, reader));
    server.stop().await;
}

#[tokio::test]
async fn an_upload_that_was_left_alone_is_gone_also_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    let upload_id = upload(&client, b"abcd").await;
    server.stop().await;
    let chunks = folder.path().join("uploads/t-default").join(&upload_id).join("chunks");
    let file = File::options().write(true).open(chunks).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(90_000)).unwrap();

    let (server, client) = start(&[&data_in(&folder)]).await;
    assert_eq!(refusal(get(&client, &upload_id).await), (Code::NotFound, "UPLOAD_NOT_FOUND".into()));
    server.stop().await;
    let (server, client) = start(&["store.data_dir="]).await;
    let refused = (Code::FailedPrecondition, "NO_DATA_DIR".to_owned());
    assert_eq!(refusal(create_upload(&client).await), refused);
    assert_eq!(refusal(import(&client, "a", &upload_id, "").await), refused);
    server.stop().await;
}
