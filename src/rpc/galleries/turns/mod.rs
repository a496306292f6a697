//! Turns on the search threads: shared by accounts, and yielded between the steps of a search. Slots would serve
//! callers in order of arrival; here the account that has used least goes first.

mod ledger;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::metrics;
use crate::rpc::context::Holder;
use ledger::Ledger;
pub use ledger::SearchSize;

/// How long a search runs before it checks for other waiters.
const SLICE: Duration = Duration::from_millis(20);

/// The search threads and their waiters. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Mutex<Ledger<oneshot::Sender<Turn>>>>);

/// A turn on a thread, returned when dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    holder: Holder,
    /// Since when the thread has been used without being charged; absent once it was returned.
    since: Option<Instant>,
    /// The time charged to this search so far.
    took: Duration,
    /// The number of codes it goes through.
    size: SearchSize,
}

/// A search that has been admitted, counted as waiting until this is dropped.
#[derive(Debug)]
pub struct Announced {
    turns: Turns,
    holder: Holder,
}

/// A position in the queue, left when this is dropped.
struct Waiting<'a> {
    turns: &'a Turns,
    holder: &'a Holder,
    id: u64,
}

impl Turns {
    /// `pace` is how many seconds a code takes until searches have been measured.
    pub fn new(threads: usize, pace: f64) -> Self {
        Self(Arc::new(Mutex::new(Ledger::new(threads, pace))))
    }

    /// Counts a search from now on, since others may arrive before its chips are embedded.
    pub fn announce(&self, holder: &Holder, size: SearchSize) -> Announced {
        self.ledger().announce(holder, size);
        Announced { turns: self.clone(), holder: holder.clone() }
    }

    /// Waits for a thread, fairly. A waiter that leaves the queue costs others nothing.
    pub async fn take(&self, holder: &Holder, size: SearchSize) -> Turn {
        loop {
            let (grant, granted) = oneshot::channel();
            let id = self.ledger().wait(holder, grant, size);
            let waiting = Waiting { turns: self, holder, id };
            self.hand_out();
            let turn = granted.await;
            drop(waiting);
            // A grant is only dropped together with its waiter.
            if let Ok(mut turn) = turn {
                turn.size = size;
                return turn;
            }
        }
    }

    /// How long a new search of an account would wait.
    pub fn expected_wait(&self, holder: &Holder, size: SearchSize) -> Duration {
        self.ledger().expected_wait(holder, size)
    }

    /// Hands free threads to the next waiters.
    fn hand_out(&self) {
        loop {
            let Some((holder, grant)) = self.ledger().begin() else { break };
            let (turns, since) = (self.clone(), Some(Instant::now()));
            let turn = Turn { turns, holder, since, took: Duration::ZERO, size: SearchSize::default() };
            // A waiter that has left in the meantime returns the thread by dropping the turn.
            drop(grant.send(turn));
        }
        metrics::searching(self.ledger().running());
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger<oneshot::Sender<Turn>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let left = self.turns.ledger().leave(self.holder, self.id);
        drop(left);
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.turns.ledger().withdraw(&self.holder);
    }
}

impl Turn {
    /// Yields to accounts that have used less, and blocks this thread until it is this search's turn again.
    pub fn give_way(&mut self) {
        let Some(since) = self.since.filter(|since| since.elapsed() >= SLICE) else { return };
        let turns = self.turns.clone();
        let granted = {
            let mut ledger = turns.ledger();
            let used = since.elapsed();
            ledger.charge(&self.holder, used);
            self.took += used;
            self.since = Some(Instant::now());
            if !ledger.is_due(&self.holder) {
                return;
            }
            let (grant, granted) = oneshot::channel();
            ledger.pause(&self.holder);
            self.since = None;
            ledger.wait_first(&self.holder, grant);
            granted
        };
        turns.hand_out();
        if let Ok(mut turn) = granted.blocking_recv() {
            self.since = turn.since.take();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(since) = self.since else { return };
        let used = since.elapsed();
        {
            let mut ledger = self.turns.ledger();
            ledger.charge(&self.holder, used);
            ledger.end(&self.holder, self.took + used, self.size);
        }
        self.turns.hand_out();
    }
}
