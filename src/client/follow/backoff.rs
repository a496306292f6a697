//! How long a watcher waits before it tries again.

use std::time::Duration;

use rand::RngExt;

/// Twice as long after each failure, up to a bound, and a little random: the watchers of a server that stopped do
/// not all come back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    delay_max: Duration,
    next: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, delay_max: Duration) -> Self {
        Self { first, delay_max, next: first }
    }

    /// Something went well: the next failure is the first again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to wait after a failure.
    pub fn failed(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.delay_max);
        delay.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_secs(20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for seconds in [1.0, 2.0, 4.0, 5.0, 5.0] {
            let delay = backoff.failed().as_secs_f64();
            assert!((seconds / 2.0..=seconds).contains(&delay), "{delay} of {seconds}");
        }
        backoff.reset();
        assert!(backoff.failed() <= Duration::from_secs(1));
    }
}
