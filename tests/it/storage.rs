//! The data folder of a real server: exclusive use by one server, and a disk that fills up.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use shipreid::client::Client;
use shipreid::wire::enroll_request::Source;
use shipreid::wire::{
    CreateGalleryRequest, Embedding, EnrollRequest, ExportGalleryRequest, GetGalleryRequest,
    ImportGalleryRequest, ListEntriesRequest, Modality, ReadyEmbedding,
};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_types::StatusExt;

use crate::program::{PORTS, Server, imported, model_path, run};
use crate::uploads::{append, create_upload};

/// Enough that the galleries' files exceed the size of a small disk.
const ENTRIES: usize = 4000;
const NAMES: [&str; 2] = ["first", "second"];

#[test]
fn a_second_server_on_one_data_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = imported(folder.path());
    let data = format!("store.data_dir={}", folder.path().join("data").display());
    let server = Server::start(&model, &[&data]);
    let model = model_path(&model);
    let second = run(&[&["serve"], &PORTS[..], &["--set", &model, "--set", &data]].concat());
    assert_eq!(second.status.code(), Some(2));
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(message.contains("data") && message.contains("another process"), "{message}");
    server.terminate();
}

/// In its own name spaces, where it is root, the server gets a small disk.
pub fn on_a_small_disk(folder: &Path, size: &str) -> Command {
    let mut program = Command::new("unshare");
    let mount = format!("mount -t tmpfs -o size={size} tmpfs {} && exec \"$0\" \"$@\"", folder.display());
    program.args([
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &mount,
        env!("CARGO_BIN_EXE_shipreid"),
    ]);
    program
}

#[tokio::test]
async fn a_full_disk_makes_a_gallery_read_only_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = imported(folder.path());
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let data = format!("store.data_dir={}", disk.display());
    let server = Server::start_as(on_a_small_disk(&disk, "4m"), &model, &[&data]);
    let ballast = server.path(&disk.join("ballast"));
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let client = Client::connect(&server.endpoint).await.unwrap();
    let upload = create_upload(&client).await.unwrap();
    append(&client, &upload.upload_id, 0, b"abcd").await.unwrap();
    let mut digest = String::new();
    for name in NAMES {
        let request = CreateGalleryRequest { name: name.into(), ..CreateGalleryRequest::default() };
        let made = client.galleries().create_gallery(request).await.unwrap().into_inner();
        digest = made.gallery.unwrap().model;
    }
    let requests = (0..ENTRIES).map(|number| request(NAMES[0], number, &digest)).collect::<Vec<_>>();
    let mut answers = client.enroll(tokio_stream::iter(requests)).await.unwrap();
    let (mut acknowledged, mut refused) = (Vec::new(), Vec::new());
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        match answer.error {
            None => acknowledged.push(answer.entry_id),
            Some(error) => refused.push(error),
        }
    }
    assert!(
        !acknowledged.is_empty() && !refused.is_empty(),
        "{} kept, {} refused",
        acknowledged.len(),
        refused.len()
    );
    assert!(refused.iter().all(|error| error.reason == "GALLERY_READ_ONLY"), "{:?}", refused[0]);

    let get = GetGalleryRequest { name: NAMES[0].into() };
    let gallery = client.galleries().get_gallery(get).await.unwrap().into_inner().gallery.unwrap();
    assert!(gallery.read_only_reason.contains("space"), "{}", gallery.read_only_reason);
    let mut present = HashSet::new();
    let mut list = ListEntriesRequest { gallery: NAMES[0].into(), page_size: 1000, ..Default::default() };
    loop {
        let page = client.galleries().list_entries(list.clone()).await.unwrap().into_inner();
        present.extend(page.entries.into_iter().map(|entry| entry.entry_id));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    // Entries of the last commit may be present although they were not acknowledged.
    let missing = acknowledged.iter().filter(|id: &&String| !present.contains(id.as_str())).count();
    assert_eq!(missing, 0, "of {}", acknowledged.len());
    // The other gallery is unchanged, although it cannot grow either.
    let get = GetGalleryRequest { name: NAMES[1].into() };
    let other = client.galleries().get_gallery(get).await.unwrap().into_inner().gallery.unwrap();
    assert_eq!(other.read_only_reason, "");

    // Every call that needs disk space reports that the disk is full, without its path.
    let copy = folder.path().join("copy");
    let export = ExportGalleryRequest { gallery: NAMES[0].into(), with_chips: true };
    client.export_gallery(export, &copy).await.unwrap();
    let create = CreateGalleryRequest { name: "third".into(), ..CreateGalleryRequest::default() };
    let created = client.galleries().create_gallery(create).await.unwrap_err();
    let data = std::fs::read(&copy).unwrap().into();
    let import = ImportGalleryRequest { name: "third".into(), data };
    let imported = client.galleries().import_gallery(tokio_stream::iter([import])).await.unwrap_err();
    let appended = append(&client, &upload.upload_id, 4, &vec![1; 3 << 20]).await.unwrap_err();
    for status in [created, imported, appended] {
        let reason = status.get_details_error_info().unwrap().reason;
        assert_eq!((status.code(), reason.as_str()), (Code::ResourceExhausted, "DISK_FULL"), "{status}");
        assert!(!status.message().contains('/'), "{status}");
    }

    // Once there is space again, no restart is necessary.
    std::fs::remove_file(&ballast).unwrap();
    let get = GetGalleryRequest { name: NAMES[0].into() };
    let mut gallery = gallery;
    while !gallery.read_only_reason.is_empty() {
        let got = client.galleries().get_gallery(get.clone()).await.unwrap();
        gallery = got.into_inner().gallery.unwrap();
    }
    assert!(gallery.entries as usize >= acknowledged.len());
    assert_eq!(append(&client, &upload.upload_id, 4, &[1; 1 << 10]).await.unwrap(), (1 << 10) + 4);
    let late = vec![request(NAMES[0], ENTRIES, &digest)];
    let mut answers = client.enroll(tokio_stream::iter(late)).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().error, None);
    server.terminate();
}

fn request(gallery: &str, number: usize, model: &str) -> EnrollRequest {
    let mut values = vec![0.0; 16];
    values[number % 16] = 1.0;
    EnrollRequest {
        gallery: gallery.into(),
        entry_id: format!("{number:06}-{}", "x".repeat(200)),
        source: Some(Source::Embedding(ReadyEmbedding {
            embedding: Some(Embedding { values }),
            model: model.into(),
            modality: Modality::Sar.into(),
            observation: None,
            chip: None,
        })),
        ..EnrollRequest::default()
    }
}
