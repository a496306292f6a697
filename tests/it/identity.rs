//! Keys, roles and tenants from the callers' point of view, audit records, and keys that change
//! while calls run.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use shipreid::app::Running;
use shipreid::chip::Modality;
use shipreid::client::{Access, ApiKey, Client, ClientError, chip};
use shipreid::keys::{NewKey, Role};
use shipreid::wire::{
    CreateGalleryRequest, DeleteGalleryRequest, EmbedRequest, EmbedStreamRequest, EnrollEntriesRequest,
    EnrollRequest, GetChipPreviewRequest, ListGalleriesRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status};

use crate::galleries::data_in;
use crate::server::{details, fixture, start_alone};

/// A file of keys, and the tokens of its keys.
pub struct Keys {
    path: PathBuf,
    blocks: Vec<(String, String)>,
}

impl Keys {
    pub fn new(folder: &Path) -> Self {
        let keys = Self { path: folder.join("keys.toml"), blocks: Vec::new() };
        keys.write();
        keys
    }

    /// The setting with which a server reads them.
    pub fn setting(&self) -> String {
        format!("auth.keys_file={}", self.path.display())
    }

    /// Adds a key and returns its token.
    pub fn add(&mut self, id: &str, tenant: &str, roles: &[Role]) -> String {
        let (id, roles) = (Some(id.to_owned()), roles.to_vec());
        self.add_made(NewKey { id, tenant: tenant.into(), roles, not_after: None })
    }

    /// Adds a key that expires.
    pub fn add_until(&mut self, id: &str, end: SystemTime) -> String {
        let (id, tenant) = (Some(id.to_owned()), "harbour".to_owned());
        self.add_made(NewKey { id, tenant, roles: vec![Role::Embed], not_after: Some(end) })
    }

    fn add_made(&mut self, new: NewKey) -> String {
        let id = new.id.clone().unwrap();
        let made = new.make().unwrap();
        self.blocks.push((id, made.block));
        self.write();
        made.token
    }

    pub fn remove(&mut self, id: &str) {
        self.blocks.retain(|(held, _)| held != id);
        self.write();
    }

    /// By a rename, so that a partial file is never read.
    fn write(&self) {
        let text: String = self.blocks.iter().map(|(_, block)| format!("{block}\n")).collect();
        let new = self.path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &self.path).unwrap();
    }
}

pub async fn caller(server: &Running, token: Option<&str>) -> Client {
    let key = token.map(|token| ApiKey::new(token).unwrap());
    let access = Access { key, ..Access::default() };
    Client::connect_as(&format!("http://{}", server.address), &access).await.unwrap()
}

fn ship() -> EmbedRequest {
    let chip = chip(fixture("0001_a_33x97_RGB.tif"), Modality::Optical);
    EmbedRequest { chips: vec![chip], ..EmbedRequest::default() }
}

async fn embed(client: &Client) -> Result<(), Box<Status>> {
    match client.embed(ship(), None).await {
        Ok(_) => Ok(()),
        Err(ClientError::Refused(status)) => Err(status),
        Err(other) => panic!("{other}"),
    }
}

fn refused(status: &Status, code: Code, reason: &str) {
    assert_eq!((status.code(), details(status).0.as_str()), (code, reason), "{status:?}");
}

#[tokio::test]
async fn a_tenant_sees_its_own_galleries_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = Keys::new(folder.path());
    let tokens = ["harbour", "yard"].map(|tenant| keys.add(tenant, tenant, &[Role::Enrol]));
    let server = start_alone(&[&data_in(&folder), &keys.setting()]).await;
    for token in &tokens {
        let galleries = caller(&server, Some(token)).await.galleries();
        let request = CreateGalleryRequest { name: "ships".into(), ..CreateGalleryRequest::default() };
        galleries.clone().create_gallery(request).await.expect("the name is free in every tenant");
    }
    let mut galleries = caller(&server, Some(&tokens[0])).await.galleries();
    let listed = galleries.list_galleries(ListGalleriesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.galleries.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn keys_open_and_close_while_the_server_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = Keys::new(folder.path());
    let first = keys.add("first", "harbour", &[Role::Embed]);
    // The new key is tried until the server has loaded it.
    let settings = ["auth.reload_seconds=0.01", "auth.rejections_per_second_max=0"];
    let server = start_alone(&[&[&*keys.setting()], &settings[..]].concat()).await;
    let first = caller(&server, Some(&first)).await;
    embed(&first).await.unwrap();
    refused(&embed(&caller(&server, None).await).await.unwrap_err(), Code::Unauthenticated, "KEY_MISSING");

    let second = keys.add("second", "harbour", &[Role::Embed]);
    let second = caller(&server, Some(&second)).await;
    while let Err(status) = embed(&second).await {
        refused(&status, Code::Unauthenticated, "KEY_INVALID");
    }
    let (items, stream) = mpsc::unbounded_channel();
    let mut service = first.ship_re_id();
    let EmbedRequest { chips, .. } = ship();
    let item = EmbedStreamRequest { chip: chips.into_iter().next(), ..EmbedStreamRequest::default() };
    items.send(item).unwrap();
    let mut answers = service.embed_stream(UnboundedReceiverStream::new(stream)).await.unwrap().into_inner();
    answers.message().await.unwrap().expect("an answer");
    keys.remove("first");
    let status = answers.message().await.expect_err("a stream ends with its key");
    refused(&status, Code::Unauthenticated, "KEY_INVALID");
    refused(&embed(&first).await.unwrap_err(), Code::Unauthenticated, "KEY_INVALID");
    embed(&second).await.unwrap();
    drop((first, second));
    server.stop().await;
}

