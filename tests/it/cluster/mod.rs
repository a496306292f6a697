//! Several servers that share galleries, training jobs and models in PostgreSQL, driven by many callers while servers and
//! database are killed, stopped and cut off. What the callers saw is judged by a checker of linearizability.

mod callers;
mod database;
mod faults;
mod gallery;
mod holding;
mod jobs;
mod linearizability;
mod models;
mod proxy;
mod recorder;
mod registry;
mod rolling;
mod servers;
mod simulated;
mod training;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shipreid::wire::{DeleteGalleryRequest, Read};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::callers::{Caller, History};
use self::faults::{Fault, Nemesis};
use self::gallery::{Call, EMPTY};
use self::linearizability::{Verdict, check};
use self::servers::Cluster;

const SERVERS: usize = 3;
const CALLERS: usize = 12;
const GALLERIES: usize = 2;
/// Times in a history that something fails.
const TROUBLES: Range<usize> = 2..5;
/// `make torture-cluster` sets more: FIRST..END.
const SEEDS: &str = "SHIPREID_CLUSTER_SEEDS";

/// Of the histories to judge.
fn seeds(default: &str) -> Range<u64> {
    let seeds = std::env::var(SEEDS).unwrap_or_else(|_| default.into());
    let (first, end) = seeds.split_once("..").expect("FIRST..END");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// What happened over all histories.
#[derive(Default)]
struct Tally {
    histories: usize,
    calls: usize,
    unanswered: usize,
    faults: BTreeMap<Fault, usize>,
}

impl Tally {
    fn tell(&self) {
        let Self { histories, calls, unanswered, faults } = self;
        println!(
            "{histories} histories, {calls} calls, of them {unanswered} changes without an answer; {faults:?}"
        );
    }
}

/// Callers of every server, in every gallery, over these faults; returns the histories of the galleries.
async fn history(cluster: &mut Cluster, seed: u64, read: Read, troubles: &[Vec<Fault>]) -> Vec<History> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut histories = vec![];
    for number in 0..GALLERIES {
        let gallery = format!("g{seed}-{number}");
        let model = cluster.create(&gallery).await;
        histories.push(Arc::new(History::new(gallery, model, read)));
    }
    let (answered, is_over) = (watch::Sender::new(0), watch::Sender::new(false));
    let is_database_there = watch::Sender::new(true);
    let callers = (0..CALLERS).map(|number| Caller {
        history: Arc::clone(&histories[number / SERVERS % GALLERIES]),
        server: cluster.servers[number % SERVERS].client.subscribe(),
        is_database_there: is_database_there.subscribe(),
        answered: answered.clone(),
        is_over: is_over.subscribe(),
        random: ChaCha8Rng::from_rng(&mut random),
    });
    let callers: JoinSet<_> = callers.map(Caller::run).collect();
    let receiver = answered.subscribe();
    let mut nemesis = Nemesis { cluster, is_database_there, answered: receiver, random };
    nemesis.wait_for_answers().await;
    for faults in troubles {
        nemesis.cause(faults).await;
    }
    is_over.send_replace(true);
    callers.join_all().await;
    // Whatever was acknowledged shows everywhere.
    for history in &histories {
        for server in 0..SERVERS {
            while history.call(&cluster.client(server), Call::List).await.is_err() {}
        }
    }
    histories.into_iter().map(|history| Arc::into_inner(history).expect("its callers are gone")).collect()
}

/// Drives a cluster, and judges what its callers saw.
async fn judge(cluster: &mut Cluster, seed: u64, troubles: &[Vec<Fault>], tally: &mut Tally) {
    for history in history(cluster, seed, Read::Strong, troubles).await {
        let (name, events) = history.into_events();
        tally.calls += events.len();
        tally.unanswered += events.iter().filter(|event| event.answered.is_none()).count();
        let verdict = check(&EMPTY, &events);
        if verdict != Verdict::Linearizable {
            let path = format!("{}/{name}.history", env!("CARGO_TARGET_TMPDIR"));
            let lines = events.iter().map(|event| format!("{event:?}\n"));
            std::fs::write(&path, lines.collect::<String>()).unwrap();
            panic!("seed {seed}, {troubles:?}: {path}: {verdict:?}");
        }
        let delete = DeleteGalleryRequest { name };
        cluster.client(0).galleries().delete_gallery(delete).await.unwrap();
    }
    tally.histories += 1;
    troubles.iter().flatten().for_each(|fault| *tally.faults.entry(*fault).or_default() += 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_callers_of_three_servers_see_has_an_order_whatever_fails() {
    let Some(mut cluster) = Cluster::start(SERVERS).await else { return };
    let mut tally = Tally::default();
    for seed in seeds("0..4") {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let troubles: Vec<_> = (0..random.random_range(TROUBLES)).map(|_| Fault::draw(random)).collect();
        judge(&mut cluster, seed, &troubles, &mut tally).await;
    }
    tally.tell();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_for_longer_than_its_lock_writes_nothing_when_it_wakes() {
    let Some(mut cluster) = Cluster::start(SERVERS).await else { return };
    let mut tally = Tally::default();
    judge(&mut cluster, 0, &[vec![Fault::StopServerThatHoldsALock]], &mut tally).await;
    tally.tell();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_synchronous_standby_loses_nothing() {
    let Some(mut cluster) = Cluster::start_with_standby(SERVERS).await else { return };
    let mut tally = Tally::default();
    judge(&mut cluster, 0, &[vec![Fault::FailOver]], &mut tally).await;
    tally.tell();
}

/// What the checker is for.
#[tokio::test(flavor = "multi_thread")]
async fn local_reads_are_behind_and_the_checker_says_so() {
    let Some(mut cluster) = Cluster::start(SERVERS).await else { return };
    let troubles = vec![vec![]; 4];
    let histories = history(&mut cluster, 0, Read::Local, &troubles).await;
    let verdicts = histories.into_iter().map(|history| check(&EMPTY, &history.into_events().1));
    assert!(verdicts.into_iter().any(|verdict| matches!(verdict, Verdict::Violated(_))));
}
