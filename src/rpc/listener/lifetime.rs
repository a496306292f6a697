//! How long a connection lasts: until it is idle for too long, or too old.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Limits;

/// Time for a peer without calls to learn that the connection ends: a round trip.
const FAREWELL: Duration = Duration::from_secs(1);

/// Limits on the duration of a connection, from its first byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lifetime {
    /// Until its first call.
    pub header_max: Duration,
    /// Between calls.
    pub idle_max: Duration,
    /// In all, if bounded.
    pub age_max: Option<Duration>,
    /// For calls in flight on a connection that has reached its maximum age.
    pub grace: Duration,
}

/// Why a connection accepts no further calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    NoCall,
    Idle,
    Age,
    /// Another connection has its slot.
    Displaced,
    /// Its certificate is no longer accepted.
    Distrusted,
    Shutdown,
}

/// The calls of one connection.
#[derive(Clone, Debug)]
pub struct Traffic(Arc<watch::Sender<Calls>>);

/// A call in progress; it has ended when this is dropped.
#[derive(Debug)]
pub struct CallUnderWay(Traffic);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    NoneYet { since: Instant },
    NoneNow { since: Instant },
    InFlight(usize),
}

impl Lifetime {
    pub fn new(limits: &Limits) -> Self {
        let age_max = limits.connection_seconds_max;
        Self {
            header_max: Duration::from_secs_f64(limits.header_seconds_max),
            idle_max: Duration::from_secs_f64(limits.idle_seconds_max),
            age_max: (age_max > 0.0).then(|| Duration::from_secs_f64(age_max)),
            grace: Duration::from_secs_f64(limits.connection_grace_seconds),
        }
    }

    /// The same limits, up to a tenth longer or shorter, so that connections opened at once do not close at once.
    #[must_use]
    pub fn spread(self) -> Self {
        let age_max = self.age_max.map(|age| age.mul_f64(rand::random_range(0.9..=1.1)));
        Self { age_max, ..self }
    }

    /// Waits until a newly opened connection should accept no further calls.
    pub async fn over(&self, traffic: &Traffic) -> CloseReason {
        let opened = Instant::now();
        let grown_old = self.age_max.map(|age| opened + age);
        let mut calls = traffic.0.subscribe();
        loop {
            let quiet = match *calls.borrow_and_update() {
                Calls::NoneYet { .. } => Some((opened + self.header_max, CloseReason::NoCall)),
                Calls::NoneNow { since } => Some((since + self.idle_max, CloseReason::Idle)),
                Calls::InFlight(_) => None,
            };
            let aged = grown_old.map(|at| (at, CloseReason::Age));
            let next = quiet.into_iter().chain(aged).min_by_key(|(at, _)| *at);
            tokio::select! {
                // The traffic outlives its subscriber.
                _ = calls.changed() => {}
                ending = at_last(next) => return ending,
            }
        }
    }

    /// Waits until a connection that accepts no further calls should be cut off.
    pub async fn farewell(&self, traffic: &Traffic, ending: CloseReason) {
        let grace_over = match ending {
            CloseReason::NoCall | CloseReason::Idle | CloseReason::Age | CloseReason::Displaced => {
                Some(Instant::now() + self.grace)
            }
            // Calls of a caller that is no longer trusted end immediately.
            CloseReason::Distrusted => return,
            // Shutdown bounds the time of all connections together.
            CloseReason::Shutdown => None,
        };
        let mut calls = traffic.0.subscribe();
        loop {
            let cancellation = match *calls.borrow_and_update() {
                Calls::NoneYet { .. } | Calls::NoneNow { .. } => Some(Instant::now() + FAREWELL),
                Calls::InFlight(_) => None,
            };
            let next = cancellation.into_iter().chain(grace_over).min();
            tokio::select! {
                _ = calls.changed() => {}
                () = at_last(next.map(|at| (at, ()))) => return,
            }
        }
    }
}

