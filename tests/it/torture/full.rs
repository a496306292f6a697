//! A disk that has no room left, again and again: what needs it is refused by name, what was acknowledged is there, and
//! once there is room the server goes on by itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::CreateGalleryRequest;
use tonic::Status;

use super::{Caller, GALLERY, Journal, entries, galleries, models, rounds};
use crate::program::{Server, imported};
use crate::server::details;
use crate::storage::on_a_small_disk;

const DISK: &str = "16m";
const CHUNK_BYTES: usize = 64 << 10;
/// Room that is left on a full disk, at most: some calls still succeed.
const FREE_BYTES_MAX: u64 = 64 << 10;
/// Whoever has made as many calls without a refusal needs no more room than there is.
const CALLS_MAX: usize = 400;
/// Of `make torture`, which asks for more of other kinds.
const ROUNDS_MAX: usize = 60;
const FULL: [&str; 3] = ["DISK_FULL", "GALLERY_READ_ONLY", "GALLERY_CLOSED"];

/// Leaves `free` bytes of the disk that `ballast` lies on.
fn fill(ballast: &Path, free: u64) {
    let mut file = File::create(ballast).unwrap();
    while file.write_all(&[1; CHUNK_BYTES]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(free)).unwrap();
}

/// The reason of a refusal that a full disk explains.
fn reason(status: &Status) -> String {
    let (reason, _) = details(status);
    assert!(FULL.contains(&reason.as_str()), "{status}");
    assert!(!status.message().contains("/tmp"), "{status}");
    reason
}

async fn torture<C: Caller>(mut journal: Journal<C>, prepare: impl AsyncFn(&Client)) {
    let folder = tempfile::tempdir().unwrap();
    let model = imported(folder.path());
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let data = format!("store.data_dir={}", disk.display());
    let server = Server::start_as(on_a_small_disk(&disk, DISK), &model, &[&data]);
    let mut client = Client::connect(&server.endpoint).await.unwrap();
    prepare(&client).await;
    let ballast = server.path(&disk.join("ballast"));
    let random = &mut ChaCha8Rng::seed_from_u64(1);
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    let rounds = rounds(2).min(ROUNDS_MAX);
    for round in 0..rounds {
        journal.check(&client, round).await;
        // The first disk has no room at all, so that sooner or later a call is refused.
        let (free, calls) =
            if round == 0 { (0, usize::MAX) } else { (random.random_range(0..FREE_BYTES_MAX), CALLS_MAX) };
        fill(&ballast, free);
        for _ in 0..calls {
            if let Err(refused) = journal.call_once(&client, random).await {
                *refusals.entry(reason(&refused)).or_default() += 1;
                break;
            }
        }
        journal.check(&client, round).await;
        std::fs::remove_file(&ballast).unwrap();
        while let Err(refused) = journal.call_once(&client, random).await {
            reason(&refused);
            // A connection does not outlast a thousand streams that end in errors.
            client = Client::connect(&server.endpoint).await.unwrap();
            journal.check(&client, round).await;
        }
    }
    journal.check(&client, rounds).await;
    server.terminate();
    assert!(!refusals.is_empty(), "the disk was never full");
    println!("{rounds} full disks, refused: {refusals:?}");
}

#[tokio::test]
async fn a_full_disk_costs_no_entry_that_was_acknowledged() {
    let journal = Journal::new("entries", entries::Sharer::new(0));
    let create = CreateGalleryRequest { name: GALLERY.into(), ..CreateGalleryRequest::default() };
    torture(journal, async |client| drop(client.galleries().create_gallery(create.clone()).await.unwrap()))
        .await;
}

#[tokio::test]
async fn a_full_disk_costs_no_gallery_that_was_acknowledged() {
    torture(Journal::new("gallery", galleries::Owner::new("north")), async |_| {}).await;
}

#[tokio::test]
async fn a_full_disk_costs_no_model_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let files = models::exported(&imported(folder.path()), folder.path());
    torture(Journal::new("models", models::Owner::new(files)), async |_| {}).await;
}
