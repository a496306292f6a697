//! Exhaustion of file descriptors: some are reserved for the stores, and a port without descriptors
//! waits for one.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shipreid::client::Client;
use tempfile::TempDir;

use crate::connections::{EMPTY_SETTINGS, PREFACE};
use crate::galleries::{GALLERY, create, data_in, enroll, optical, with_chip};
use crate::hostile::{all_answered, good_calls};
use crate::program::{Server, imported};
use crate::server::page;

/// `ulimit -n` of the server.
const DESCRIPTORS: u64 = 256;
/// Connections of each kind that the neighbour holds: more than there are descriptors.
const HELD: usize = 300;

/// The program with its limit.
fn limited() -> Command {
    let mut program = Command::new("prlimit");
    program.arg(format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}")).arg(env!("CARGO_BIN_EXE_shipreid"));
    program
}

/// Raises this process's limit on descriptors to the maximum.
fn raise_own_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit outlives both calls.
    let set = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    assert_eq!(set, 0);
}

/// Opens connections of one kind continuously on its own thread, and keeps the last ones open.
struct Storm {
    is_over: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Storm {
    fn of(address: SocketAddr, says: Vec<u8>) -> Self {
        let (is_over, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ends, counts) = (Arc::clone(&is_over), Arc::clone(&opened));
        let thread = std::thread::spawn(move || {
            let mut held = VecDeque::new();
            while !ends.load(Ordering::Relaxed) {
                let Ok(mut stream) = TcpStream::connect(address) else { continue };
                // The server may have closed it already.
                let _ = stream.write_all(&says);
                held.push_back(stream);
                if held.len() > HELD {
                    held.pop_front();
                }
                counts.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { is_over, opened, thread }
    }

    /// Waits until it has opened more connections than it holds.
    async fn is_on(&self) {
        while self.opened.load(Ordering::Relaxed) <= HELD {
            tokio::task::yield_now().await;
        }
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// The server's count of pauses in accepting.
async fn pauses(server: &Server) -> u32 {
    let page = page(server.metrics, "/metrics").await;
    let values = page.lines().filter(|line| line.starts_with("shipreid_accept_pauses_total{"));
    let mut values = values.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u32>().unwrap()).peekable();
    assert!(values.peek().is_some(), "{page}");
    values.sum()
}

#[tokio::test]
async fn connections_beyond_the_descriptors_take_none_from_the_stores_and_keep_nobody_out() {
    raise_own_limit();
    let folder = TempDir::new().unwrap();
    let server = Server::start_as(limited(), &imported(folder.path()), &[&data_in(&folder)]);
    let client = Client::connect(&server.endpoint).await.unwrap();
    let address = server.endpoint.strip_prefix("http://").unwrap().parse().unwrap();
    let storms = [
        Storm::of(address, Vec::new()),
        Storm::of(address, [PREFACE, EMPTY_SETTINGS].concat()),
        Storm::of(server.metrics, b"GET /metrics HTTP/1.1\r\nhost: ".to_vec()),
    ];
    for storm in &storms {
        storm.is_on().await;
    }
    create(&client, GALLERY).await;
    for number in 0..6 {
        create(&client, &format!("gallery-{number}")).await;
        let answers = enroll(&client, vec![with_chip(&number.to_string(), optical())]).await;
        assert!(answers[0].error.is_none(), "{answers:?}");
        all_answered(good_calls(&client).await);
        all_answered(good_calls(&Client::connect(&server.endpoint).await.unwrap()).await);
    }
    storms.into_iter().for_each(Storm::end);
    assert_eq!(pauses(&server).await, 0, "there was always a descriptor for the next connection");
    all_answered(good_calls(&Client::connect(&server.endpoint).await.unwrap()).await);
    drop(client);
    tokio::task::spawn_blocking(|| server.terminate()).await.unwrap();
}

/// Lines of the log about connections that cannot be accepted.
fn lines_about_it(server: &Server) -> usize {
    server.log().lines().filter(|line| line.contains("connections cannot be accepted")).count()
}

#[tokio::test]
async fn a_port_without_descriptors_waits_for_one_and_neither_spins_nor_fills_the_log() {
    let folder = TempDir::new().unwrap();
    let server = Server::start_as(limited(), &imported(folder.path()), &[&data_in(&folder)]);
    let client = Client::connect(&server.endpoint).await.unwrap();
    all_answered(good_calls(&client).await);

    let begun = Instant::now();
    server.limit_descriptors(0, DESCRIPTORS);
    let address: SocketAddr = server.endpoint.strip_prefix("http://").unwrap().parse().unwrap();
    let _waiting = TcpStream::connect(address).unwrap();
    while lines_about_it(&server) == 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        all_answered(good_calls(&client).await);
    }
    server.limit_descriptors(DESCRIPTORS, DESCRIPTORS);
    all_answered(good_calls(&Client::connect(&server.endpoint).await.unwrap()).await);

    let (paused, took) = (pauses(&server).await, begun.elapsed());
    // Each pause is twice as long as the one before: 10 ms, 20 ms, up to a second.
    let foreseen = (0..).map(|pause| Duration::from_millis(10) * (1 << pause).min(100));
    let mut passed = Duration::ZERO;
    let most = foreseen
        .take_while(|pause| {
            passed += *pause;
            passed < took
        })
        .count() as u32
        + 1;
    assert!((1..=most).contains(&paused), "{paused} pauses in {took:?}, at most {most}");
    assert!(lines_about_it(&server) <= 1 + took.as_secs() as usize / 10);
    drop(client);
    tokio::task::spawn_blocking(|| server.terminate()).await.unwrap();
}
