//! A disk that fills up repeatedly: calls that need space are refused with a specific error, acknowledged
//! data is kept, and once there is space again the server continues automatically.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::client::Client;
use shipreid::wire::CreateGalleryRequest;
use tonic::Status;

use super::tally::{Tally, rounds};
use super::{Caller, DataFolder, GALLERY, Journal, entries, galleries, jobs, models};
use crate::program::Server;
use crate::server::details;
use crate::storage::on_a_small_disk;

const DISK: &str = "16m";
const CHUNK_BYTES: usize = 64 << 10;
/// Maximum space left on a full disk: some calls still succeed.
const FREE_BYTES_MAX: u64 = 64 << 10;
/// After this many calls without a refusal, a caller needs no more space than there is.
const CALLS_MAX: usize = 400;
/// Calls after the first refused one; others need less space, or other files.
const REFUSALS_MAX: usize = 4;
/// Maximum number of rounds in `make torture`, which requests more for other kinds.
const ROUNDS_MAX: usize = 60;
const FULL: [&str; 3] = ["DISK_FULL", "GALLERY_READ_ONLY", "GALLERY_CLOSED"];

/// Fills the disk of `ballast` except for `free` bytes.
fn fill(ballast: &Path, free: u64) {
    let mut file = File::create(ballast).unwrap();
    while file.write_all(&[1; CHUNK_BYTES]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(free)).unwrap();
}

/// The reason of a refusal, which a full disk must explain.
fn reason(status: &Status) -> String {
    let (reason, _) = details(status);
    assert!(FULL.contains(&reason.as_str()), "{status}");
    assert!(!status.message().contains("/tmp"), "{status}");
    reason
}

/// A call that must wait for the end of a process, which cannot be recorded on a full disk.
const WAITS: [&str; 2] = ["JOB_ACTIVE", "JOB_CANCELLING"];

/// A server on a small disk, and the file that fills the disk.
struct SmallDisk(DataFolder);

impl SmallDisk {
    fn new() -> Self {
        let data = DataFolder::new();
        std::fs::create_dir(data.folder.path().join("disk")).unwrap();
        Self(data)
    }

    fn serve(&self, settings: &[&str]) -> Server {
        let disk = self.0.folder.path().join("disk");
        let data = format!("store.data_dir={}", disk.display());
        let settings = [&[data.as_str()], settings].concat();
        Server::start_as(on_a_small_disk(&disk, DISK), &self.0.model, &settings)
    }

    fn ballast(&self, server: &Server) -> PathBuf {
        server.path(&self.0.folder.path().join("disk/ballast"))
    }
}

/// Fills the disk repeatedly during the calls of `journal`, and empties it again.
async fn torture<C: Caller>(what: &str, mut journal: Journal<C>, server: Server, ballast: &Path) {
    let mut client = Client::connect(&server.endpoint).await.unwrap();
    let random = &mut ChaCha8Rng::seed_from_u64(1);
    let mut tally = Tally::new(format!("full disk, {what}"));
    let rounds = rounds(2).min(ROUNDS_MAX);
    for round in 0..rounds {
        journal.check(&client, round).await;
        // The first disk has no space at all, so that a call is refused eventually.
        let (free, calls) =
            if round == 0 { (0, usize::MAX) } else { (random.random_range(0..FREE_BYTES_MAX), CALLS_MAX) };
        fill(ballast, free);
        let mut refusals = Vec::new();
        for _ in 0..calls {
            match journal.call_once(&client, random).await {
                Ok(()) => tally.acknowledged += 1,
                Err(refused) => {
                    if !WAITS.contains(&details(&refused).0.as_str()) {
                        refusals.push(reason(&refused));
                    }
                    journal.check(&client, round).await;
                }
            }
            if refusals.len() == REFUSALS_MAX {
                break;
            }
        }
        tally.count(refusals.first().map_or("not refused", |first| first));
        tally.round();
        journal.check(&client, round).await;
        std::fs::remove_file(ballast).unwrap();
        while let Err(refused) = journal.call_once(&client, random).await {
            if !WAITS.contains(&details(&refused).0.as_str()) {
                reason(&refused);
            }
            // A connection does not survive a thousand streams that end in errors.
            client = Client::connect(&server.endpoint).await.unwrap();
            journal.check(&client, round).await;
        }
    }
    journal.check(&client, rounds).await;
    server.terminate();
    assert!(tally.counted("not refused") < rounds, "the disk was never full");
    tally.tell();
}

#[tokio::test]
async fn a_full_disk_costs_no_entry_that_was_acknowledged() {
    let disk = SmallDisk::new();
    let server = disk.serve(&[]);
    let client = Client::connect(&server.endpoint).await.unwrap();
    let create = CreateGalleryRequest { name: GALLERY.into(), ..CreateGalleryRequest::default() };
    client.galleries().create_gallery(create).await.unwrap();
    let journal = Journal::new("entries", entries::Sharer::new(0));
    let ballast = disk.ballast(&server);
    torture("entries", journal, server, &ballast).await;
}

#[tokio::test]
async fn a_full_disk_costs_no_gallery_that_was_acknowledged() {
    let disk = SmallDisk::new();
    let server = disk.serve(&[]);
    let ballast = disk.ballast(&server);
    torture("galleries", Journal::new("gallery", galleries::Owner::new("north")), server, &ballast).await;
}

#[tokio::test]
async fn a_full_disk_costs_no_model_that_was_acknowledged() {
    let disk = SmallDisk::new();
    let files = models::exported(&disk.0.model, disk.0.folder.path());
    let server = disk.serve(&[]);
    let ballast = disk.ballast(&server);
    torture("models", Journal::new("models", models::Owner::new(files)), server, &ballast).await;
}

#[tokio::test]
async fn a_full_disk_costs_no_job_that_was_acknowledged() {
    let ships = crate::training::TrainingFolder::new();
    let disk = SmallDisk::new();
    // The remaining space is reserved for callers.
    let program = format!("training.program={}", jobs::idle_program(disk.0.folder.path()).display());
    let roots = format!("training.data_roots={}", ships.folder().display());
    let server = disk.serve(&[&program, &roots, "training.heartbeat_seconds_max=86400"]);
    let ballast = disk.ballast(&server);
    let journal = Journal::new("jobs", jobs::Owner::without_room(&ships.config(0)));
    torture("jobs", journal, server, &ballast).await;
}
