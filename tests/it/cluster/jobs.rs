//! Training jobs of servers that share a database: the real program, killed and stopped while it trains.

use std::path::PathBuf;

use shipreid::client::Client;
use shipreid::wire::JobState;

use super::database::Database;
use crate::program::Server;
use crate::tools::skipped;
use crate::training::{TrainingFolder, Watcher, at_step, is_gone, signal, start};

/// Servers of one database, and ships to learn from.
struct Trainers {
    place: TrainingFolder,
    database: Database,
}

impl Trainers {
    fn new() -> Option<Self> {
        let Some(database) = Database::start(&[]) else {
            skipped("tests/it/cluster/jobs", "no PostgreSQL (make operators)");
            return None;
        };
        Some(Self { place: TrainingFolder::new(), database })
    }

    fn data(&self, name: &str) -> PathBuf {
        self.place.folder().join(name)
    }

    /// A server that a few seconds of silence cost its jobs.
    async fn serve(&self, name: &str) -> (Server, Client) {
        let url = format!("store.url={}", self.database.url());
        let settings = [url.as_str(), "training.lease_seconds=5"];
        self.place.serve_from(&self.data(name), &settings).await
    }

    /// The process that trains a job on a server.
    fn process(&self, server: &str, job_id: &str) -> i32 {
        let lock = self.data(server).join("shared-jobs").join(job_id).join("lock");
        std::fs::read_to_string(lock).unwrap().trim().parse().unwrap()
    }

    /// All events and losses of a job that nothing disturbs.
    async fn undisturbed(&self, client: &Client) -> Watcher {
        let mut watcher = Watcher::default();
        let job = start(client, self.place.config(0)).await;
        watcher.watch(client, &job, |_| false).await;
        watcher
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_server_is_killed_is_continued_by_another_with_the_same_losses() {
    use JobState::{Finished, Interrupted, Queued, Running};
    let Some(trainers) = Trainers::new() else { return };
    let (first, client) = trainers.serve("first").await;
    let undisturbed = trainers.undisturbed(&client).await;
    let mut watcher = Watcher::default();
    let job = start(&client, trainers.place.config(0)).await;
    watcher.watch(&client, &job, at_step(6)).await;
    let process = trainers.process("first", &job);
    // It must not come to its end before another server is there.
    signal(process, libc::SIGSTOP);
    let (second, client) = trainers.serve("second").await;
    first.kill();
    watcher.watch(&client, &job, |_| false).await;
    assert!(is_gone(process));
    let expected = [(1, Queued), (1, Running), (1, Interrupted), (2, Queued), (2, Running), (2, Finished)];
    assert_eq!(watcher.states(), expected);
    assert_eq!(watcher.losses(), undisturbed.losses());
    assert_eq!(watcher.last_job().model, undisturbed.last_job().model);
    second.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_for_longer_than_its_lease_can_write_nothing_when_it_goes_on() {
    use JobState::{Finished, Interrupted, Queued, Running};
    let Some(trainers) = Trainers::new() else { return };
    let (first, at_first) = trainers.serve("first").await;
    let undisturbed = trainers.undisturbed(&at_first).await;
    let job = start(&at_first, trainers.place.config(0)).await;
    let mut watcher = Watcher::default();
    watcher.watch(&at_first, &job, at_step(5)).await;
    let process = trainers.process("first", &job);
    signal(process, libc::SIGSTOP);
    let (second, at_second) = trainers.serve("second").await;
    first.signal(libc::SIGSTOP);
    signal(process, libc::SIGCONT);
    watcher.watch(&at_second, &job, |_| false).await;
    let expected = [(1, Queued), (1, Running), (1, Interrupted), (2, Queued), (2, Running), (2, Finished)];
    assert_eq!(watcher.states(), expected);
    assert_eq!(watcher.losses(), undisturbed.losses());
    first.signal(libc::SIGCONT);
    // Its process, which had waited for it, is killed, and the job stays as it is.
    while !is_gone(process) {
        tokio::task::yield_now().await;
    }
    let mut again = Watcher::default();
    again.watch(&at_first, &job, |_| false).await;
    assert_eq!(again.events, watcher.events);
    for server in [first, second] {
        server.terminate();
    }
}
