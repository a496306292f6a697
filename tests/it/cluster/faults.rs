//! What happens to servers and their database while callers call.

use std::time::Instant;

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;
use tokio::task::block_in_place;

use super::proxy::Cut;
use super::servers::Cluster;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillServer,
    /// It comes back without its copies.
    KillServerAndDisk,
    StopServer,
    /// Until the database has ended the transaction in which it holds a gallery's lock.
    StopServerThatHoldsALock,
    /// It ends by itself, and comes back.
    TerminateServer,
    Cut,
    CutBeforeAnswer,
    /// A server reaches the database no more, until the end.
    Isolate,
    KillDatabase,
    /// One process of the database, after which it recovers.
    KillBackend,
    /// The database is lost, and its standby takes over.
    FailOver,
}

impl Fault {
    /// Those that take less than a second.
    pub const SHORT: [Self; 7] = [
        Self::KillServer,
        Self::KillServerAndDisk,
        Self::StopServer,
        Self::Cut,
        Self::CutBeforeAnswer,
        Self::KillDatabase,
        Self::KillBackend,
    ];

    /// A few faults at a time, of different servers; at least one is left alone.
    pub fn draw(random: &mut ChaCha8Rng) -> Vec<Self> {
        if random.random_ratio(1, 40) {
            return vec![Self::StopServerThatHoldsALock];
        }
        let count = random.random_range(1..3);
        Self::SHORT.sample(random, count).copied().collect()
    }
}

/// Lets faults happen, each to a server of its own.
pub struct Nemesis<'c> {
    pub cluster: &'c mut Cluster,
    pub is_database_there: watch::Sender<bool>,
    /// How many calls were answered.
    pub answered: watch::Receiver<usize>,
    pub random: ChaCha8Rng,
}

impl Nemesis<'_> {
    pub async fn cause(&mut self, faults: &[Fault]) {
        let mut victims: Vec<usize> = (0..self.cluster.servers.len()).collect();
        victims.shuffle(&mut self.random);
        for (fault, victim) in faults.iter().zip(&victims) {
            self.begin(*fault, *victim).await;
        }
        self.wait_for_answers().await;
        for (fault, victim) in faults.iter().zip(&victims) {
            self.end(*fault, *victim).await;
        }
        self.wait_for_answers().await;
    }

    /// Until some more calls were answered.
    pub async fn wait_for_answers(&mut self) {
        let enough = *self.answered.borrow() + self.random.random_range(10..100);
        self.answered.wait_for(|answered| *answered >= enough).await.expect("callers call");
    }

    pub async fn begin(&mut self, fault: Fault, victim: usize) {
        let server = &mut self.cluster.servers[victim];
        match fault {
            Fault::KillServer | Fault::KillServerAndDisk => server.kill(),
            Fault::StopServer => server.signal(libc::SIGSTOP),
            Fault::StopServerThatHoldsALock => self.stop_with_lock(victim).await,
            Fault::TerminateServer => block_in_place(|| server.terminate()),
            Fault::Isolate => server.proxy.down(),
            Fault::Cut => server.proxy.cut(Cut::Now),
            Fault::CutBeforeAnswer => server.proxy.cut(Cut::BeforeAnswer),
            Fault::KillDatabase => {
                self.is_database_there.send_replace(false);
                let database = &mut self.cluster.database;
                block_in_place(|| {
                    database.kill();
                    database.restart();
                });
                self.is_database_there.send_replace(true);
            }
            Fault::KillBackend => self.kill_backend().await,
            Fault::FailOver => self.fail_over().await,
        }
    }

    pub async fn end(&mut self, fault: Fault, victim: usize) {
        let server = &mut self.cluster.servers[victim];
        match fault {
            Fault::KillServer | Fault::TerminateServer => self.cluster.start_server(victim).await,
            Fault::Isolate => server.proxy.up(),
            Fault::KillServerAndDisk => {
                server.lose_disk();
                self.cluster.start_server(victim).await;
            }
            Fault::StopServer | Fault::StopServerThatHoldsALock => server.signal(libc::SIGCONT),
            _ => {}
        }
    }

    async fn stop_with_lock(&mut self, victim: usize) {
        let server = &self.cluster.servers[victim];
        let database = self.cluster.database.connect().await;
        let holds = "select exists (select from pg_stat_activity a join pg_locks l using (pid)
            where a.application_name = $1 and a.state = 'idle in transaction'
            and l.relation = 'galleries'::regclass and l.mode = 'RowShareLock' and l.granted)";
        let mut ended = server.proxy.ended.subscribe();
        loop {
            server.signal(libc::SIGSTOP);
            ended.mark_unchanged();
            let row = database.query_one(holds, &[&server.name]).await.unwrap();
            if row.get(0) {
                break;
            }
            server.signal(libc::SIGCONT);
        }
        ended.changed().await.expect("the proxy is there");
    }

    async fn fail_over(&mut self) {
        let standby = self.cluster.standby.take().expect("there is one");
        self.is_database_there.send_replace(false);
        let begun = Instant::now();
        block_in_place(|| self.cluster.database.kill());
        standby.promote().await;
        let promoted = begun.elapsed();
        self.cluster.database = standby;
        self.answered.mark_unchanged();
        self.is_database_there.send_replace(true);
        self.answered.changed().await.expect("callers call");
        println!(
            "a standby took over after {promoted:?}, and the next call was answered after {:?}",
            begun.elapsed()
        );
    }

    async fn kill_backend(&mut self) {
        let database = self.cluster.database.connect().await;
        let backends = "select pid from pg_stat_activity where application_name like 'server-%'
            order by state = 'idle', random() limit 1";
        let found = database.query_opt(backends, &[]).await.unwrap();
        // A server that was just cut off may have none.
        let Some(found) = found else { return };
        self.is_database_there.send_replace(false);
        // SAFETY: a process of the database, which may have ended.
        unsafe { libc::kill(found.get(0), libc::SIGKILL) };
        while self.cluster.database.try_connect().await.is_err() || !database.is_closed() {
            tokio::task::yield_now().await;
        }
        self.is_database_there.send_replace(true);
    }
}
