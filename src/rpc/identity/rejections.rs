//! Limits how many keys a connection may try: after too many guesses it is refused, whatever the next key is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Rejections allowed at once, after a pause.
const BURST: f64 = 100.0;
/// Beyond this many remembered connections, those that have not tried a key for long are forgotten.
const REMEMBERED: usize = 1024;

/// A bucket of rejections for each connection.
#[derive(Debug)]
pub struct Rejections {
    per_second: f64,
    buckets: Mutex<HashMap<u64, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rejections {
    /// Over time, `per_second` per connection; 0 means no bound.
    pub fn new(per_second: f64) -> Self {
        Self { per_second, buckets: Mutex::default() }
    }

    /// How long a connection must wait before one of its keys is checked, if at all.
    pub fn wait(&self, connection: u64) -> Option<Duration> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let left = buckets.get(&connection)?.after(self.per_second).left;
        (left < 1.0).then(|| Duration::from_secs_f64((1.0 - left) / self.per_second))
    }

    /// Notes that a key was rejected.
    pub fn note(&self, connection: u64) {
        if self.per_second <= 0.0 {
            return;
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED {
            buckets.retain(|_, bucket| bucket.after(self.per_second).left < BURST);
        }
        let bucket = buckets.entry(connection).or_insert(Bucket { left: BURST, at: Instant::now() });
        *bucket = bucket.after(self.per_second);
        bucket.left = (bucket.left - 1.0).max(0.0);
    }
}

impl Bucket {
    fn after(self, per_second: f64) -> Self {
        let now = Instant::now();
        let filled = (now - self.at).as_secs_f64() * per_second;
        Self { left: (self.left + filled).min(BURST), at: now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_guesses_waits_and_others_do_not() {
        let rejections = Rejections::new(2.0);
        let mut tries = 0;
        for _ in 0..1000 {
            if rejections.wait(1).is_none() {
                rejections.note(1);
                tries += 1;
            }
            assert_eq!(rejections.wait(2), None);
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!((299..=301).contains(&tries), "100 at once and 2 a second for 100 s: {tries}");
        assert!(rejections.wait(1).is_none_or(|wait| wait <= Duration::from_millis(500)));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_try_nothing_any_more_are_forgotten() {
        let rejections = Rejections::new(10.0);
        for connection in 0..100_000 {
            rejections.note(connection);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let remembered = rejections.buckets.lock().expect("no panic").len();
        assert!(remembered <= REMEMBERED + 1, "{remembered}");
    }

    #[test]
    fn without_a_bound_nobody_waits() {
        let rejections = Rejections::new(0.0);
        (0..1000).for_each(|_| rejections.note(1));
        assert_eq!(rejections.wait(1), None);
    }
}
