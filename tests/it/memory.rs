//! Limits on the memory that the program's allocator retains.

use std::thread;

use shipreid::client::Client;
use shipreid::wire::CreateGalleryRequest;

use crate::program::{Server, imported};

/// Address space that glibc reserves for an arena other than the main one; arenas end at a
/// multiple of this.
const ARENA_BYTES: u64 = 64 << 20;

/// Arenas other than the main one: a used part, followed by a reserved part. Pieces of the used part may differ in advice, as
/// where large pages were asked for.
fn arenas(maps: &str) -> usize {
    let mut mappings: Vec<(u64, u64, &str)> = maps
        .lines()
        .map(|line| {
            let (range, rest) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            (address(start), address(end), &rest[..4])
        })
        .collect();
    mappings.dedup_by(|next, last| {
        let continues = (next.0, next.2) == (last.1, last.2);
        if continues {
            last.1 = next.1;
        }
        continues
    });
    let is_arena = |pair: &&[(u64, u64, &str)]| {
        let [(start, end, used), (next, last, reserved)] = **pair else { return false };
        (used, reserved) == ("rw-p", "---p")
            && next == end
            && last % ARENA_BYTES == 0
            && start + ARENA_BYTES <= last
    };
    mappings.windows(2).filter(is_arena).count()
}

#[tokio::test]
async fn threads_share_no_more_arenas_than_there_are_cores() {
    let cores = thread::available_parallelism().unwrap().get();
    let folder = tempfile::tempdir().unwrap();
    let data = format!("store.data_dir={}", folder.path().join("data").display());
    let server = Server::start(&imported(folder.path()), &[&data]);
    let client = Client::connect(&server.endpoint).await.unwrap();
    // Each gallery has a writer thread.
    for number in 0..2 * cores {
        let name = format!("gallery-{number}");
        let request = CreateGalleryRequest { name, ..CreateGalleryRequest::default() };
        client.galleries().create_gallery(request).await.unwrap();
    }
    let arenas = arenas(&server.maps());
    assert!((1..cores.max(2)).contains(&arenas), "{arenas} arenas beside the main one, {cores} cores");
    server.terminate();
}
