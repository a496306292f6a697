//! Who is still at work: every rank counts its heartbeats at the store, and watches those of the others.
//!
//! gloo notices a peer that has ended, but blames whichever connection fails first, and waits for one that is stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::c10d::Store;
use super::join::PRESENT_WAIT;
use super::rank_failure::RankFailure;

const FAILURE: &str = "failure";
/// A process that computes for less than this share of the time, and does not wait for others, counts as stalled.
const AT_WORK: f64 = 0.002;

/// How long ranks wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For all to come.
    pub join_max: Duration,
    /// For a heartbeat of a rank.
    pub silence_max: Duration,
    /// Between two heartbeats.
    pub period: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            join_max: Duration::from_secs(300),
            silence_max: Duration::from_secs(60),
            period: Duration::from_secs(1),
        }
    }
}

/// What is called if a rank is lost while this one computes or waits: it cannot be told otherwise. It gets the reason,
/// and ends the process.
pub type OnLoss = Box<dyn Fn(&RankFailure) + Send>;

/// A thread that counts this rank's heartbeats and watches the others'.
#[derive(Debug)]
pub struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Whether this rank waits for somebody, and need not compute.
    waits: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    period: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// An operation with the others has failed: a rank that has been silent for some beats is taken as the cause.
    broken: bool,
    /// Why the ranks no longer train together.
    verdict: Option<RankFailure>,
    left: bool,
}

/// Heartbeats of a rank as seen from another.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    beats: i64,
    since: Instant,
}

impl Watch {
    /// `store` is a connection for this thread alone.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        store: Store,
        rank: usize,
        size: usize,
        patience: Patience,
        on_loss: OnLoss,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            waits: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            period: patience.period,
        });
        let watcher = Watcher {
            store,
            rank,
            silence_max: patience.silence_max,
            shared: Arc::clone(&shared),
            pulses: vec![Pulse { beats: 0, since: Instant::now() }; size],
            busy: busy(),
        };
        thread::Builder::new().name("ranks".into()).spawn(move || watcher.run(&on_loss))?;
        Ok(Self(shared))
    }

    /// Runs an operation in which this rank waits for others. If it fails, returns why: what a rank has said, or who is
    /// silent, or `cause`.
    ///
    /// # Errors
    /// As described.
    pub fn wait<T, E: std::fmt::Display>(
        &self,
        operation: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, RankFailure> {
        self.rest(operation).map_err(|cause| self.why(&cause.to_string()))
    }

    /// Does something in which this process waits, and need not compute.
    pub fn rest<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.waits.store(true, Ordering::Relaxed);
        let done = work();
        self.0.waits.store(false, Ordering::Relaxed);
        done
    }

    fn why(&self, cause: &str) -> RankFailure {
        let mut state = self.0.lock();
        state.broken = true;
        self.0.changed.notify_all();
        // Long enough for the one who failed to say so, or for its silence to be heard.
        let patience = self.0.period * 2 * (BROKEN_BEATS + 2);
        let waited = self.0.changed.wait_timeout_while(state, patience, |state| state.verdict.is_none());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.verdict.clone().unwrap_or_else(|| format!("a rank is lost: {cause}").into())
    }

    /// Ends the watch: whatever happens to the others no longer matters here.
    pub fn leave(&self) {
        self.0.lock().left = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Beats that a silent rank is given once something has failed.
const BROKEN_BEATS: u32 = 5;

/// Says why this rank ends, unless another has failed before; returns the reason that holds.
pub fn tell_failure(store: &Store, failure: RankFailure) -> RankFailure {
    store.set_once(FAILURE, &failure.to_bytes()).map_or(failure, |known| RankFailure::of_bytes(&known))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Watcher {
    store: Store,
    rank: usize,
    silence_max: Duration,
    shared: Arc<Shared>,
    pulses: Vec<Pulse>,
    /// Processor time of this process at the last beat.
    busy: Duration,
}

impl Watcher {
    fn run(mut self, on_loss: &OnLoss) {
        loop {
            let state = self.shared.lock();
            if state.left {
                return;
            }
            let broken = state.broken;
            drop(state);
            if let Some(verdict) = self.look(broken) {
                let mut state = self.shared.lock();
                if state.left {
                    return;
                }
                state.verdict = Some(verdict.clone());
                let is_known = state.broken;
                self.shared.changed.notify_all();
                drop(state);
                if !is_known {
                    on_loss(&verdict);
                }
                return;
            }
            let state = self.shared.lock();
            let waited =
                self.shared.changed.wait_timeout_while(state, self.shared.period, |state| !state.left);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Beats, and returns why the ranks no longer train together, if they do not.
    fn look(&mut self, broken: bool) -> Option<RankFailure> {
        self.beat_and_listen(broken).unwrap_or_else(|cause| {
            let lost = "the store where the ranks meet is lost with the process that serves it";
            Some(format!("{lost}: {cause}").into())
        })
    }

    fn beat_and_listen(&mut self, broken: bool) -> Result<Option<RankFailure>, super::c10d::C10dError> {
        let now = busy();
        let works = now.saturating_sub(self.busy) >= self.shared.period.mul_f64(AT_WORK);
        self.busy = now;
        if works || self.shared.waits.load(Ordering::Relaxed) || broken {
            self.store.add(&beats_of(self.rank), 1)?;
        }
        if self.store.has(FAILURE)? {
            let failure = self.store.get(FAILURE, PRESENT_WAIT)?;
            return Ok(Some(RankFailure::of_bytes(&failure)));
        }
        let silence_max =
            if broken { (self.shared.period * BROKEN_BEATS).min(self.silence_max) } else { self.silence_max };
        for rank in 0..self.pulses.len() {
            if rank == self.rank {
                continue;
            }
            let beats = self.store.add(&beats_of(rank), 0)?;
            let pulse = &mut self.pulses[rank];
            if beats != pulse.beats {
                *pulse = Pulse { beats, since: Instant::now() };
            }
            let silent = pulse.since.elapsed();
            if silent >= silence_max {
                let failure =
                    format!("rank {rank} has ended or hangs: no sign of it for {} s", silent.as_secs());
                return Ok(Some(tell_failure(&self.store, failure.into())));
            }
        }
        Ok(None)
    }
}

fn beats_of(rank: usize) -> String {
    format!("beats/{rank}")
}

/// Processor time of this process.
fn busy() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::super::test_world::launch;
    use super::*;

    #[test]
    fn a_rank_that_waits_for_anybody_shows_signs_of_life_without_computing() {
        let (served, _) = launch(2);
        let [store, observer] = [(), ()].map(|()| served.prefixed("beating").expect("a store"));
        let shared = Arc::new(Shared {
            waits: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            // In so long a time nobody computes enough for a sign.
            period: Duration::from_secs(24 * 3600),
        });
        let mut watcher = Watcher {
            store,
            rank: 0,
            silence_max: Duration::from_secs(3600),
            shared: Arc::clone(&shared),
            pulses: vec![Pulse { beats: 0, since: Instant::now() }; 2],
            busy: busy(),
        };
        let beats = || observer.add(&beats_of(0), 0).expect("a store");
        assert_eq!((watcher.look(false), beats()), (None, 0));
        assert_eq!((Watch(Arc::clone(&shared)).rest(|| watcher.look(false)), beats()), (None, 1));
        assert_eq!((watcher.look(false), beats()), (None, 1), "it computes again");
    }
}