impl CloseReason {
    /// Its name as a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCall => "NO_CALL",
            Self::Idle => "IDLE",
            Self::Age => "AGE",
            Self::Displaced => "DISPLACED",
            Self::Distrusted => "DISTRUSTED",
            Self::Shutdown => "SHUTDOWN",
        }
    }
}

impl Traffic {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Calls::NoneYet { since: Instant::now() })))
    }

    /// Since when no call has been in flight, if none is.
    pub fn idle_since(&self) -> Option<Instant> {
        match *self.0.borrow() {
            Calls::NoneYet { since } | Calls::NoneNow { since } => Some(since),
            Calls::InFlight(_) => None,
        }
    }

    pub fn begin(&self) -> CallUnderWay {
        self.0.send_modify(|calls| {
            *calls = match *calls {
                Calls::NoneYet { .. } | Calls::NoneNow { .. } => Calls::InFlight(1),
                Calls::InFlight(others) => Calls::InFlight(others + 1),
            }
        });
        CallUnderWay(self.clone())
    }
}

impl Drop for CallUnderWay {
    fn drop(&mut self) {
        self.0.0.send_modify(|calls| match calls {
            Calls::InFlight(1) => *calls = Calls::NoneNow { since: Instant::now() },
            Calls::InFlight(in_flight) => *in_flight -= 1,
            Calls::NoneYet { .. } | Calls::NoneNow { .. } => {}
        });
    }
}

/// Waits for an instant and returns the value that belongs to it; without one, waits indefinitely.
async fn at_last<T>(next: Option<(Instant, T)>) -> T {
    match next {
        Some((at, meaning)) => {
            tokio::time::sleep_until(at).await;
            meaning
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIFETIME: Lifetime =
        Lifetime { header_max: SECOND, idle_max: Duration::from_secs(5), age_max: None, grace: SECOND };

    /// Seconds until the connection should end, and why.
    async fn over(lifetime: Lifetime, traffic: &Traffic) -> (u64, CloseReason) {
        let opened = Instant::now();
        let ending = lifetime.over(traffic).await;
        (opened.elapsed().as_secs(), ending)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_first_call_ends_early() {
        assert_eq!(over(LIFETIME, &Traffic::new()).await, (1, CloseReason::NoCall));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_while_no_call_is_in_flight() {
        let traffic = Traffic::new();
        let (first, second) = (traffic.begin(), traffic.begin());
        drop(second);
        let calling = async {
            tokio::time::sleep(100 * SECOND).await;
            drop(first);
        };
        let (ended, ()) = tokio::join!(over(LIFETIME, &traffic), calling);
        assert_eq!(ended, (105, CloseReason::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_comes_of_age_however_busy_it_is() {
        let traffic = Traffic::new();
        let _call = traffic.begin();
        let lifetime = Lifetime { age_max: Some(30 * SECOND), ..LIFETIME };
        assert_eq!(over(lifetime, &traffic).await, (30, CloseReason::Age));
        let spread = lifetime.spread().age_max.expect("bounded");
        assert!((27 * SECOND..=33 * SECOND).contains(&spread), "{spread:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_in_flight_have_their_grace_and_quiet_peers_a_farewell() {
        let lifetime = Lifetime { grace: 60 * SECOND, ..LIFETIME };
        let farewell = async |traffic: &Traffic, ending| {
            let asked = Instant::now();
            lifetime.farewell(traffic, ending).await;
            asked.elapsed().as_secs()
        };
        let traffic = Traffic::new();
        assert_eq!(farewell(&traffic, CloseReason::NoCall).await, 1);
        let call = traffic.begin();
        assert_eq!(farewell(&traffic, CloseReason::Age).await, 60);
        let calling = async {
            tokio::time::sleep(600 * SECOND).await;
            drop(call);
        };
        let (waited, ()) = tokio::join!(farewell(&traffic, CloseReason::Shutdown), calling);
        assert_eq!(waited, 601, "a shutdown has its own bound");
    }
}