#[tokio::test]
async fn calls_beyond_a_tenants_rate_hear_when_to_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = Keys::new(folder.path());
    let tokens = ["harbour", "yard"].map(|tenant| keys.add(tenant, tenant, &[Role::Embed]));
    let limits = ["limits.calls_per_second_max=1", "limits.calls_burst_max=2"];
    let server = start_alone(&[&[keys.setting().as_str()], &limits[..]].concat()).await;
    let harbour = caller(&server, Some(&tokens[0])).await;
    let status = loop {
        if let Err(status) = embed(&harbour).await {
            break status;
        }
    };
    refused(&status, Code::ResourceExhausted, "RATE_LIMITED");
    assert!(details(&status).1.retry_info().is_some());
    embed(&caller(&server, Some(&tokens[1])).await).await.expect("another tenant's bucket");
    server.stop().await;
}

#[tokio::test]
async fn what_changes_something_is_audited_with_who_and_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = Keys::new(folder.path());
    let token = keys.add("crane", "harbour", &[Role::Enrol, Role::Embed]);
    let file = folder.path().join("audit.jsonl");
    let setting = format!("telemetry.audit_file={}", file.display());
    let server = start_alone(&[&data_in(&folder), &keys.setting(), &setting]).await;
    let client = caller(&server, Some(&token)).await;
    let mut galleries = client.galleries();
    let create = CreateGalleryRequest { name: "ships".into(), ..CreateGalleryRequest::default() };
    galleries.create_gallery(create.clone()).await.unwrap();
    galleries.create_gallery(create.clone()).await.expect_err("it exists");
    let EmbedRequest { chips, .. } = ship();
    let source = chips.into_iter().next().map(shipreid::wire::enroll_request::Source::Chip);
    let item =
        EnrollRequest { gallery: "ships".into(), entry_id: "1".into(), source, ..EnrollRequest::default() };
    let mut enrolled = galleries.enroll(tokio_stream::iter([item.clone()])).await.unwrap().into_inner();
    while enrolled.message().await.unwrap().is_some() {}
    let entries = ["1", "2", "3"].map(|id| EnrollRequest { entry_id: id.into(), ..item.clone() }).into();
    let batch = EnrollEntriesRequest { gallery: "ships".into(), entries };
    galleries.enroll_entries(batch).await.unwrap();
    let preview =
        GetChipPreviewRequest { gallery: "ships".into(), entry_id: "1".into(), ..Default::default() };
    galleries.get_chip_preview(preview).await.expect("reading is not audited");
    let delete = DeleteGalleryRequest { name: "ships".into() };
    galleries.delete_gallery(delete).await.expect_err("only admins do");
    embed(&client).await.expect("reading is not audited");
    let stranger = caller(&server, None).await;
    stranger.galleries().create_gallery(create).await.expect_err("strangers do not fill the disk");
    drop((galleries, client, stranger));
    server.stop().await;

    let text = std::fs::read_to_string(file).unwrap();
    assert!(!text.contains(&token) && !text.contains(token.rsplit('.').next().unwrap()));
    let records: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = |record: &serde_json::Value| {
        assert_eq!((&record["key"], &record["tenant"]), (&"crane".into(), &"harbour".into()));
        assert!(record["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
        let method = record["method"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        (method, text("resource"), record["items"].as_u64().unwrap(), text("code"), text("reason"))
    };
    let told: Vec<_> = records.iter().map(told).collect();
    let expected = [
        ("CreateGallery", "ships", 0, "Ok", ""),
        ("CreateGallery", "ships", 0, "AlreadyExists", "GALLERY_EXISTS"),
        ("Enroll", "ships", 1, "Ok", ""),
        // One of the three was there.
        ("EnrollEntries", "ships", 2, "Ok", ""),
        ("DeleteGallery", "", 0, "PermissionDenied", "ROLE_MISSING"),
    ];
    let expected = expected.map(|(method, resource, items, code, reason)| {
        (method.to_owned(), resource.to_owned(), items, code.to_owned(), reason.to_owned())
    });
    assert_eq!(told, expected);
}
